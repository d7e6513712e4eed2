"""Loops compiled at first use, by numba, for what PyTorch would do in several passes over memory.
CPU, float32.

A module here is imported by the operation that it serves when it first runs, since numba takes half
a second to load.
"""
