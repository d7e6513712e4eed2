"""EDIT: change widths and depths of a live model, its optimizers included. `plan.py` resolves,
`apply.py` carries out.
"""
