"""The list of all edits a model went through; replayed on a fresh base model it gives the same
structure.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.edit.apply import Applied, apply_
from morphogen.edit.edit import (
    AddBlock,
    AddStage,
    DropBlock,
    Edit,
    edit_from_dict,
    edit_to_dict,
)
from morphogen.edit.plan import plan
from morphogen.errors import PlanError
from morphogen.tracing.trace import trace
from morphogen.tracing.widths import widths

Ledger = tuple[Edit, ...]


def replay(
    model: nn.Module,
    ledger: Iterable[Edit],
    example: Tensor | tuple[Any, ...],
    *,
    optimizers: Sequence[Optimizer] = (),
) -> nn.Module:
    """Change `model` in place as the ledger says and return it. Structure only: fill the tensors
    afterwards.

    All or nothing: where an edit cannot be carried out, those before it are taken back. optimizers:
    hold the parameters in the same order as they did when the ledger was written. Raises
    `PlanError` for what is no edit; JSON goes through `ledger_from_json` first.
    """
    ledger = tuple(ledger)
    for edit in ledger:
        if not isinstance(edit, Edit):
            raise PlanError(f"replay: {edit!r} is no edit; read a ledger with ledger_from_json")
    known = widths(trace(model, example))
    done: list[Applied] = []
    try:
        for edit in ledger:
            planned = plan(model, known, [edit])
            # what makes a copy of a block the identity is found on the example
            blocks = isinstance(edit, (AddBlock, DropBlock))
            shown = example if blocks else None
            done.append(apply_(model, planned, optimizers=optimizers, example=shown))
            if blocks or isinstance(edit, AddStage):
                known = widths(trace(model, example))
    except BaseException:
        while done:
            done.pop().undo()
        raise
    return model


def ledger_to_json(ledger: Sequence[Edit]) -> list[dict[str, Any]]:
    """JSON-ready list; `ledger_from_json` is its inverse."""
    return [edit_to_dict(edit) for edit in ledger]


def ledger_from_json(value: Iterable[dict[str, Any]]) -> Ledger:
    """The ledger that `ledger_to_json` wrote. Raises `PlanError` where it is something else."""
    if not isinstance(value, (list, tuple)):
        raise PlanError(f"ledger: a list of edits is wanted, not {value!r}")
    return tuple(edit_from_dict(v) for v in value)
