"""EDIT: change widths and depths of a live model, its optimizers included."""

from morphogen.resize.adapt import adapt
from morphogen.resize.apply import Applied, apply_, count_parameters, resize
from morphogen.resize.checkpoint import load, load_ledger, save
from morphogen.resize.compiled import compiled
from morphogen.resize.distributed import resize_distributed
from morphogen.resize.doctor import doctor
from morphogen.resize.edit import AddBlock, DropBlock, Edit, Grow, Shrink, Split
from morphogen.resize.follow import follow
from morphogen.resize.gradmax import gradmax
from morphogen.resize.ledger import Ledger, ledger_from_json, ledger_to_json, replay
from morphogen.resize.plan import Plan, Row, plan, resized
from morphogen.resize.structure import diff, read_structure, structure

__all__ = [
    "AddBlock", "Applied", "DropBlock", "Edit", "Grow", "Ledger", "Plan", "Row", "Shrink", "Split", "adapt", "apply_",
    "compiled", "count_parameters", "diff", "doctor", "follow", "gradmax", "ledger_from_json", "ledger_to_json", "load",
    "load_ledger", "plan", "read_structure", "replay", "resize", "resize_distributed", "resized", "save", "structure",
]  # fmt: skip
