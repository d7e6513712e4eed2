"""Measures against values known by hand."""

import torch
from torch import nn

from morphogen import trace, widths
from morphogen.layers.linked import Linked, LKReLU
from morphogen.measures.dead import dead_units
from morphogen.measures.importance import unit_importance


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


def test_dead_units_are_those_that_no_row_reaches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
        LKReLU(),
        nn.Linear(8, 5),
        nn.SiLU(),
        nn.Linear(5, 2),
    )
    with torch.no_grad():
        model[0].bias[:2] = -100.0
        model[2].bias[1] = -100.0
    x = torch.randn(50, 3)
    assert dead_units(model, x) == {"1": 2 / 6, "3": 0.0, "5": 0.0}
    expected = (torch.relu(model[0](x)) > 0).any(0)
    assert dead_units(model, x)["1"] == float((~expected).double().mean())
    # a bounded activation far out is as good as dead
    tanh = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    tanh[0].bias.data[0] = 9.0
    assert dead_units(tanh, x, tolerance=1e-3) == {"1": 0.25}


def test_dead_channels_are_dead_at_every_position() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3), Linked(nn.Hardtanh())
    )
    model[0].bias.data[3] = -50.0
    model[2].bias.data[0] = 50.0
    x = torch.randn(5, 1, 6, 6)
    assert dead_units(model, x) == {"1": 0.25, "3": 1 / 3}
    assert not model[1]._forward_hooks
