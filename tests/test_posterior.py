"""The distribution over depth: its mathematics, its growth, its end in one depth."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphogen as mg
from morphogen import Grow, ShapeError
from morphogen.layers.posterior import DepthPosterior, discretised_normal


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y, reduction="none")


def posterior(mean: float = 2.0, **options) -> DepthPosterior:
    torch.manual_seed(0)
    return DepthPosterior(
        lambda i: nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
        lambda: nn.Linear(4, 3),
        mean=mean,
        **options,
    ).double()


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,))


@pytest.mark.parametrize(("mean", "scale"), [(1.0, 1.0), (3.2, 0.7), (-2.0, 1.5), (12.0, 0.3)])
def test_the_distribution_is_a_rounded_normal_with_finite_gradients(
    mean: float, scale: float
) -> None:
    m, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (mean, scale))
    q = discretised_normal(m, s, 20)
    below = lambda v: 0.5 * math.erfc((mean - v) / (scale * math.sqrt(2)))  # noqa: E731
    mass = torch.tensor(
        [below(k + 0.5) - below(k - 0.5) for k in range(1, 21)], dtype=torch.float64
    )
    torch.testing.assert_close(q.detach(), mass / mass.sum(), rtol=0, atol=1e-10)
    (q * torch.arange(20)).sum().backward()
    assert m.grad.isfinite()
    assert s.grad.isfinite()
    assert torch.autograd.gradcheck(
        lambda a, b: discretised_normal(a, b, 4), (m.detach().clamp(0, 4).requires_grad_(), s)
    )


def test_a_deep_posterior_is_narrow_where_a_poisson_would_be_wide() -> None:
    q = discretised_normal(torch.tensor(8.0), torch.tensor(0.5), 20)
    assert int((q > 0.01).sum()) == 3


def test_the_objective_is_the_bound_and_the_prediction_the_mixture() -> None:
    model, (x, y) = posterior(), data()
    q, outputs = model.q(), model.outputs(x)
    mixture = sum(share * output.softmax(-1) for share, output in zip(q, outputs, strict=True))
    torch.testing.assert_close(model(x).exp(), mixture)
    prior = discretised_normal(q.new_tensor(1.0), q.new_tensor(3.0), len(q))
    bound = sum(
        share * F.cross_entropy(output, y) for share, output in zip(q, outputs, strict=True)
    )
    torch.testing.assert_close(
        model.losses(x, y, cross_entropy, 100), bound + (q * (q / prior).log()).sum() / 100
    )
    # Jensen: the bound lies above the mixture's loss
    assert float(bound) >= float(F.nll_loss(model(x), y))
    assert torch.allclose(posterior(probabilities=False)(x), (q.view(-1, 1, 1) * outputs).sum(0))


def test_blocks_follow_the_quantile_and_the_optimizer_follows_the_blocks() -> None:
    model, (x, y) = posterior(1.0, scale=0.5), data()
    optimizer = torch.optim.Adam(model.parameters())
    model.losses(x, y, cross_entropy, 9).backward()
    optimizer.step()
    before = len(model.blocks)
    model.mean.data.fill_(5.0)
    mg.adapt(model, optimizers=[optimizer])
    assert len(model.blocks) == 6 > before
    assert mg.doctor(model, optimizers=[optimizer]) == []
    model.mean.data.fill_(1.5)
    mg.adapt(model, optimizers=[optimizer])
    assert len(model.blocks) < 6
    assert mg.doctor(model, optimizers=[optimizer]) == []
    assert mg.adapt(model, optimizers=[optimizer]) == []
    assert posterior(9.0, max_blocks=4).wanted() == 4


def test_it_collapses_to_one_depth_with_the_price_said() -> None:
    model, (x, y) = posterior(3.0), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        model.losses(x, y, cross_entropy, 9).backward()
        optimizer.step()
    chosen = model.collapse(x, y, cross_entropy)
    plain = model.fixed(chosen.depth)
    assert type(plain) is nn.Sequential
    assert float(F.cross_entropy(plain(x), y)) == pytest.approx(
        chosen.losses[chosen.depth - 1], rel=1e-12
    )
    assert chosen.losses[chosen.depth - 1] == min(chosen.losses)
    assert model.collapse(x, y, cross_entropy, within=1e9).depth == 1
    assert str(chosen).startswith(f"depth {chosen.depth}: loss ")
    with pytest.raises(ShapeError, match="depth=0; the blocks that exist allow 1 to"):
        model.fixed(0)


def test_its_width_grows_like_any_other() -> None:
    x, _ = data()
    model = nn.Sequential(nn.Linear(4, 4), posterior()).double()
    outputs = copy.deepcopy(model)(x)
    receipt = mg.resize(model, [Grow("0", 2)], example=x).receipt
    assert receipt.keeps
    torch.testing.assert_close(model(x), outputs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"), [({"scale": 0.0}, "scale=0.0"), ({"quantile": 1.0}, "quantile=1.0")]
)
def test_impossible_distributions_are_refused(options, message: str) -> None:
    with pytest.raises(ShapeError, match=f"DepthPosterior: {message}; give a positive number"):
        posterior(**options)
