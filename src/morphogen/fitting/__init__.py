"""The main job: from data to a network of the right shape. `fit.py` has the search, `run.py` the
folder that it leaves.
"""
