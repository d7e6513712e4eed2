"""Learned depths and widths get the blocks and units they ask for: `adapt(model, optimizers)`,
every now and then in a training loop.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.edit.apply import BY_VALUE, apply_
from morphogen.edit.edit import AddBlock, DropBlock, Edit, Grow, Shrink
from morphogen.edit.optim import Way
from morphogen.edit.plan import plan
from morphogen.edit.replicas import refuse_spread
from morphogen.edit.watch import UndoStack, all_or_nothing, rollback
from morphogen.errors import PlanError
from morphogen.layers.protocol import has_blocks, has_units
from morphogen.tracing.trace import trace
from morphogen.tracing.widths import Width, widths


def asked(
    model: nn.Module, known: Callable[[], Mapping[str, Width]] | None = None
) -> list[tuple[Edit, str]]:
    """The edits that the model's learned depths and widths ask for now, with the reason; at most
    one a layer, outer ones first.

    known: gives the model's widths, asked for only where a learned width wants another size.
    """
    edits: list[tuple[Edit, str]] = []
    for name, module in model.named_modules():
        if has_blocks(module):
            built = len(module.blocks)
            wanted = module.wanted()
            if wanted != built:
                edit = AddBlock(name) if wanted > built else DropBlock(name)
                edits.append((edit, module.reason()))
        elif has_units(module):
            tensor = f"{name}.{module.unit_tensor()}".removeprefix(".")
            built = len(getattr(module, module.unit_tensor()))
            wanted = module.wanted()
            if wanted == built:
                continue
            if known is None:
                raise PlanError(
                    f"'{name}' is a {type(module).__name__}: give example=..., which shows what "
                    "its units are tied to"
                )
            width = learned(known(), tensor)
            grown = (
                Grow(width, wanted - built)
                if wanted > built
                else Shrink(width, range(wanted, built))
            )
            edits.append((grown, module.reason()))
    return edits


def learned(known: Mapping[str, Width], tensor: str) -> str:
    """The name of the width that a layer learns whose `unit_tensor` is called `tensor`."""
    return next(
        name for name, width in known.items() if any(slot.tensor == tensor for slot in width.slots)
    )


def adapt(
    model: nn.Module,
    *,
    optimizers: Sequence[Optimizer] = (),
    generator: torch.Generator | None = None,
    example: Tensor | tuple[Any, ...] | None = None,
    states: Mapping[str, Way] = BY_VALUE,
) -> list[Edit]:
    """Add and drop blocks and units until every learned depth and width has as many as it wants;
    returns the edits, for a ledger.

    The state of all other parameters stays, and the optimizers hold exactly the live ones. All
    edits are made, or none. example: a batch to trace the model with, for learned widths. states:
    of the optimizers, see `apply_`. Raises `PlanError` under DistributedDataParallel, whose
    replicas would drift apart: there, `resize_distributed` takes the edits that `asked` gives.
    """
    refuse_spread(model)
    made: list[Edit] = []
    undo_stack: UndoStack = []
    known: dict[str, Width] = {}

    def traced() -> dict[str, Width]:
        # a trace costs many resizes; units that come and go leave it valid
        known.update({} if known or example is None else widths(trace(model, example)))
        return known

    with all_or_nothing(undo_stack):
        while edits := asked(model, None if example is None else traced):
            # one at a time: an outer block that leaves takes inner ones with it
            edit = edits[0][0]
            done = apply_(
                model,
                plan(model, known, [edit]),
                optimizers=optimizers,
                generator=generator,
                states=states,
            )
            undo_stack.append(partial(rollback, done._undo_stack))
            if isinstance(edit, (AddBlock, DropBlock)):
                known.clear()
            made.append(edit)
    return made
