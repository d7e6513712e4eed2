"""Splits and new units by what they would gain."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphogen as mg
from morphogen import Grow, PlanError, Split, plan, resize, trace, widths
from morphogen.edit.inits.firefly import firefly
from morphogen.tracing.widths import FLAT
from problems import PROBLEMS, problem


def searched(model: nn.Module, x: Tensor, edits, loss, **options):
    draw = torch.Generator().manual_seed(0)
    return firefly(model, plan(model, widths(trace(model, x)), edits), loss, draw, **options)


def small() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, torch.randn(40, 5).double(), torch.randn(40, 3).double()


def resized(model: nn.Module, x: Tensor, edits, values) -> nn.Module:
    grown = copy.deepcopy(model)
    resize(grown, edits, example=x, values=values, generator=torch.Generator().manual_seed(0))
    return grown


def test_gains_add_up_to_the_change_of_the_loss() -> None:
    model, x, y = small()
    loss = lambda m: F.mse_loss(m(x), y)  # noqa: E731
    edits = [Split("0", range(4)), Grow("0", 3)]
    found = searched(model, x, edits, loss, points=40)
    assert found.gains["0"].shape == (7,)
    change = float((loss(model) - loss(resized(model, x, edits, found.values))).detach())
    assert change > 0
    assert float(found.gains["0"].sum()) == pytest.approx(change, rel=1e-3)


def test_at_a_reach_of_nothing_the_function_stays() -> None:
    model, x, y = small()
    edits = [Split("0", [1, 3]), Grow("0", 2)]
    found = searched(model, x, edits, lambda m: F.mse_loss(m(x), y), reach=1e-12)
    torch.testing.assert_close(
        resized(model, x, edits, found.values)(x), model(x), rtol=0, atol=1e-10
    )


def test_twins_part_in_opposite_directions() -> None:
    model, x, y = small()
    found = searched(model, x, [Split("0", [2])], lambda m: F.mse_loss(m(x), y), reach=0.1)
    weight, old = found.values["0.weight"], model[0].weight.detach()
    torch.testing.assert_close((weight[2] + weight[4]) / 2, old[2])
    bias, old_bias = found.values["0.bias"], model[0].bias.detach()
    moved, whole = (weight[4] - old[2], bias[4:] - old_bias[2:3]), (old[2], old_bias[2:3])
    assert float(torch.cat(moved).norm()) == pytest.approx(
        0.1 * float(torch.cat(whole).norm()), rel=1e-9
    )
    torch.testing.assert_close(
        found.values["2.weight"][:, [2, 4]], model[2].weight.detach()[:, [2, 2]] / 2
    )
    assert torch.equal(weight[[0, 1, 3]], old[[0, 1, 3]])


def test_a_saddle_is_left_by_splitting() -> None:
    """One unit at the best place for one: its gradient is zero, and two parted units do better."""
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tanh(2 * x).sum(1, keepdim=True)
    model = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    loss = lambda m: F.mse_loss(m(x), y)  # noqa: E731
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-10
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    optimizer.step(closure)
    assert float(model[0].weight.grad.norm()) < 1e-4
    found = searched(model, x, [Split("0", [0])], loss, steps=20, reach=0.3)
    gained = float(
        (loss(model) - loss(resized(model, x, [Split("0", [0])], found.values))).detach()
    )
    assert gained > 0.05 * float(loss(model).detach())
    assert float(found.gains["0"][0]) == pytest.approx(gained, rel=0.1)


@pytest.mark.parametrize("name", PROBLEMS)
def test_any_architecture_and_nothing_is_touched(name: str) -> None:
    model, x = problem(name)
    y = torch.randn_like(model(x).detach())
    loss = lambda m: F.mse_loss(m(x), y)  # noqa: E731
    known = widths(trace(model, x))
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    tried = 0
    for width in known.values():
        if width.fixed:
            continue
        # twins cannot be
        alone = bool(width.not_preserved) or any(slot.role == FLAT for slot in width.slots)
        edits = [Grow(width.name, 2)] if alone else [Split(width.name, [0]), Grow(width.name, 2)]
        planned = plan(model, known, edits)
        if not any(row.role.startswith("in") for row in planned.rows):
            continue
        found = firefly(model, planned, loss, torch.Generator().manual_seed(0), steps=3)
        tried += 1
        assert bool(torch.isfinite(found.gains[width.name]).all())
        grown = resized(model, x, edits, found.values)
        assert widths(trace(grown, x))[width.name].size == width.size + (2 if alone else 3)
    assert tried
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_errors() -> None:
    model, x, y = small()
    loss = lambda m: F.mse_loss(m(x), y)  # noqa: E731
    with pytest.raises(PlanError, match="split twice"):
        searched(model, x, [Split("0", [1, 1])], loss)
    found = searched(model, x, [Grow("0", 2)], loss)
    with pytest.raises(PlanError, match=r"'0.weight' is \(6, 5\) and would be \(7, 5\)"):
        resize(model, [Grow("0", 3)], example=x, values=found.values)


def test_optimizer_follows_and_undo_takes_it_back() -> None:
    model, x, y = small()
    optimizer = torch.optim.AdamW(model.parameters())
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    edits = [Split("0", [2]), Grow("0", 1)]
    found = searched(model, x, edits, lambda m: F.mse_loss(m(x), y))
    applied = resize(model, edits, example=x, optimizers=[optimizer], values=found.values)
    assert not applied.receipt.keeps
    assert mg.doctor(model, optimizers=[optimizer]) == []
    assert all(p.is_contiguous() for p in model.parameters())
    assert all(p is not value for p in model.parameters() for value in found.values.values())
    applied.undo()
    assert str(state) == str((model.state_dict(), optimizer.state_dict()))


def test_a_loss_may_change_the_mode_and_read_modules() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double()
    x, y, seen = torch.randn(40, 5).double(), torch.randn(40, 3).double(), []

    def loss(m: nn.Module) -> Tensor:
        out = m.train()(x)
        seen.append([part.training for part in m.modules() if isinstance(part, nn.BatchNorm1d)])
        return F.mse_loss(out, y)

    searched(model.eval(), x, [Split("0", [1])], loss)
    assert seen
    assert all(modes == [True] for modes in seen)
    assert not model.training
