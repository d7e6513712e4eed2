"""Lossless compression by stable units, and the regions of such networks."""
