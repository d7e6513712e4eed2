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
from morphogen.density.local import Local, PeriodicLocal, Window
from morphogen.density.mixture import (
    Mixture,
    filled,
    learn_orders,
    log_likelihood_of,
)
from morphogen.density.mixture import sample as sample_of
from morphogen.density.sparse import Sparse, sample_sparse
from morphogen.density.weight_noise import WeightNoise, divergence_from_best
from morphogen.random_state import random_kept

MIXED = Groups((1, 3, 1, 2, 1))
IMAGE = Groups.of_bits(12)  # 3 x 4 pixels
HIDDEN = {
    "linear": ((),),
    "independent": ((),),
    "made": ((12,), (9, 12)),
    "nade": ((7,),),
    "local": ((),),
}
WINDOWS = {"local": (Window(3, 4, 3, 2), Window(3, 4, 5, 1))}
CASES = [
    pytest.param(head, hidden, context, window, id=f"{head} {hidden} {context} {window}")
    for head in HEADS
    for hidden in HIDDEN[head]
    for window in WINDOWS.get(head, (None,))
    for context in (0, 4)
]
GIVEN = ("head", "hidden", "context", "window")


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


def layer_of(head, hidden, context, window) -> AutoregressiveBernoulli:
    """With the categories that the head can have."""
    groups = IMAGE if head == "local" else MIXED
    return scrambled(AutoregressiveBernoulli(groups, context, head, hidden, window=window))


def all_rows(groups: Groups) -> Tensor:
    levels = [[[0.0], [1.0]] if size == 1 else torch.eye(size).tolist() for size in groups.sizes]
    return torch.tensor(
        [[*itertools.chain(*parts)] for parts in itertools.product(*levels)]
    ).double()


@pytest.mark.parametrize(GIVEN, CASES)
def test_probabilities_add_up_to_one(head, hidden, context, window) -> None:
    layer = layer_of(head, hidden, context, window)
    rows = all_rows(layer.groups)
    c = torch.randn(1, context).double().expand(len(rows), -1) if context else None
    total = layer.log_prob(rows, c).exp().sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize(GIVEN, CASES)
def test_a_walk_says_what_the_forward_pass_says(head, hidden, context, window) -> None:
    """So that samples and codes are of the distribution that is scored."""
    layer = layer_of(head, hidden, context, window)
    c = torch.randn(6, context).double() if context else None
    x = layer.sample(6, c)
    check_bits(x, layer.groups)
    walk = layer.walk(6, c)
    said = []
    for group in range(len(layer.groups)):
        said.append(walk.logits_of(group).clone())
        walk.observe(group, x[:, layer.groups.slice(group)])
    torch.testing.assert_close(torch.cat(said, 1), layer(x, c))


@pytest.mark.parametrize(GIVEN, CASES)
def test_no_variable_sees_itself_or_a_later_one(head, hidden, context, window) -> None:
    layer = layer_of(head, hidden, context, window)
    c = torch.randn(context).double() if context else None
    wrap = lambda row: layer(row[None], None if c is None else c[None])[0]  # noqa: E731
    slope = torch.autograd.functional.jacobian(wrap, torch.rand(layer.groups.bits).double())
    group = layer.groups.group_of_bit
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


# ---- local windows


@pytest.mark.parametrize("stride", [1, 2])
def test_a_period_of_one_is_a_convolution(stride: int) -> None:
    layer = scrambled(PeriodicLocal(2, Local(3, 3, stride, 1)))
    x = torch.randn(4, 2, 9, 8).double()
    wanted = F.conv2d(x, layer.weight[0, 0], layer.bias, stride)
    torch.testing.assert_close(layer(x), wanted)


def test_places_a_period_apart_have_the_same_filters() -> None:
    layer = scrambled(PeriodicLocal(1, Local(2, 3, 2, 2)))
    x = torch.randn(1, 1, 13, 11).double()
    out = layer(x)
    for i, j in itertools.product(range(out.shape[2]), range(out.shape[3])):
        window = x[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        own = F.conv2d(window, layer.weight[i % 2, j % 2], layer.bias)
        torch.testing.assert_close(out[:, :, i, j], own[:, :, 0, 0])


def picture() -> Darn:
    shape = DarnShape(
        (3,), 6, "local", decoder_hidden=0, local=(Local(4, 2, 1, 2),), window=Window(3, 4, 3, 2)
    )
    return scrambled(Darn(IMAGE, shape))


def test_a_network_of_images_is_a_density() -> None:
    model = picture()
    rows = all_rows(IMAGE)
    assert float(np.exp(exact(model, rows).log_prob).sum()) == pytest.approx(1)
    step_of("half", model)(model, rows[:9]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_images_that_are_none_are_refused() -> None:
    with pytest.raises(ShapeError, match="window"):
        AutoregressiveBernoulli(IMAGE, head="local")
    with pytest.raises(ShapeError, match="3 x 5 pixels"):
        AutoregressiveBernoulli(IMAGE, head="local", window=Window(3, 5))
    with pytest.raises(ShapeError, match="odd"):
        Window(3, 4, kernel=2)
    with pytest.raises(ShapeError, match="larger than"):
        Darn(IMAGE, DarnShape((3,), local=(Local(2, 5),), window=Window(3, 4, 3)))


# ---- weights that are uncertain


def test_weights_cost_their_divergence_from_the_best_prior() -> None:
    mu = torch.randn(5, 4).double()
    log_sigma = torch.randn(5, 4).double().mul(0.3)
    mean = mu.mean()
    spread = ((log_sigma * 2).exp() + (mu - mean) ** 2).mean().sqrt()
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(
        normal(mu, log_sigma.exp()), normal(mean, spread)
    ).sum()
    torch.testing.assert_close(divergence_from_best(mu, log_sigma), wanted)
    # any other prior costs more
    for other in (normal(mean + 0.1, spread), normal(mean, spread * 1.1)):
        assert torch.distributions.kl_divergence(normal(mu, log_sigma.exp()), other).sum() > wanted


def test_without_noise_it_is_the_estimator() -> None:
    model, x = tiny()
    noise = WeightNoise(model, step_of("half", model), 10)
    for log_sigma in noise.log_sigma:
        nn.init.constant_(log_sigma, -40.0)
    with torch.no_grad():
        torch.manual_seed(1)
        loss = noise(model, x) - noise.nats(model) / 10
        # the noise has drawn, of every weight
        torch.manual_seed(1)
        for weight in model.parameters():
            torch.randn_like(weight)
        torch.testing.assert_close(loss, step_of("half", model)(model, x))


def test_weight_noise_does_not_overfit() -> None:
    """Forty rows of noise: an exact fit of them is worth nothing."""
    rows = (torch.rand(40, 12) < 0.5).float()
    other = (torch.rand(400, 12) < 0.5).float()
    ends = {}
    for noisy in (False, True):
        model = Darn(Groups.of_bits(12), DarnShape((), 0))
        how = Training(rate=3e-3, patience=1000, epochs=60, batch=20, weight_noise=noisy)
        ends[noisy] = learn(model, rows, other, how)[-1].valid
    assert ends[True] < 12 * math.log(2) + 0.4
    assert ends[False] > ends[True] + 1


def test_only_weight_noise_needs_no_held_out_rows() -> None:
    rows = (torch.rand(40, 5) < 0.3).float()
    model = Darn(Groups.of_bits(5), DarnShape((2,), 4))
    with pytest.raises(MorphogenError, match="weight_noise=True"):
        learn(model, rows, rows[:0], Training(epochs=2))
    past = learn(model, rows, rows[:0], Training(epochs=2, weight_noise=True))
    assert len(past) == 2
    assert math.isnan(past[0].valid)


# ---- bits that are seldom 1


def sparse_model() -> Darn:
    shape = DarnShape((6, 4), 5, skips=True, decoder_hidden=0)
    return scrambled(Darn(Groups.of_bits(4), shape))


def test_sparse_samples_follow_the_probabilities() -> None:
    model = sparse_model()
    rows = all_rows(model.groups)
    wanted = torch.as_tensor(exact(model, rows).log_prob).exp()
    drawn = sample_sparse(model, 20_000)
    counts = (drawn.x[:, None] == rows).all(2).double().mean(0)
    assert ((counts - wanted).abs() < 5 * (wanted * (1 - wanted) / 20_000).sqrt()).all()


def test_what_a_sparse_sample_costs_is_counted() -> None:
    """All bits 1: every weight below the diagonal is added once; all 0: none."""
    model = sparse_model()
    for level in range(3):
        nn.init.constant_(model.decoder(level).bias, 1e4)
    one = sample_sparse(model, 3)
    below = lambda bits: bits * (bits - 1) // 2  # noqa: E731
    assert one.active == 10
    assert one.additions == below(4) + below(6) + 4 * 6 + below(4) + 10 * 4
    for level in range(3):
        nn.init.constant_(model.decoder(level).bias, -1e4)
    none = sample_sparse(model, 3)
    assert (none.active, none.additions) == (0, 0)


@pytest.mark.parametrize(
    ("groups", "shape"),
    [
        (Groups.of_bits(4), DarnShape((3,), 5)),
        (Groups.of_bits(4), DarnShape((3,), 5, "made", decoder_hidden=0, visible_hidden=(6,))),
        (Groups((3, 1)), DarnShape((3,), 5, decoder_hidden=0)),
    ],
)
def test_what_is_dense_is_refused(groups: Groups, shape: DarnShape) -> None:
    with pytest.raises(Unsupported, match=r"dense|columns of weights|category"):
        sample_sparse(Darn(groups, shape), 2)


def test_bits_are_as_seldom_as_asked() -> None:
    kind = (torch.rand(600, 1) < 0.5).float()
    rows = (torch.rand(600, 10) < 0.1 + 0.8 * kind).float()
    model = Darn(Groups.of_bits(10), DarnShape((12,), 20, "independent", decoder_hidden=0))
    learn(model, rows, rows[:100], Training(rate=2e-3, epochs=80, patience=80, active=0.1))
    active = torch.cat(model.encode(rows, bernoulli).h, 1).mean()
    assert 0.05 < float(active) < 0.17
    assert isinstance(Sparse(step_of("half", model), 0.1)(model, rows), Tensor)


# ---- several orders


def two_orders() -> tuple[Mixture, Tensor]:
    order = (4, 0, 3, 1, 2)
    groups, _ = reordered(MIXED.sizes, order)
    models = (
        scrambled(Darn(MIXED, DarnShape((2,), 3))),
        scrambled(Darn(groups, DarnShape((), 0))),
    )
    return Mixture(models, (tuple(range(5)), order)), all_rows(MIXED)


def test_a_mixture_is_a_density() -> None:
    mixture, rows = two_orders()
    log_prob = log_likelihood_of(mixture, rows).log_prob
    assert float(np.exp(log_prob).sum()) == pytest.approx(1)
    drawn = sample_of(mixture, 20_000)
    wanted = torch.as_tensor(log_prob).exp()
    counts = (drawn[:, None] == rows).all(2).double().mean(0)
    assert ((counts - wanted).abs() < 5 * (wanted * (1 - wanted) / 20_000).sqrt()).all()


def test_gaps_follow_the_mixture() -> None:
    mixture, rows = two_orders()
    known = torch.tensor([[True, False, True, False, False]])
    row = rows[5:6]
    log_prob = torch.as_tensor(log_likelihood_of(mixture, rows).log_prob)
    bits = known[0][MIXED.group_of_bit]
    fits = (rows[:, bits] == row[:, bits]).all(1)
    share = log_prob[fits].softmax(0)
    (one,) = filled(mixture, row, known, 20_000)
    assert torch.allclose(one.means, share @ rows[fits], atol=0.05)
    assert one.log_prob == pytest.approx(float(log_prob[fits].logsumexp(0)), abs=0.05)
    assert float(one.weights.sum()) == pytest.approx(1)


def test_more_orders_are_no_worse() -> None:
    kind = (torch.rand(600, 1) < 0.5).float()
    rows = (torch.rand(600, 8) < 0.1 + 0.8 * kind).float()
    model = Darn(Groups.of_bits(8), DarnShape((), 0))
    how = Training(rate=2e-3, epochs=20)
    learn(model, rows[:400], rows[400:500], how)
    mixture = learn_orders(model, rows[:400], rows[400:500], how, 3)
    assert len(mixture.models) == 3
    assert mixture.models[0] is model
    # the mean of networks is at least the mean of their logarithms
    each = [
        log_likelihood(m, rows[500:, mixture.places(k)]).mean for k, m in enumerate(mixture.models)
    ]
    assert log_likelihood_of(mixture, rows[500:]).mean >= np.mean(each) - 1e-6
