"""How much each unit of a width can matter, from the weights alone."""

import torch
from torch import Tensor, nn

from morphogen.graph.widths import Slot, Width
from morphogen.resize.plan import live_size, tensors_of


def unit_importance(model: nn.Module, width: Width) -> Tensor:
    """Strength of every unit of `width`, shape (size,): norm of outgoing weights x norm of incoming ones (or norm scale).

    0 means that the unit reaches nothing. Source: the outgoing-weight criterion of Growing_neural_network's prune step.
    Differs: multiplied by the incoming strength, so that rescaling a unit (which keeps the function) keeps its score.
    """
    tensors = tensors_of(model)
    size = live_size(width, tensors)
    # what enters a unit: its rows, or the norm's scale where one follows; what leaves it: the columns that read it
    scaled = any(slot.role == "scale" for slot in width.slots)
    enters, leaves = torch.zeros(size), torch.zeros(size)
    for slot in width.slots:
        if slot.role == "in":
            leaves += _squares(tensors[slot.tensor], slot, width, tensors)
        elif slot.role == ("scale" if scaled else "out"):
            enters += _squares(tensors[slot.tensor], slot, width, tensors)
    return (enters * leaves).sqrt()


def _squares(tensor: Tensor, slot: Slot, width: Width, tensors: dict[str, Tensor]) -> Tensor:
    """Sum of squares of each unit's entries along the slot's dimension; of other widths' spans nothing is taken."""
    flat = tensor.detach().movedim(slot.dim, 0).flatten(1) if tensor.dim() > 1 else tensor.detach()[:, None]
    per_entry = flat.square().sum(1).float().cpu()
    result, start = torch.zeros(live_size(width, tensors)), 0
    known = {span.width for span in slot.spans}
    if known == {width.name}:
        for span in slot.spans:
            extent = len(result) * span.repeat
            result += per_entry[start : start + extent].view(-1, span.repeat).sum(1)
            start += extent
        return result
    return result + per_entry.sum() / len(result)  # a concatenation: no unit is told apart, and none looks dead
