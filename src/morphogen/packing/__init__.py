"""Tables as files that are as short as their distribution lets them be: lossless compression by a
density model and bits-back coding.

Source: Townsend, Bird, Barber 2019 (arXiv 1901.04866).
"""
