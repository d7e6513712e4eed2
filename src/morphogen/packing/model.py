"""The model that travels with a packed table, trained on all its rows to have few weights: `fit`.

What is made short is the whole message: the rows under the model, and the model. A weight costs
more the larger it is, and least where it is 0; the penalty a sum_w log(1 + |w| / e) stands for
that, in nats, so that a weight stays 0 unless the rows gain more by it.

Source: Adam of Kingma and Ba 2015 (arXiv 1412.6980), followed by the proximal step of the penalty,
taken at its slope, in Adam's own metric.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.density.autoregressive import AutoregressiveBernoulli, HeadName, Linear
from morphogen.density.darn import Darn, DarnShape
from morphogen.density.gradient_estimators import step_of
from morphogen.density.groups import Groups
from morphogen.density.likelihood import bound
from morphogen.random_state import own_draws

MOST_STRIPS = 256
_SMALL = 0.1  # e of the penalty
_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Fit:
    """penalty: a, nats for each weight. rate: of Adam at first; it falls to next to nothing in
    whatever time there is. steps, seconds: at most. batch: rows a step, at most.
    """

    penalty: float = 2.0
    rate: float = 0.05
    steps: int = 2500
    batch: int = 512
    seconds: float = 30.0
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """One tensor of a model and which of its entries count."""

    name: str
    tensor: nn.Parameter
    mask: Tensor


def parts_of(model: nn.Module) -> Iterator[Part]:
    """All tensors with an entry that counts, in an order that both sides know."""
    for name, module in model.named_modules():
        for own, tensor in module.named_parameters(recurse=False):
            mask = _mask(module, own, tensor)
            if bool(mask.any()):
                yield Part(f"{name}.{own}", tensor, mask)


def _mask(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    if name == "weight" and isinstance(module, Linear):
        group = module.groups.group_of_bit
        return group[None, :] < group[:, None]
    mask = getattr(module, "mask", None) if name == "weight" else None
    return torch.ones_like(tensor, dtype=torch.bool) if mask is None else mask > 0


@dataclass(frozen=True)
class Plan:
    """What is built. above: a row is conditioned on the row above. head: of p(x | h). hidden: units
    of a "made". units: stochastic bits.
    """

    above: bool = False
    head: HeadName = "linear"
    hidden: int = 0
    units: int = 0


Model = Darn | AutoregressiveBernoulli
"""A network over a row, or one whose context is the row above."""


def build(groups: Groups, plan: Plan) -> Model:
    """A model whose weights are 0, in float32."""
    model: Model
    if plan.above:
        model = AutoregressiveBernoulli(groups, groups.bits, "linear")
    else:
        units = (plan.units,) * (plan.units > 0)
        hidden = (plan.hidden,) * (plan.hidden > 0)
        model = Darn(groups, DarnShape(units, 0, plan.head, "linear", hidden))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def independent(x: Tensor, groups: Groups) -> Model:
    """Every variable by its own frequency."""
    model = build(groups, Plan(head="independent"))
    share = ((x.double().sum(0) + 0.5) / (len(x) + 1)).float()
    single = torch.tensor(groups.sizes)[groups.group_of_bit] == 1
    with torch.no_grad():
        for part in parts_of(model):
            part.tensor.copy_(torch.where(single, torch.logit(share), share.log()))
    return model


def widened(model: Model, plan: Plan, seed: int = 0) -> Model:
    """A model of another plan that starts as this one; what is new starts small and at random."""
    wide = build(model.groups, plan)
    known = {_common(part.name): part.tensor for part in parts_of(model)}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in parts_of(wide):
            name = _common(part.name)
            if name in known:
                part.tensor.copy_(known[name])
            elif not plan.above and part.tensor.dim() > 1 and name != "head.weight":
                part.tensor.normal_(0, 0.3, generator=generator)
    return wide


def _common(name: str) -> str:
    """What a tensor is called whichever model it is in."""
    return name.removeprefix("decoders.0.").removeprefix(".").replace("head.direct.", "head.")


def strip_length(rows: int) -> int:
    """Rows come in strips side by side, so that many can be coded at a time where each needs the
    row above; the first of a strip has none.
    """
    return -(-rows // max(1, min(MOST_STRIPS, rows // 64)))


def above_of(x: Tensor) -> Tensor:
    """The row above each, zeros for the first of each strip."""
    above = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    above[:: strip_length(len(x))] = 0
    return above


@torch.no_grad()
def bits_of_rows(model: Model, x: Tensor) -> float:
    """What all rows take under the model, in the mean."""
    if isinstance(model, Darn):
        return bound(model, x) * len(x) / math.log(2)
    parts = zip(x.split(4096), above_of(x).split(4096), strict=True)
    return -sum(float(model.log_prob(*part).double().sum()) for part in parts) / math.log(2)


def _cost(model: Model) -> Callable[[Tensor, Tensor], Tensor]:
    """(rows, the rows above) -> their mean cost in nats, to be differentiated."""
    if isinstance(model, Darn):
        step = step_of("disarm" if model.stochastic else "half", model)
        return lambda x, above: step(model, x)
    return lambda x, above: -model.log_prob(x, above).mean()


def fit(model: Model, x: Tensor, how: Fit) -> Model:
    """Train in place on rows (n, bits)."""
    with own_draws(how.seed, model):
        _fit(model, x, how)
    return model.eval()


def _fit(model: Model, x: Tensor, how: Fit) -> None:
    cost = _cost(model)
    above = above_of(x)
    began = time.perf_counter()
    order = np.random.default_rng(how.seed)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]
    batch = min(how.batch, len(x))
    model.train()
    rows = order.permutation(len(x))
    at = 0
    for number in range(1, how.steps + 1):
        done = max(number / how.steps, (time.perf_counter() - began) / how.seconds)
        if done > 1:
            break
        if at + batch > len(x):
            rows = order.permutation(len(x))
            at = 0
        chosen = torch.from_numpy(rows[at : at + batch])
        at += batch
        loss = cost(x[chosen], above[chosen])
        gradients = torch.autograd.grad(loss, [*model.parameters()], allow_unused=True)
        rate = how.rate * 0.5 * (1 + math.cos(math.pi * done)) + 1e-4
        for parameter, gradient, moment in zip(model.parameters(), gradients, moments, strict=True):
            if gradient is not None:
                _update(parameter, gradient, moment, number, rate, how.penalty / len(x))


@torch.no_grad()
def _update(
    parameter: Tensor,
    gradient: Tensor,
    moment: tuple[Tensor, Tensor],
    number: int,
    rate: float,
    penalty: float,
) -> None:
    first, second = moment
    first.lerp_(gradient, 1 - _BETAS[0])
    second.lerp_(gradient.square(), 1 - _BETAS[1])
    metric = (second / (1 - _BETAS[1] ** number)).sqrt_().add_(1e-5)
    parameter.addcdiv_(first, metric, value=-rate / (1 - _BETAS[0] ** number))
    if parameter.dim() > 1:
        # of the penalty's slope where the weight is
        threshold = rate * penalty / (_SMALL + parameter.abs()) / metric
        parameter.copy_(parameter.sign() * (parameter.abs() - threshold).clamp_(min=0))
