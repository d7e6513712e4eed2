"""Gradients through bits that are drawn: `ESTIMATORS`, name -> Estimator.

The cost of a row is C = E_q(h|x) f(h),  f = log q(h|x) - log p(x, h). Everything but q has an
ordinary gradient. With logits a of a unit, q = sigmoid(a) and bits h:

    half              dC/da ~ 1/2 |h - q| df/dh                  Gregor et al. 2014, eq. 13
    straight-through  dC/da ~ q (1 - q) df/dh                    Bengio et al. 2013 (1308.3432)
    gumbel            h = [s > 1/2] forwards, s = sigmoid((a + logistic noise) / t) backwards
                                                                 Jang et al. 2017 (1611.01144)
    reinforce         (f - mean of f at the other samples) d log q / da
                                                                 Kool et al. 2019
    nvil              ((f - b(x) - c) / max(1, s)) d log q / da  Mnih and Gregor 2014 (1402.0030)
    muprop            f minus its first-order expansion at the mean, plus that expansion's gradient
                                                                 Gu et al. 2016 (1511.05176)
    disarm            1/2 (f(h) - f(h')) (-1)^h' [h != h'] sigmoid(|a|), h' from 1 - u
                                                                 Dong et al. 2020 (2006.10680)
    iwae / vimco      -log 1/K sum_k p(x, h_k) / q(h_k | x)      Mnih and Rezende 2016 (1602.06725)
    wake-sleep        p and q by self-normalised weights         Bornschein, Bengio 2015 (1406.2751)

The first seven follow the gradient of C, the last two those of other objectives.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from morphogen.density.darn import Darn, bernoulli, bernoulli_negentropy
from morphogen.density.likelihood import log_weights
from morphogen.errors import Unsupported

EstimatorName = Literal[
    "half",
    "straight-through",
    "gumbel",
    "reinforce",
    "nvil",
    "muprop",
    "disarm",
    "vimco",
    "wake-sleep",
]

Step = Callable[[Darn, Tensor], Tensor]
"""(model, rows) -> a scalar whose gradient is the estimate. It may be a module with parameters of
its own, which the optimizer then trains too."""


@dataclass(frozen=True)
class Estimator:
    """make: (model, samples) -> Step. samples: how often a row is encoded in a step, where the user
    has not said. objective: what it follows the gradient of. unbiased: whether its mean is that
    gradient. autoregressive: whether it works with an autoregressive encoder.
    """

    make: Callable[[Darn, int], Step]
    samples: int = 1
    objective: Literal["cost", "multi-sample", "wake-sleep"] = "cost"
    unbiased: bool = True
    autoregressive: bool = True


def step_of(name: EstimatorName, model: Darn, samples: int | None = None) -> Step:
    """The estimator of this name for this model, samples: see `Estimator`.

    Raises `Unsupported` for a model that it cannot be used with, or a name that is not in the
    table.
    """
    if name not in ESTIMATORS:
        raise Unsupported(f"estimator={name!r}: unknown; choose one of {', '.join(ESTIMATORS)}")
    row = ESTIMATORS[name]
    if model.shape.encoder == "autoregressive" and not row.autoregressive:
        able = ", ".join(other for other, row in ESTIMATORS.items() if row.autoregressive)
        raise Unsupported(
            f"estimator={name!r} needs a factorial encoder; this one is autoregressive: choose one "
            f"of {able}"
        )
    return row.make(model, samples or row.samples)


# ---- the gradient goes through the bits


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        q = torch.sigmoid(logits)
        h = torch.bernoulli(q)
        ctx.save_for_backward((h - q).abs())
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        distance: Tensor
        (distance,) = ctx.saved_tensors
        return 0.5 * distance * grads[0]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        q = torch.sigmoid(logits)
        ctx.save_for_backward(q)
        return torch.bernoulli(q)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        q: Tensor
        (q,) = ctx.saved_tensors
        return q * (1 - q) * grads[0]


def _half(logits: Tensor) -> Tensor:
    return _Half.apply(logits)  # type: ignore[no-any-return, no-untyped-call]


def _straight_through(logits: Tensor) -> Tensor:
    return _StraightThrough.apply(logits)  # type: ignore[no-any-return, no-untyped-call]


def _gumbel(logits: Tensor, temperature: float = 0.5) -> Tensor:
    noise = torch.logit(torch.rand_like(logits).clamp(1e-7, 1 - 1e-7))
    soft = torch.sigmoid((logits + noise) / temperature)
    return soft + ((soft > 0.5).to(soft.dtype) - soft).detach()


def _through(draw: Callable[[Tensor], Tensor], model: Darn, samples: int) -> Step:
    return lambda model, x: model.cost(x.repeat(samples, 1), draw).mean()


# ---- the gradient goes through log q


def _reinforce(model: Darn, samples: int) -> Step:
    def step(model: Darn, x: Tensor) -> Tensor:
        rows = x.repeat(samples, 1)
        sample = model.encode(rows, bernoulli)
        cost = sample.negentropy - model.log_joint(rows, sample.h)
        log_q = model.log_posterior(rows, sample.h)
        value = cost.detach().view(samples, -1)
        others = (value.sum(0) - value) / (samples - 1)
        return (cost + (value - others).flatten() * log_q).mean()

    return step


class Nvil(nn.Module):
    """Baselines that are learned: a small network of x, a constant, and the spread of f."""

    constant: Tensor
    spread: Tensor

    def __init__(self, model: Darn, samples: int) -> None:
        super().__init__()
        self.samples = samples
        bits = model.groups.bits
        self.baseline = nn.Sequential(nn.Linear(bits, 100), nn.Tanh(), nn.Linear(100, 1))
        self.baseline.to(model.means.dtype)
        self.register_buffer("constant", torch.zeros((), dtype=model.means.dtype))
        self.register_buffer("spread", torch.ones((), dtype=model.means.dtype))

    def forward(self, model: Darn, x: Tensor) -> Tensor:
        x = x.repeat(self.samples, 1)
        sample = model.encode(x, bernoulli)
        cost = sample.negentropy - model.log_joint(x, sample.h)
        log_q = model.log_posterior(x, sample.h)
        expected: Tensor = self.baseline(x - model.means)[:, 0]
        signal = cost.detach() - expected.detach() - self.constant
        loss = cost + signal / self.spread.sqrt().clamp(min=1) * log_q
        fit = (cost.detach() - self.constant - expected).square()
        if self.training:
            with torch.no_grad():
                self.constant.lerp_(signal.mean(), 0.1)
                self.spread.lerp_(signal.var(unbiased=False), 0.1)
        return (loss + fit).mean()


def _muprop(model: Darn, samples: int) -> Step:
    """Of each layer in turn: the expansion is about that layer's means; layers above are drawn."""

    def step(model: Darn, x: Tensor) -> Tensor:
        x = x.repeat(samples, 1)
        sample = model.encode(x, bernoulli)
        total = (sample.negentropy - model.log_joint(x, sample.h)).mean()
        for level, value in enumerate(sample.h):
            below = sample.h[:level]
            own = x if level == 0 else below[-1].detach()
            logits = model.encoder(level).base(model.encoding(level, own))
            with torch.no_grad():
                rest = _rest(model, x, below, value)
            mean = torch.sigmoid(logits).detach().requires_grad_()
            at_mean = _rest(model, x, below, mean)
            (slope,) = torch.autograd.grad(at_mean.sum(), mean)
            expansion = at_mean.detach() + (slope * (value - mean)).sum(1).detach()
            log_q = model.encoder(level).groups.log_prob(logits, value)
            signal = rest - expansion
            through = (slope.detach() * torch.sigmoid(logits)).sum(1)
            total = total + (signal * log_q + through).mean()
        return total

    return step


def _rest(model: Darn, x: Tensor, below: tuple[Tensor, ...], value: Tensor) -> Tensor:
    """What depends on one stochastic layer, the layers above drawn once, (n,)."""
    return model.cost(x, bernoulli, (*below, value))


def _disarm(model: Darn, samples: int) -> Step:
    def step(model: Darn, x: Tensor) -> Tensor:
        x = x.repeat(samples, 1)
        h: tuple[Tensor, ...] = ()
        total = x.new_zeros(())
        for level in range(model.stochastic):
            below = x if level == 0 else h[level - 1]
            logits = model.encoder(level).base(model.encoding(level, below))
            u = torch.rand_like(logits)
            q = torch.sigmoid(logits).detach()
            one = (u < q).to(x.dtype)
            other = (1 - u < q).to(x.dtype)
            with torch.no_grad():
                difference = _rest(model, x, h, one) - _rest(model, x, h, other)
            factor = 0.5 * difference[:, None] * (one - other)
            # (-1)^h' [h != h'] is h - h'
            slope = factor * torch.sigmoid(logits.detach().abs())
            total = total + (slope * logits).sum(1).mean()
            total = total + bernoulli_negentropy(logits).sum(1).mean()
            h = (*h, one)
        return total - model.log_joint(x, h).mean()

    return step


# ---- other objectives


def _vimco(model: Darn, samples: int) -> Step:
    def step(model: Darn, x: Tensor) -> Tensor:
        log_p, log_q = log_weights(model, x, samples)
        weights = log_p - log_q
        bound = weights.logsumexp(0) - math.log(samples)
        value = weights.detach()
        # in the place of each sample the geometric mean of the others
        others = (value.sum(0) - value) / (samples - 1)
        swapped = value[None].repeat(samples, 1, 1)
        each = torch.arange(samples)
        swapped[each, each] = others
        signal = bound.detach() - (swapped.logsumexp(1) - math.log(samples))
        return -(bound + (signal * log_q).sum(0)).mean()

    return step


def _wake_sleep(model: Darn, samples: int) -> Step:
    """Both wake phases: p and q maximise the log probability of what the weights favour."""

    def step(model: Darn, x: Tensor) -> Tensor:
        log_p, log_q = log_weights(model, x, samples)
        shares = (log_p - log_q).detach().softmax(0)
        return -(shares * (log_p + log_q)).sum(0).mean()

    return step


ESTIMATORS: Mapping[EstimatorName, Estimator] = {
    "half": Estimator(partial(_through, _half), unbiased=False),
    "straight-through": Estimator(partial(_through, _straight_through), unbiased=False),
    "gumbel": Estimator(partial(_through, _gumbel), unbiased=False),
    "reinforce": Estimator(_reinforce, samples=4),
    "nvil": Estimator(Nvil, unbiased=False),
    "muprop": Estimator(_muprop, autoregressive=False),
    "disarm": Estimator(_disarm, autoregressive=False),
    "vimco": Estimator(_vimco, samples=5, objective="multi-sample"),
    "wake-sleep": Estimator(_wake_sleep, samples=5, objective="wake-sleep"),
}
