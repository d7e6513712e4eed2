"""How much each unit of a width can matter, from the weights alone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from morphogen.edit.plan import live_size, tensors_of
from morphogen.layers.protocol import is_wired
from morphogen.tracing.widths import FLAT, Width, find


def unit_importance(model: nn.Module, widths: Mapping[str, Width], name: str) -> Tensor:
    """Strength of every unit of the width `name`, shape (size,): norm of outgoing weights x norm of
    incoming ones (or norm scale).

    0 means that the unit reaches nothing. Source: the outgoing-weight criterion of
    Growing_neural_network's prune step. Differs: multiplied by the incoming strength, so that
    rescaling a unit (which keeps the function) keeps its score.
    """
    tensors = tensors_of(model)
    width = find(widths, name)
    size = live_size(widths, name, tensors)
    # what enters a unit: its rows, or the norm's scale where one follows; what leaves it: the
    # columns that read it
    scaled = any(slot.role == "scale" for slot in width.slots)
    entering = "scale" if scaled else "out"
    enters = torch.zeros(size)
    leaves = torch.zeros(size)
    for slot in width.slots:
        tensor = tensors[slot.tensor]
        sizes = {span.width: live_size(widths, span.width, tensors) for span in slot.spans}
        units = torch.tensor(slot.units(width.name, sizes))
        if slot.role == FLAT:
            made, read = _ends(model, slot.tensor, units)
            enters += _squares(tensor, made, 0, size)
            leaves += _squares(tensor, read, 0, size)
        elif slot.role.startswith("in"):
            leaves += _squares(tensor, units, slot.dim, size)
        elif slot.role == entering:
            enters += _squares(tensor, units, slot.dim, size)
    # |incoming| * |outgoing|
    return (enters * leaves).sqrt()


def _ends(model: nn.Module, tensor: str, units: Tensor) -> tuple[Tensor, Tensor]:
    """For each weight of a wired layer (a `Dag`), the units that it enters and leaves, -1 for those
    of other widths. units: of its rows.
    """
    layer = model.get_submodule(tensor.rpartition(".")[0])
    assert is_wired(layer)
    made, read = layer.connections()
    return units[made], units[read]


def _squares(tensor: Tensor, units: Tensor, dim: int, size: int) -> Tensor:
    """Sum of squares of each unit's entries along a dimension."""
    rows = tensor.detach().movedim(dim, 0).reshape(tensor.shape[dim], -1)
    squares = rows.square().sum(1).float().cpu()
    # entries of other widths, -1, are collected behind the last unit and left there
    return torch.zeros(size + 1).index_add(0, units % (size + 1), squares)[:size]
