"""Deep autoregressive networks: probabilities add up to one, samples follow them, estimators follow
their gradient, likelihoods agree.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen import MorphogenError, ShapeError, Unsupported
from morphogen.density.autoregressive import HEADS, AutoregressiveBernoulli
from morphogen.density.darn import Darn, DarnShape, bernoulli
from morphogen.density.gradient_estimators import ESTIMATORS, step_of
from morphogen.density.groups import Groups, check_bits, reordered
from morphogen.density.learn import Training, learn
from morphogen.density.likelihood import (
    bound,
    configurations,
    divergence_of_units,
    exact,
    importance,
    log_likelihood,
)
from morphogen.random_state import random_kept

MIXED = Groups((1, 3, 1, 2, 1))
HIDDEN = {"linear": ((),), "independent": ((),), "made": ((12,), (9, 12)), "nade": ((7,),)}
CASES = [(head, hidden, context) for head in HEADS for hidden in HIDDEN[head] for context in (0, 4)]


@pytest.fixture(autouse=True)
def _own_draws() -> Iterator[None]:
    with random_kept(0):
        yield


def scrambled(module: nn.Module) -> nn.Module:
    """Every weight drawn anew, in float64."""
    module = module.double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def all_rows(groups: Groups) -> Tensor:
    levels = [[[0.0], [1.0]] if size == 1 else torch.eye(size).tolist() for size in groups.sizes]
    return torch.tensor(
        [[*itertools.chain(*parts)] for parts in itertools.product(*levels)]
    ).double()


@pytest.mark.parametrize(("head", "hidden", "context"), CASES)
def test_probabilities_add_up_to_one(head, hidden, context) -> None:
    layer = scrambled(AutoregressiveBernoulli(MIXED, context, head, hidden))
    rows = all_rows(MIXED)
    c = torch.randn(1, context).double().expand(len(rows), -1) if context else None
    total = layer.log_prob(rows, c).exp().sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize(("head", "hidden", "context"), CASES)
def test_a_walk_says_what_the_forward_pass_says(head, hidden, context) -> None:
    """So that samples and codes are of the distribution that is scored."""
    layer = scrambled(AutoregressiveBernoulli(MIXED, context, head, hidden))
    c = torch.randn(6, context).double() if context else None
    x = layer.sample(6, c)
    check_bits(x, MIXED)
    walk = layer.walk(6, c)
    said = []
    for group in range(len(MIXED)):
        said.append(walk.logits_of(group).clone())
        walk.observe(group, x[:, MIXED.slice(group)])
    torch.testing.assert_close(torch.cat(said, 1), layer(x, c))


@pytest.mark.parametrize(("head", "hidden", "context"), CASES)
def test_no_variable_sees_itself_or_a_later_one(head, hidden, context) -> None:
    layer = scrambled(AutoregressiveBernoulli(MIXED, context, head, hidden))
    c = torch.randn(context).double() if context else None
    wrap = lambda row: layer(row[None], None if c is None else c[None])[0]  # noqa: E731
    slope = torch.autograd.functional.jacobian(wrap, torch.rand(MIXED.bits).double())
    group = MIXED.group_of_bit
    assert not slope[group[None, :] >= group[:, None]].any()


def test_samples_follow_the_probabilities() -> None:
    groups = Groups((1, 3, 1))
    model = scrambled(Darn(groups, DarnShape((2,), hidden=3)))
    rows = all_rows(groups)
    wanted = torch.as_tensor(exact(model, rows).log_prob).exp()
    assert float(wanted.sum()) == pytest.approx(1)
    drawn = model.sample(20_000)
    counts = (drawn[:, None] == rows).all(2).double().mean(0)
    # five standard errors
    assert ((counts - wanted).abs() < 5 * (wanted * (1 - wanted) / 20_000).sqrt()).all()


def test_the_target_has_a_gradient() -> None:
    """The bits of h are targets of the prior; torch's own loss gives them the same."""
    x = torch.rand(5, 4, requires_grad=True)
    a = torch.randn(5, 4)
    (ours,) = torch.autograd.grad(-Groups.of_bits(4).log_prob(a, x).sum(), x)
    theirs = F.binary_cross_entropy_with_logits(a, x, reduction="sum")
    torch.testing.assert_close(ours, torch.autograd.grad(theirs, x)[0])
    torch.testing.assert_close(ours, -a)


# ---- estimators, against all configurations

# largest relative bias of the gradient of q's weights that was accepted, for those that have one
# few, of which all combinations can be added up, and many, with which q follows p(h | x)
SAMPLES = {"multi-sample": 2, "wake-sleep": 400}
BIAS = {"half": 0.1, "straight-through": 0.25, "gumbel": 0.6, "nvil": 0.1}


def tiny() -> tuple[Darn, Tensor]:
    model = scrambled(Darn(Groups.of_bits(5), DarnShape((3,), hidden=4)))
    return model, (torch.rand(2, 5) < 0.5).double()


def gradient(model: Darn, loss: Tensor) -> Tensor:
    """Of what only q has."""
    weights = [*model.encoders.parameters(), *model.features.parameters()]
    parts = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def exact_gradient(model: Darn, x: Tensor, name: str, samples: int) -> Tensor:
    (h,) = configurations(3, x.dtype)
    rows = x.repeat_interleave(len(h), 0)
    states = (h.repeat(len(x), 1),)
    log_q = model.log_posterior(rows, states).view(len(x), -1)
    log_p = model.log_joint(rows, states).view(len(x), -1)
    row = ESTIMATORS[name]
    if row.objective == "cost":
        return gradient(model, (log_q.exp() * (log_q - log_p)).sum(1).mean())
    if row.objective == "wake-sleep":  # with many samples q follows p(h | x)
        posterior = (log_p - log_p.logsumexp(1, keepdim=True)).exp().detach()
        return gradient(model, -(posterior * log_q).sum(1).mean())
    weights = log_p - log_q
    total = x.new_zeros(())
    for chosen in itertools.product(range(len(h)), repeat=samples):
        own = [*chosen]
        value = weights[:, own].logsumexp(1) - math.log(samples)
        total = total - (log_q[:, own].sum(1).exp() * value).mean()
    return gradient(model, total)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_follows_its_gradient(name) -> None:
    model, x = tiny()
    samples = SAMPLES.get(ESTIMATORS[name].objective, ESTIMATORS[name].samples)
    wanted = exact_gradient(model, x, name, samples)
    step = step_of(name, model, samples)
    if isinstance(step, nn.Module):
        step.eval()
    repeats = 40 if name == "wake-sleep" else 500
    # many rows at once are many draws
    rows = x.repeat(20, 1)
    draws = torch.stack([gradient(model, step(model, rows)) for _ in range(repeats)])
    mean = draws.mean(0)
    error = draws.std(0) / math.sqrt(repeats)
    if name in BIAS:
        bias = float((mean - wanted).norm() / wanted.norm())
        assert bias < BIAS[name] + float(3 * error.norm() / wanted.norm())
    elif name == "wake-sleep":
        assert float((mean - wanted).norm() / wanted.norm()) < 0.1
    else:
        assert float(((mean - wanted) / error.clamp(min=1e-9)).abs().max()) < 5


def test_every_biased_estimator_says_so() -> None:
    assert set(BIAS) == {name for name, row in ESTIMATORS.items() if not row.unbiased}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("encoder", ["factorial", "autoregressive"])
def test_an_estimator_takes_any_model_or_says_why_not(name, encoder) -> None:
    shape = DarnShape((3, 2), hidden=4, encoder=encoder, skips=True)
    model = Darn(Groups.of_bits(5), shape)
    x = (torch.rand(6, 5) < 0.5).float()
    if encoder == "autoregressive" and not ESTIMATORS[name].autoregressive:
        with pytest.raises(Unsupported, match=f"estimator='{name}'"):
            step_of(name, model)
        return
    loss = step_of(name, model)(model, x)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without


def test_layers_of_bits_have_the_gradient_of_all_of_them() -> None:
    """DisARM and the others draw the layers above anew for each of a pair: two layers, exactly."""
    model = scrambled(Darn(Groups.of_bits(4), DarnShape((2, 2), hidden=0, skips=True)))
    x = (torch.rand(1, 4) < 0.5).double()
    (h,) = configurations(4, x.dtype)
    states = h.split((2, 2), 1)
    rows = x.repeat(len(h), 1)
    log_q = model.log_posterior(rows, states)
    wanted = gradient(model, (log_q.exp() * (log_q - model.log_joint(rows, states))).sum())
    for name in ("reinforce", "muprop", "disarm"):
        step = step_of(name, model)
        draws = torch.stack([gradient(model, step(model, x.repeat(50, 1))) for _ in range(250)])
        error = draws.std(0) / math.sqrt(len(draws))
        assert float(((draws.mean(0) - wanted) / error.clamp(min=1e-9)).abs().max()) < 5, name


# ---- likelihood


def test_importance_sampling_agrees_with_adding_up() -> None:
    model, x = tiny()
    right = exact(model, x)
    drawn = importance(model, x, 20_000)
    assert (np.abs(right.log_prob - drawn.log_prob) < 5 * drawn.error).all()
    assert (drawn.effective <= 20_000).all()
    assert right.monte_carlo_error == 0
    assert log_likelihood(model, x).log_prob == pytest.approx(right.log_prob)
    assert bound(model, x.repeat(2000, 1)) > -right.mean


def test_too_many_bits_are_refused() -> None:
    model = Darn(Groups.of_bits(2), DarnShape((21,), hidden=0))
    with pytest.raises(Unsupported, match="21 stochastic bits"):
        exact(model, torch.zeros(1, 2))


def test_units_that_say_nothing_cost_nothing() -> None:
    model, x = tiny()
    nn.init.zeros_(model.encoder(0).from_context.weight[1:2])
    with torch.no_grad():
        model.encoder(0).bias[1] = model.decoder(1).bias[1]
        model.decoder(1).head.weight[1] = 0
    (costs,) = divergence_of_units(model, x)
    assert costs[1] == pytest.approx(0, abs=1e-12)
    assert costs[0] > 1e-3


# ---- learning


def chain(rows: int, bits: int = 8) -> Tensor:
    """Each bit is the one before, with one in ten wrong."""
    out = [(torch.rand(rows) < 0.5).float()]
    for _ in range(bits - 1):
        wrong = (torch.rand(rows) < 0.1).float()
        out.append((out[-1] - wrong).abs())
    return torch.stack(out, 1)


@pytest.mark.parametrize(
    "shape", [DarnShape((), 0), DarnShape((4,), 8), DarnShape((), 0, "made", visible_hidden=(16,))]
)
def test_it_learns_what_there_is(shape: DarnShape) -> None:
    rows, valid, test = chain(1500), chain(300), chain(2000)
    model = Darn(Groups.of_bits(8), shape, rows.mean(0))
    past = learn(model, rows, valid, Training(rate=2e-3, patience=5))
    # one even bit, and seven of one in ten
    entropy = math.log(2) + 7 * -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert bound(model, test) < entropy + 0.12
    assert min(epoch.valid for epoch in past) == pytest.approx(bound(model, valid), abs=0.2)


def test_the_same_seed_learns_the_same() -> None:
    def learned(noise: int) -> Tensor:
        torch.manual_seed(5)
        rows = chain(300)
        model = Darn(Groups.of_bits(8), DarnShape((3,), 5), rows.mean(0))
        torch.manual_seed(noise)
        learn(model, rows, rows, Training(epochs=3))
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(learned(1), learned(2))


# ---- bad input


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (torch.zeros(2, 7), r"\(2, 7\): give \(rows, 8\)"),
        (torch.full((1, 8), 0.5), r"x\[0, 0\] is 0.5"),
        (torch.zeros(1, 8), "0 bits set in group 1, a category of 3 levels"),
    ],
)
def test_rows_that_are_none_are_refused(rows: Tensor, said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        check_bits(rows, MIXED)


def test_shapes_that_cannot_be_are_refused() -> None:
    for make in (
        lambda: Groups((1, 0)),
        lambda: AutoregressiveBernoulli(MIXED, head="made"),
        lambda: AutoregressiveBernoulli(MIXED, head="linear", hidden=(3,)),
        lambda: AutoregressiveBernoulli(MIXED, head="nade", hidden=(3, 3)),
        lambda: AutoregressiveBernoulli(MIXED, head="deep"),
        lambda: Darn(MIXED, DarnShape((0,))),
        lambda: AutoregressiveBernoulli(MIXED, 3)(torch.zeros(1, 8)),
    ):
        with pytest.raises(MorphogenError):
            make()


def test_another_order_is_the_same_rows() -> None:
    groups, bits = reordered(MIXED.sizes, (4, 1, 0, 2, 3))
    assert groups.sizes == (1, 3, 1, 1, 2)
    check_bits(all_rows(MIXED)[:, bits], groups)


def test_a_network_is_built_again_from_its_config() -> None:
    model = Darn(MIXED, DarnShape((3, 2), 4, "nade", visible_hidden=(5,), dropout=0.1))
    again = Darn.from_config(model.config())
    again.load_state_dict(model.state_dict())
    assert again.shape == model.shape
    x = model.eval().sample(5)
    h = model.encode(x, bernoulli).h
    assert torch.equal(again.eval().log_joint(x, h), model.log_joint(x, h))
