"""Which input features a trained network can do without: `eliminate(model, x, losses, ...)`.

Backward elimination. Those features leave whose going moves the sums of the first layer least, a
few at a time, and the others take over what they can say of them: of sixteen bins of a number three
may be left, where three say as much. Of all networks on this way the one with the least log(loss) +
penalty * log(parameters) is taken.

Source: Hassibi and Stork 1993, "Second order derivatives for network pruning: optimal brain
surgeon", eq. 5. Differs: whole features leave in the place of single weights; the Hessian is that
of the sums, each weighed by the Fisher information of the loss in it; and losses on validation rows
say how many leave.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.edit.apply import count_parameters
from morphogen.layers.feature_selection import FeatureSelection
from morphogen.policies.stopping import log_loss
from morphogen.tracing.trace import eval_mode

_ROWS = 10_000  # that say how features go together
_LOOKED_AT = 2000  # of these, that say how much each sum matters
_MOST = 1000  # features weighed against each other; of more, those with the smallest part leave
_SHARE = 40  # of so many features one leaves at a time
_RIDGE = 1e-4  # of the mean variance of a feature


@dataclass(frozen=True)
class Fewer:
    """drop: places of the features that leave. weight: (units, those left), of the first layer.
    moved: (units,), by how much the mean of each of its sums falls. rise: of the loss, before any
    further training.
    """

    drop: tuple[int, ...]
    weight: Tensor
    moved: Tensor
    rise: float


@torch.no_grad()
def eliminate(
    model: nn.Module,
    x: Tensor,
    losses: Callable[[nn.Module], Tensor],
    penalty: float,
    classification: bool,
    generator: torch.Generator,
) -> Fewer | None:
    """What should leave, None where nothing should. Nothing changes.

    model: of `models.mlp`, with a `FeatureSelection`. x: training rows (n, features).
    losses: model -> those of the validation rows. penalty: half of the parameters may cost 0.7
    times this of log loss. classification: whether outputs are logits, else numbers.
    """
    assert isinstance(model.features, FeatureSelection)
    first = _first(model)
    layer = first.layer
    rows = x[torch.randperm(len(x), generator=generator)[:_ROWS].to(x.device)]
    weight = layer.weight.clone()
    constant = first.constant.clone()
    fisher = _fisher(model, layer, rows[:_LOOKED_AT], classification, generator)
    read = model.features(rows).double()
    sums = read.mean(0) @ weight.double().T
    units, features = weight.shape
    loss_before = float(losses(model).mean())
    parameters = count_parameters(model)
    smallest = parameters - units * (features - 1)
    least = log_loss(loss_before) + penalty * math.log(parameters)
    fewer: Fewer | None = None
    try:
        for left, wanted in _path(read, weight.double(), fisher):
            moved = (sums - read[:, left].mean(0) @ wanted.T).to(weight)
            layer.weight.zero_()
            layer.weight[:, left] = wanted.to(weight)
            first.constant.copy_(constant + first.sign * moved)
            loss = float(losses(model).mean())
            cost = parameters - units * (features - len(left))
            value = log_loss(loss) + penalty * math.log(cost)
            if value < least:
                least = value
                gone = set(range(features)) - set(left.tolist())
                fewer = Fewer(tuple(sorted(gone)), wanted.to(weight), moved, loss - loss_before)
            # not even if the others left for nothing
            if not log_loss(loss) + penalty * math.log(smallest) < least:
                break
    finally:
        layer.weight.copy_(weight)
        first.constant.copy_(constant)
    return fewer


@torch.no_grad()
def take_over(model: nn.Module, fewer: Fewer) -> None:
    """Give a model whose features have left the weights that say what they said."""
    first = _first(model)
    first.layer.weight.copy_(fewer.weight)
    first.constant.add_(first.sign * fewer.moved)


@dataclass(frozen=True)
class _First:
    """The layer that reads the features, and the constant that is added to its sums (sign 1) or
    taken off them (-1).
    """

    layer: nn.Linear
    constant: Tensor
    sign: int


def _first(model: nn.Module) -> _First:
    children = dict(model.named_children())
    layer = children.get("hidden", children["output"])
    assert isinstance(layer, nn.Linear)
    if "hidden" not in children:
        return _First(layer, layer.bias.detach(), 1)
    norm = children["norm"]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    return _First(layer, norm.running_mean, -1)


def _path(rows: Tensor, weight: Tensor, fisher: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(places of the features left, the weights (units, left) with which they give the sums best),
    with ever fewer features, down to one.
    """
    rows = rows - rows.mean(0)
    part = rows.square().mean(0) * (fisher[:, None] * weight.square()).sum(0)
    left = part.argsort(descending=True)[:_MOST].sort().values
    read = rows[:, left]
    joint = read.T @ read / len(rows)
    ridge = _RIDGE * float(joint.diagonal().mean()) or 1.0
    inverse = torch.linalg.inv(joint + ridge * torch.eye(len(left)).to(joint))
    shared = (rows @ weight.T).T @ read / len(rows)
    while True:
        wanted = shared @ inverse
        if len(left) < weight.shape[1]:
            yield left, wanted
        if len(left) == 1:
            return
        gone = _next(wanted, inverse, fisher, max(1, len(left) // _SHARE))
        kept = torch.ones(len(left), dtype=torch.bool).index_fill_(0, gone.cpu(), False)
        columns = inverse[:, gone]
        inverse = inverse - columns @ torch.linalg.solve(columns[gone], columns.T)
        inverse, shared, left = inverse[kept][:, kept], shared[:, kept], left[kept]


def _next(wanted: Tensor, inverse: Tensor, fisher: Tensor, count: int) -> Tensor:
    """Places of so many features to leave, one after the other: what one said may be said by
    another alone, which then has to stay. Chosen among twice as many that look best at first.
    """
    rise = (fisher[:, None] * wanted.square()).sum(0) / inverse.diagonal()
    some = rise.argsort()[: 2 * count]
    wanted, inverse = wanted[:, some], inverse[some][:, some]
    gone: list[int] = []
    for _ in range(count):
        rise = (fisher[:, None] * wanted.square()).sum(0) / inverse.diagonal()
        rise[gone] = math.inf
        gone.append(int(rise.argmin()))
        share = inverse[gone[-1]] / inverse[gone[-1], gone[-1]]
        wanted = wanted - wanted[:, gone[-1:]] * share
        inverse = inverse - torch.outer(inverse[:, gone[-1]], share)
    return some[gone]


@torch.enable_grad()
def _fisher(
    model: nn.Module,
    layer: nn.Linear,
    x: Tensor,
    classification: bool,
    generator: torch.Generator,
) -> Tensor:
    """(units,): the mean square of the derivative of the loss by each sum of `layer`, for answers
    drawn as the network itself says them.
    """
    sums: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, given, out: sums.append(out))
    try:
        with eval_mode(model):
            out = model(x)
    finally:
        hook.remove()
    said = out.detach().cpu()
    if classification:
        drawn = torch.multinomial(said.softmax(1), 1, generator=generator)[:, 0].to(x.device)
        loss = F.cross_entropy(out, drawn, reduction="sum")
    else:
        drawn = torch.randn(said.shape, generator=generator).to(out)
        loss = (out * drawn).sum()
    return torch.autograd.grad(loss, sums[0])[0].double().square().mean(0)
