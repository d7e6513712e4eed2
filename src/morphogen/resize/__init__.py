"""EDIT: change widths and depths of a live model, its optimizers included."""

from morphogen.resize.apply import Applied, apply_, count_parameters, resize
from morphogen.resize.edit import AddBlock, DropBlock, Edit, Grow, Shrink
from morphogen.resize.ledger import Ledger, ledger_from_json, ledger_to_json, replay
from morphogen.resize.plan import Plan, Row, plan, resized

__all__ = [
    "AddBlock", "Applied", "DropBlock", "Edit", "Grow", "Ledger", "Plan", "Row", "Shrink", "apply_", "count_parameters",
    "ledger_from_json", "ledger_to_json", "plan", "replay", "resize", "resized",
]  # fmt: skip
