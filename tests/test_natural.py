"""The gain of a natural-gradient step, and growth that asks for it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from morphogen import Grow, PlanError, gradmax, plan, resize, trace, widths
from morphogen.measures.natural import natural_norm
from morphogen.policies.controller import Controller
from morphogen.policies.natural import Natural
from morphogen.training.train import generator


def test_of_one_layer_it_is_the_formula() -> None:
    torch.manual_seed(0)
    layer, x, y = nn.Linear(3, 2).double(), torch.randn(50, 3).double(), torch.randn(50, 2).double()
    loss = lambda m: F.mse_loss(m(x), y)  # noqa: E731
    out = layer(x).detach().requires_grad_()
    (d,) = torch.autograd.grad(F.mse_loss(out, y) * 50, out)
    rows = torch.cat([x, torch.ones(50, 1).double()], 1)
    fisher = torch.kron(d.T @ d / 50, rows.T @ rows / 50)
    g = (d.T @ rows / 50).flatten()
    assert natural_norm(layer, loss, damping=0.0) == pytest.approx(
        float(g @ torch.linalg.solve(fisher, g)), rel=1e-9
    )


@pytest.mark.parametrize("padding", [1, "same"])
def test_of_a_convolution_it_is_that_of_its_patches(padding: int | str) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(2, 3, 3, padding=padding).double(), torch.randn(4, 2, 5, 5).double()
    patches = F.unfold(x, 3, padding=1).transpose(1, 2)
    linear = nn.Linear(18, 3).double()
    linear.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})
    first = natural_norm(conv, lambda m: m(x).pow(3).sum((1, 2, 3)).mean())
    assert first == pytest.approx(
        natural_norm(linear, lambda m: m(patches).pow(3).sum((1, 2)).mean()), rel=1e-9
    )


def test_more_units_never_gain_less_and_nothing_is_touched() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.2), nn.Linear(3, 2)
    ).double()
    x, y = torch.randn(60, 4).double(), torch.randint(2, (60,))
    loss = lambda m: F.cross_entropy(m(x), y)  # noqa: E731
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    small = natural_norm(model, loss, damping=1e-9)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    model[3].p = 0.0  # the masks of two sizes have nothing in common
    small = natural_norm(model, loss, damping=1e-9)
    inits = gradmax(model, plan(model, widths(trace(model, x)), [Grow("0", 2)]), loss)
    resize(model, [Grow("0", 2)], example=x, inits=inits)
    assert natural_norm(model, loss, damping=1e-9) >= small * (1 - 1e-6)


def test_it_grows_where_units_are_missing_and_then_stops() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    x = torch.randn(512, 4)
    y = teacher(x).detach()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = lambda m: F.mse_loss(m(x), y)  # noqa: E731
    each = lambda m: (m(x) - y).square().mean(1).detach()  # noqa: E731
    first = float(loss(model).detach())
    controller = Controller(
        model, Natural(granularity=1, threshold=1.1), each, x[:2], optimizers=[optimizer], loss=loss
    )
    for round in range(40):
        for _ in range(30):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
        changes = controller.step(round, 0.0, generator(round))
        assert all("gain of a natural-gradient step" in change.reason for change in changes)
        if controller.done:
            break
    assert controller.done
    assert 4 <= model[0].out_features <= 16
    assert float(loss(model).detach()) < 0.1 * first


def test_without_a_training_loss_it_says_what_is_missing() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    controller = Controller(
        model, Natural(), lambda m: m(x).square().mean(1).detach(), x, optimizers=[]
    )
    with pytest.raises(PlanError, match=r"Natural needs Controller\(..., loss=...\)"):
        controller.step(0, 0.0, generator(0))
