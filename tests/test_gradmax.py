"""New units with the largest gradient, against the closed form."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphogen as mg
from morphogen import Grow, PlanError, Unsupported, gradmax, plan, resize, trace, widths
from morphogen.edit.inits.constant import INITS, normal
from problems import problem


def grown(model: nn.Module, x: Tensor, name: str, units: int, inits=INITS) -> mg.Applied:
    return resize(
        model,
        [Grow(name, units)],
        example=x,
        inits=inits,
        generator=torch.Generator().manual_seed(0),
    )


def found(model: nn.Module, x: Tensor, name: str, units: int, loss, **options):
    draw = torch.Generator().manual_seed(0)
    return gradmax(
        model, plan(model, widths(trace(model, x)), [Grow(name, units)]), loss, draw, **options
    )


def test_linear_units_end_at_the_leading_singular_vectors() -> None:
    torch.manual_seed(0)
    model, x, y = (
        nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).double(),
        torch.randn(40, 5).double(),
        torch.randn(40, 3).double(),
    )
    out = model(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.mse_loss(out, y), out)
    _, values, right = torch.linalg.svd(gradient.T @ x, full_matrices=False)
    inits = found(model, x, "0", 2, lambda m: F.mse_loss(m(x), y), rounds=300)
    receipt = grown(model, x, "0", 2, inits).receipt
    assert receipt.keeps
    assert receipt.change <= 1e-12
    new = F.normalize(model[0].weight.detach()[6:])
    torch.testing.assert_close(
        (new @ right[:2].T).abs(), torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-6
    )
    F.mse_loss(model(x), y).backward()
    strength = float(model[1].weight.grad[:, 6:].square().sum())
    norms = model[0].weight.detach()[6:].square().sum(1)
    assert strength == pytest.approx(float((norms * values[:2].square()).sum()), rel=1e-6)


@pytest.mark.parametrize("name", ["convnet", "mlp", "residual"])
def test_the_gradient_is_never_smaller_than_that_of_the_usual_start(name: str) -> None:
    model, x = problem(name)
    y = torch.randn_like(model(x).detach())
    loss = lambda m: F.mse_loss(m(x), y)  # noqa: E731
    width = next(
        w.name for w in widths(trace(model, x)).values() if not w.fixed and not w.not_preserved
    )
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    inits = found(model, x, width, 3, loss)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    usual, best = copy.deepcopy(model), copy.deepcopy(model)
    plain, sharp = grown(usual, x, width, 3), grown(best, x, width, 3, inits)
    assert sharp.receipt.keeps
    assert sharp.receipt.change <= 1e-9

    def strength(m: nn.Module) -> float:
        torch.manual_seed(0)
        loss(m).backward()
        rows = plan(model, widths(trace(model, x)), [Grow(width, 3)]).rows
        tensors = dict(m.named_parameters())
        new = [
            tensors[r.tensor].grad.movedim(r.dim, 0)[r.new()]
            for r in rows
            if r.role.startswith("in")
        ]
        return sum(float(part.square().sum()) for part in new)

    assert strength(best) >= strength(usual)
    assert plain.receipt.parameters == sharp.receipt.parameters


def test_what_cannot_be_searched_is_refused() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    with pytest.raises(PlanError, match="not the growth of one width"):
        gradmax(
            model, plan(model, widths(trace(model, x)), [mg.Shrink("0", [1])]), lambda m: m(x).sum()
        )
    with pytest.raises(Unsupported, match="cannot be differentiated twice"):
        found(model, x, "0", 2, lambda m: torch.zeros(()))


def test_a_start_that_is_felt_is_not_promised_to_keep_the_function() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    receipt = grown(model, x, "0", 2, {**INITS, "in": normal(0.5)}).receipt
    assert not receipt.keeps
    assert receipt.change > 1e-3
