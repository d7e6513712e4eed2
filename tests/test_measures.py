"""Measures against values known by hand."""

import torch
from torch import nn

from morphogen import trace, widths
from morphogen.measures import unit_importance


def test_importance_is_incoming_times_outgoing() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]))
        model[2].weight.copy_(torch.tensor([[2.0, 0.0, 7.0]]))
    found = widths(trace(model, torch.randn(2, 2)))
    torch.testing.assert_close(unit_importance(model, found, "0"), torch.tensor([10.0, 0.0, 0.0]))


def test_rescaling_a_unit_keeps_its_importance() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    found = widths(trace(model, torch.randn(2, 2)))
    before = unit_importance(model, found, "0")
    with torch.no_grad():
        model[0].weight[1] *= 4
        model[2].weight[:, 1] /= 4
    torch.testing.assert_close(unit_importance(model, found, "0"), before)


def test_a_flattened_channel_counts_all_its_columns() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 1))
    found = widths(trace(model, torch.randn(2, 1, 2, 2)))
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[2].weight.copy_(torch.tensor([[1.0, 1, 1, 1, 2, 2, 2, 2]]))
    torch.testing.assert_close(unit_importance(model, found, "0"), torch.tensor([2.0, 4.0]))
