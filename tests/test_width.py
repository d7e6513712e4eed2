"""A learned width: its gates, the units it asks for, and the plain layer it ends in."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphogen as mg
from morphogen import LearnedWidth, ShapeError, Unsupported
from morphogen.layers.penalty import linear, penalty, quadratic
from morphogen.policies.controller import Controller
from morphogen.policies.trial import Trial


def perceptron(w: float = 5.5, units: int = 8, **options) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, units), nn.ReLU(), LearnedWidth(units, w, **options), nn.Linear(units, 3)
    ).double()
    return model, torch.randn(16, 4).double()


def convolutional() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(1)
    layers = [
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        LearnedWidth(6, 4.2),
        nn.Conv2d(6, 5, 3),
        nn.GELU(),
        LearnedWidth(5, 3.7),
        nn.Conv2d(5, 4, 1),
        nn.Flatten(),
        nn.Linear(16, 3),
    ]
    return nn.Sequential(*layers).double(), torch.randn(4, 2, 8, 8).double()


def test_gates_fall_and_end_at_the_width() -> None:
    layer = LearnedWidth(10, 6.5, soft=0.5).double()
    w = layer.width
    expected = [1 - math.exp(-(1 - j / w) / 0.5) if j < w else 0.0 for j in range(10)]
    assert layer.gates().tolist() == pytest.approx(expected, abs=1e-12)
    assert layer.active_units == 7
    assert w == pytest.approx(6.5, rel=1e-6)


def test_closed_units_take_no_part_and_get_no_gradient() -> None:
    model, x = perceptron()
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed[0].weight[6:].normal_()
        changed[3].weight[:, 6:].normal_()
    assert torch.equal(model(x), changed(x))
    model(x).square().sum().backward()
    assert not model[0].weight.grad[6:].any()
    assert not model[3].weight.grad[:, 6:].any()
    assert model[2].log_w.grad.abs() > 0


def test_the_gradient_of_the_width_is_that_of_a_difference() -> None:
    model, x = perceptron()
    assert torch.autograd.gradcheck(
        lambda log_w: torch.func.functional_call(model, {"2.log_w": log_w}, (x,)),
        (model[2].log_w.detach().requires_grad_(),),
    )


def test_units_come_and_go_and_the_optimizer_follows() -> None:
    model, x = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(x).square().mean().backward()
    optimizer.step()
    before, state = model(x), copy.deepcopy(optimizer.state[model[0].weight]["exp_avg"])
    assert mg.adapt(model, optimizers=[optimizer], example=x) == [mg.Shrink("0", range(6, 8))]
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], state[:6])
    model[2].log_w.data.fill_(math.log(8.5))
    assert mg.adapt(model, optimizers=[optimizer], example=x) == [mg.Grow("0", 3)]
    assert model[2].ones.tolist() == [1.0] * 9
    assert model[0].out_features == model[3].in_features == 9
    assert mg.doctor(model, optimizers=[optimizer]) == []
    assert mg.adapt(model, optimizers=[optimizer], example=x) == []


def test_a_width_that_hovers_does_not_flip_the_structure() -> None:
    model, x = perceptron(w=8.0)
    changes = 0
    for k in range(200):
        model[2].log_w.data.fill_(math.log(8.0 + 0.3 * math.sin(k)))
        changes += len(mg.adapt(model, example=x))
    assert changes <= 1


def test_floor_and_most() -> None:
    layer = LearnedWidth(8, 1e-3, floor=2.0, max_units=9)
    assert layer.width == pytest.approx(2.0)
    layer.gates().sum().backward()
    assert layer.log_w.grad > 0
    layer.log_w.data.fill_(math.log(100.0))
    assert layer.wanted() == 9
    layer.log_w.data.fill_(math.nan)
    assert layer.wanted() == 8


def test_without_an_example_the_way_out_is_named() -> None:
    model, _ = perceptron()
    with pytest.raises(mg.PlanError, match="example="):
        mg.adapt(model)


@pytest.mark.parametrize("build", [perceptron, convolutional])
def test_freeze_ends_in_a_fixed_width(build) -> None:
    model, x = build()
    model.train()
    for _ in range(3):
        model(x)
    plain, certificate = mg.freeze(model, x)
    torch.testing.assert_close(plain(x), model.eval()(x), rtol=0, atol=1e-10)
    assert certificate.max_error <= 1e-10
    assert not any(isinstance(m, LearnedWidth) for m in plain.modules())
    assert (
        plain[0].weight.shape[0]
        == next(m for m in model if isinstance(m, LearnedWidth)).active_units
    )


def test_freeze_says_where_a_width_cannot_go() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), LearnedWidth(5), nn.Tanh(), nn.Linear(5, 2))
    with pytest.raises(Unsupported, match="right before a Linear"):
        mg.freeze(model, torch.randn(2, 4))
    model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), LearnedWidth(5))
    with pytest.raises(Unsupported, match="stands last"):
        mg.freeze(model, torch.randn(2, 4))


def test_save_and_load(tmp_path) -> None:
    model, x = perceptron()
    mg.adapt(model, example=x)
    mg.save(model, tmp_path / "m.safetensors")
    fresh, _ = mg.load(tmp_path / "m.safetensors", lambda: perceptron()[0])
    assert torch.equal(fresh(x), model(x))


def test_compiled_and_half_precision() -> None:
    model, x = perceptron()
    exported = torch.export.export(model.eval(), (x,)).module()
    assert torch.equal(exported(x), model(x))
    half = copy.deepcopy(model).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "arguments",
    [{"units": 0}, {"units": 4, "w": -1.0}, {"units": 4, "w": math.inf}, {"units": 4, "soft": 0.0}],
)
def test_bad_arguments(arguments) -> None:
    with pytest.raises(ShapeError, match="LearnedWidth"):
        LearnedWidth(**arguments)


def test_penalties() -> None:
    model, _ = perceptron(penalty=partial(linear, factor=0.1))
    assert penalty(model).item() == pytest.approx(0.55)
    model, _ = perceptron(penalty=partial(quadratic, factor=0.1))
    assert penalty(model).item() == pytest.approx(0.1 * 5.5**2)


def teacher() -> tuple[Tensor, Tensor, nn.Module]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(1024, 6, generator=draw)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
        nn.init.normal_(net[2].weight, std=1.0)
        nn.init.normal_(net[0].weight, std=0.7)
    return x, net(x).detach(), net


@pytest.mark.parametrize("start", [2, 40])
def test_a_width_is_learned_from_both_sides(start: int) -> None:
    """A teacher of five units: few grow, many go, under one optimizer and a controller."""
    x, y, _ = teacher()
    torch.manual_seed(0)
    layer = LearnedWidth(start, penalty=partial(linear, factor=2e-3))
    model = nn.Sequential(nn.Linear(6, start), nn.ReLU(), layer, nn.Linear(start, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    losses = lambda m: F.mse_loss(m(x), y, reduction="none")[:, 0].detach()  # noqa: E731
    controller = Controller(model, Trial(), losses, x[:2], optimizers=[optimizer])
    assert controller.sizes() == {}
    for step in range(1500):
        optimizer.zero_grad()
        (F.mse_loss(model(x), y) + penalty(model)).backward()
        optimizer.step()
        if step % 25 == 24:
            mg.adapt(model, optimizers=[optimizer], example=x[:2])
    assert mg.doctor(model, optimizers=[optimizer]) == []
    assert 4 <= layer.active_units <= 12
    assert float(losses(model).mean()) < 0.05 * float(y.var())
