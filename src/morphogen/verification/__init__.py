"""PROVE that a network cannot do what must not be, or find an input where it does: attack, branch
and bound, properties.
"""
