"""Neurons without layers: each may read every input and every earlier neuron. `module.py` has the
layer.
"""
