"""Learned depths get the blocks they ask for: `adapt(model, optimizers)`, called every now and then in a training loop."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from morphogen.layers.stack import BlockStack
from morphogen.resize.apply import apply_
from morphogen.resize.edit import AddBlock, DropBlock, Edit
from morphogen.resize.plan import plan


def asked(model: nn.Module) -> list[tuple[Edit, BlockStack]]:
    """The edits that the model's learned depths ask for now, outer layers first, at most one a layer."""
    edits: list[tuple[Edit, BlockStack]] = []
    for name, module in model.named_modules():
        if isinstance(module, BlockStack) and (wanted := module.wanted()) != len(module.blocks):
            edits.append((AddBlock(name) if wanted > len(module.blocks) else DropBlock(name), module))
    return edits


def adapt(model: nn.Module, optimizers: Sequence[Optimizer] = (), generator: torch.Generator | None = None) -> list[Edit]:
    """Add and drop blocks until every learned depth has as many as it wants; returns the edits, for a ledger.

    The state of all other parameters stays, and the optimizers hold exactly the live ones. Under DistributedDataParallel, use
    `resize_distributed` with `asked`.
    """
    made: list[Edit] = []
    while edits := asked(model):
        # one at a time: an outer block that leaves takes inner ones with it
        apply_(model, plan(model, {}, [edits[0][0]]), optimizers=optimizers, generator=generator)
        made.append(edits[0][0])
    return made
