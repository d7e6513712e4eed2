"""How much each unit of a width can matter, from the weights alone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from morphogen.graph.widths import Slot, Width, find
from morphogen.resize.plan import live_size, tensors_of


def unit_importance(model: nn.Module, widths: Mapping[str, Width], name: str) -> Tensor:
    """Strength of every unit of the width `name`, shape (size,): norm of outgoing weights x norm of incoming ones
    (or norm scale).

    0 means that the unit reaches nothing. Source: the outgoing-weight criterion of Growing_neural_network's prune step.
    Differs: multiplied by the incoming strength, so that rescaling a unit (which keeps the function) keeps its score.
    """
    tensors = tensors_of(model)
    width = find(widths, name)
    size = live_size(widths, name, tensors)
    # what enters a unit: its rows, or the norm's scale where one follows; what leaves it: the columns that read it
    scaled = any(slot.role == "scale" for slot in width.slots)
    enters, leaves = torch.zeros(size), torch.zeros(size)
    for slot in width.slots:
        if slot.role.startswith("in"):
            leaves += _squares(tensors[slot.tensor], slot, width.name, size)
        elif slot.role == ("scale" if scaled else "out"):
            enters += _squares(tensors[slot.tensor], slot, width.name, size)
    return (enters * leaves).sqrt()


def _squares(tensor: Tensor, slot: Slot, width: str, size: int) -> Tensor:
    """Sum of squares of each unit's entries along the slot's dimension; of other widths' spans nothing is taken."""
    flat = tensor.detach().movedim(slot.dim, 0).flatten(1) if tensor.dim() > 1 else tensor.detach()[:, None]
    per_entry = flat.square().sum(1).float().cpu()
    result, start = torch.zeros(size), 0
    known = {span.width for span in slot.spans}
    if known == {width}:
        for span in slot.spans:
            extent = size * span.repeat
            result += per_entry[start : start + extent].view(-1, span.repeat).sum(1)
            start += extent
        return result
    return result + per_entry.sum() / size  # a concatenation: no unit is told apart, and none looks dead
