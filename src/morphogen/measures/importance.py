"""How much each unit of a width can matter, from the weights alone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from morphogen.edit.plan import live_size, tensors_of
from morphogen.layers.protocol import is_wired
from morphogen.tracing.widths import FLAT, Slot, Width, find


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
    enters = torch.zeros(size)
    leaves = torch.zeros(size)

    def units(slot: Slot) -> list[int]:
        return slot.units(
            width.name, {span.width: live_size(widths, span.width, tensors) for span in slot.spans}
        )

    for slot in width.slots:
        if slot.role == FLAT:
            made, read = _ends(model, slot.tensor, torch.tensor(units(slot)))
            enters += _squares(tensors[slot.tensor], made, 0, size)
            leaves += _squares(tensors[slot.tensor], read, 0, size)
        elif slot.role.startswith("in"):
            leaves += _squares(tensors[slot.tensor], units(slot), slot.dim, size)
        elif slot.role == ("scale" if scaled else "out"):
            enters += _squares(tensors[slot.tensor], units(slot), slot.dim, size)
    return (enters * leaves).sqrt()


def _ends(model: nn.Module, tensor: str, units: Tensor) -> tuple[list[int], list[int]]:
    """For each weight of a wired layer (a `Dag`), the units that it enters and leaves, -1 for those
    of other widths. units: of its rows.
    """
    layer = model.get_submodule(tensor.rpartition(".")[0])
    assert is_wired(layer)
    made, read = layer.connections()
    return units[made].tolist(), units[read].tolist()


def _squares(tensor: Tensor, units: list[int], dim: int, size: int) -> Tensor:
    """Sum of squares of each unit's entries along a dimension."""
    flat = (
        tensor.detach().movedim(dim, 0).flatten(1) if tensor.dim() > 1 else tensor.detach()[:, None]
    )
    # entries of other widths, -1, are collected behind the last unit and left there
    return torch.zeros(size + 1).index_add(
        0, torch.tensor(units) % (size + 1), flat.square().sum(1).float().cpu()
    )[:size]
