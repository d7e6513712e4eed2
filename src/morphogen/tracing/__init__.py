"""READ: one traced graph of a model, which of its tensor dimensions are one size, and its steps as
a program.
"""
