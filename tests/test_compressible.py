"""Training for compression: weights of exactly zero, bounds that hold, examples that are worse and
near.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from morphogen import ShapeError, Unsupported
from morphogen.bounds.box import linf_ball
from morphogen.training.compressible import MEASURES, adversarial, instability, l1_step


def test_small_weights_become_zero_and_biases_stay() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([[0.5, -0.5], [0.05, -0.05]])
        layer.bias[:] = 0.01
    l1_step(torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9), 0.1)  # 0.1 * 0.1 / (1 - 0.9)
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.4, -0.4], [0.0, 0.0]]))
    assert layer.bias.tolist() == pytest.approx([0.01, 0.01])


@pytest.mark.parametrize("measure", MEASURES)
def test_instability_falls_under_training_and_is_zero_without_such_units(measure: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 5)),
        nn.LeakyReLU(0.1),
        nn.Linear(5, 2),
    )
    x = torch.rand(6, 1, 4, 4)
    box = linf_ball(x, 0.05, 0.0, 1.0)
    before = instability(model, box, measure)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(50):
        optimizer.zero_grad()
        instability(model, box, measure).backward()
        optimizer.step()
    assert float(instability(model, box, measure).detach()) < float(before.detach())
    exact = instability(model, linf_ball(x, 0.0), "gap")
    assert float(exact.detach()) == pytest.approx(0.0, abs=1e-6)


def test_the_gap_is_the_height_of_the_triangle() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()).double()
    nn.init.ones_(model[0].weight)
    found = instability(model, linf_ball(torch.tensor([[0.5], [7.0]]).double(), 2.0))
    assert float(found.detach()) == pytest.approx(1.5 * 2.5 / 4 / 2)  # of two boxes one bends


def test_adversarial_examples_are_near_and_worse() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.rand(20, 8), torch.randint(3, (20,))
    worse = adversarial(model, x, y, 0.1)
    assert float((worse - x).abs().max()) <= 0.1 + 1e-6
    assert float(worse.min()) >= 0.0
    assert float(worse.max()) <= 1.0
    assert float(F.cross_entropy(model(worse), y)) > float(F.cross_entropy(model(x), y))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert adversarial(model, x, y, 0.0) is x


def test_what_has_no_bounds_is_refused_by_name() -> None:
    box = linf_ball(torch.rand(2, 4), 0.1)
    with pytest.raises(Unsupported, match="no bounds for Tanh"):
        instability(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), box)
    with pytest.raises(Unsupported, match="padding_mode='circular'"):
        instability(
            nn.Sequential(nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")),
            linf_ball(torch.rand(2, 1, 4), 0.1),
        )
    with pytest.raises(ShapeError, match="'area'"):
        instability(nn.Sequential(nn.Linear(4, 4)), box, "area")
