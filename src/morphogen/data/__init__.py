"""Data in: a name, a file, a table or arrays become a `Dataset`. `load.py` has all of them."""
