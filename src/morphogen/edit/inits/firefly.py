"""Splits and new units by what they would gain: `firefly(model, plan, loss) -> Firefly`, values for
`apply_` and gains.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from morphogen.edit.apply import apply_
from morphogen.edit.plan import NEW, Plan, Row, tensors_of
from morphogen.edit.preserve_state import preserve_state
from morphogen.errors import PlanError
from morphogen.tracing.widths import FLAT, Slot


@dataclass(frozen=True)
class Firefly:
    """values: the tensors that the plan's new units change, by name, as they should be after the
    resize: for `apply_(..., values=)`. gains: by width, how much each of its new units lowers the
    loss, to first order along the way there, shape (new units,), in the order of the plan's edits.
    """

    values: dict[str, Tensor]
    gains: dict[str, Tensor]


def firefly(
    model: nn.Module,
    plan: Plan,
    loss: Callable[[nn.Module], Tensor],
    generator: torch.Generator | None = None,
    *,
    steps: int = 10,
    reach: float = 0.1,
    rate: float = 0.1,
    points: int = 4,
) -> Firefly:
    """Let all new units of a plan go their best way for a few steps of descent, and say what each
    of them gains.

    A unit that is split becomes two, moved apart by e * d and -e * d, with half of the outgoing
    weights each; a grown unit gets outgoing weights e * r. Directions d, incoming weights and r are
    trained for `steps` steps (Adam at `rate`) with e = `reach`, where |d| is the norm of the unit's
    incoming weights and biases, and |r| the mean norm of outgoing weights; the rest of the network
    rests. Then the gradient by every e is averaged at `points` places between 0 and `reach`. The
    function changes, by as little as `reach` says. To select, plan more candidates than are wanted,
    and again with the best.

    loss: model -> a scalar that can be differentiated, over a batch of training examples. Neither
    the model, nor its gradients and buffers, nor the random state are touched. Raises `PlanError`
    where nothing reads new units, or a unit is split twice. Source: Wu et al. 2020 (arXiv
    2102.08574), eq. 4 and 5, and the splitting of Wu et al. 2019 (arXiv 1910.02366). Differs: one
    path for all candidates at once, so gains add up to the change of the loss; the paper walks each
    e alone. No new layers: depth is learned by `LearnedDepth`.
    """
    grown = copy.deepcopy(model)
    apply_(grown, plan, generator=generator)
    sides = list(_sides(plan, tensors_of(grown)))
    if not any(side.reads for side in sides):
        raise PlanError(f"firefly: nothing reads the new units of this plan ({plan})")
    base = _halved(tensors_of(grown), sides)
    ways = [_way(base[side.row.tensor], side, generator) for side in sides]
    size = {width: after - before for width, (before, after) in plan.sizes.items()}
    lengths = _lengths(base, sides, size)

    def at(reaches: dict[str, Tensor]) -> Tensor:
        return loss(_View(grown, _moved(base, sides, ways, lengths, reaches)))

    reaches = {width: ways[0].new_full((count,), reach) for width, count in size.items()}
    with preserve_state(grown), torch.enable_grad():
        state = torch.get_rng_state()
        _descend(ways, lambda: at(reaches), steps, rate, state)
        gains = _gains(at, reaches, reach, points, state)
    with torch.no_grad():
        values = _moved(base, sides, ways, lengths, reaches)
    # what new nodes of a DAG read was drawn on the copy, and is what the rest was searched for
    drawn = tensors_of(grown)
    flat = {row.tensor: drawn[row.tensor] for row in plan.rows if row.role == FLAT}
    return Firefly({name: value.detach() for name, value in (flat | values).items()}, gains)


def _descend(
    ways: list[Tensor], loss: Callable[[], Tensor], steps: int, rate: float, state: Tensor
) -> None:
    """Adam on the ways, in place. state: of the random numbers, the same in all steps: one batch,
    one dropout, so that it is a descent and no walk.
    """
    optimizer = torch.optim.Adam(ways, lr=rate)
    for _ in range(steps):
        torch.set_rng_state(state)
        gradients = torch.autograd.grad(loss(), ways)
        for way, gradient in zip(ways, gradients, strict=True):
            way.grad = gradient
        optimizer.step()


def _gains(
    loss: Callable[[dict[str, Tensor]], Tensor],
    reaches: dict[str, Tensor],
    reach: float,
    points: int,
    state: Tensor,
) -> dict[str, Tensor]:
    """How much each unit lowers the loss on its way from e = 0 to `reach`, by the midpoint rule."""
    gains = {width: torch.zeros_like(value) for width, value in reaches.items()}
    # gain_u = -(reach / points) sum_k dL/de_u at e = reach (k + 1/2) / points
    for point in range(points):
        torch.set_rng_state(state)
        here = {
            width: (value * (point + 0.5) / points).requires_grad_()
            for width, value in reaches.items()
        }
        gradients = torch.autograd.grad(loss(here), list(here.values()))
        for width, gradient in zip(here, gradients, strict=True):
            gains[width] -= gradient * reach / points
    return gains


@dataclass(frozen=True)
class _Side:
    """One tensor dimension of a width that changes. unit: the unit of every entry, from 0 for the
    width's first; before: how many units there were. twin: for each new unit the old one that it
    doubles, or `NEW`.
    """

    row: Row
    width: str
    unit: Tensor
    before: int
    twin: tuple[int, ...]
    reads: bool


def _sides(plan: Plan, tensors: dict[str, Tensor]) -> Iterator[_Side]:
    rows = {(row.tensor, row.dim): row for row in plan.rows}
    for width, slots in plan.covers.items():
        before, after = plan.sizes[width]
        for slot in slots:
            if slot.role not in ("out", "own", "bias") and not slot.role.startswith("in"):
                continue
            row = rows[slot.tensor, slot.dim]
            unit = _units(slot, plan, width)
            old = _units(slot, plan, width, 0)
            first = [int((unit == u).nonzero()[0]) for u in range(before, after)]
            sources = row.index[first].tolist()
            twin = tuple(NEW if source == NEW else int(old[source]) for source in sources)
            if len(set(split := [t for t in twin if t != NEW])) < len(split):
                raise PlanError(
                    f"firefly: a unit of '{width}' is split twice; split it once, then again"
                )
            yield _Side(
                row,
                width,
                unit.to(tensors[slot.tensor].device),
                before,
                twin,
                slot.role.startswith("in"),
            )


def _units(slot: Slot, plan: Plan, width: str, when: int = 1) -> Tensor:
    """The unit of `width` at every entry of a dimension, -1 where it is another width's; before
    (when=0) or after.
    """
    sizes = {
        span.width: plan.sizes[span.width][when]
        if span.width in plan.sizes
        else _resting(slot, plan)
        for span in slot.spans
    }
    return torch.tensor(slot.units(width, sizes))


def _resting(slot: Slot, plan: Plan) -> int:
    """The size of the width that shares the dimension with those that change: what they leave of
    it.
    """
    row = next(row for row in plan.rows if (row.tensor, row.dim) == (slot.tensor, slot.dim))
    moving = sum(plan.sizes[s.width][1] * s.repeat for s in slot.spans if s.width in plan.sizes)
    resting = [s for s in slot.spans if s.width not in plan.sizes]
    if len({s.width for s in resting}) > 1:
        raise PlanError(
            f"firefly: {slot} holds several widths that stay; grow this width with another start"
        )
    return (len(row.index) - moving) // sum(s.repeat for s in resting)


def _halved(tensors: dict[str, Tensor], sides: list[_Side]) -> dict[str, Tensor]:
    """The tensors of all sides; twins share their outgoing weights equally."""
    base = {side.row.tensor: tensors[side.row.tensor].detach().clone() for side in sides}
    for side in (side for side in sides if side.reads):
        tensor = base[side.row.tensor].movedim(side.row.dim, 0)
        for number, source in enumerate(side.twin):
            if source != NEW:
                new = side.unit == side.before + number
                old = side.unit == source
                tensor[new] = tensor[old] = (tensor[new] + tensor[old]) / 2
    return base


def _new(tensor: Tensor, side: _Side) -> Tensor:
    """The entries of new units, entries first."""
    return tensor.movedim(side.row.dim, 0)[side.unit >= side.before]


def _way(tensor: Tensor, side: _Side, generator: torch.Generator | None) -> Tensor:
    """Where a side's search begins: random directions; the drawn weights of grown units on the
    incoming side.
    """
    own = _new(tensor, side)
    drawn = torch.randn(own.shape, generator=generator, dtype=torch.float64).to(own)
    if not side.reads:
        grown = _mask(side, NEW, own)
        drawn = torch.where(grown, own, drawn)
    return drawn.clone().requires_grad_()


def _mask(side: _Side, kind: int, like: Tensor) -> Tensor:
    """Which entries belong to grown units (`NEW`)."""
    kinds = torch.tensor([twin == kind for twin in side.twin], device=like.device)
    return _column(kinds[_number(side)], like)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One value for each row of `like`, to be multiplied with it."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _number(side: _Side) -> Tensor:
    """The number among new units of every new entry."""
    return side.unit[side.unit >= side.before] - side.before


def _lengths(
    base: dict[str, Tensor], sides: list[_Side], size: dict[str, int]
) -> dict[tuple[str, bool], Tensor]:
    """By (width, reads): the norm that each new unit's direction has, over all its tensors of that
    side.
    """
    lengths: dict[tuple[str, bool], Tensor] = {}
    for width, count in size.items():
        for reads in (False, True):
            before = next(side.before for side in sides if side.width == width)
            squares = torch.zeros(before + count, dtype=torch.float64)
            for side in (s for s in sides if (s.width, s.reads) == (width, reads)):
                entries = base[side.row.tensor].movedim(side.row.dim, 0)
                inside = side.unit >= 0
                sums = entries[inside].double().reshape(int(inside.sum()), -1).square().sum(1).cpu()
                squares.index_add_(0, side.unit[inside].cpu(), sums)
            twin = next(side.twin for side in sides if side.width == width)
            mean = float(squares[:before].mean())
            lengths[width, reads] = torch.tensor(
                [math.sqrt(mean if t == NEW else float(squares[t])) for t in twin],
                dtype=torch.float64,
            )
    return lengths


def _moved(
    base: dict[str, Tensor],
    sides: list[_Side],
    ways: list[Tensor],
    lengths: dict[tuple[str, bool], Tensor],
    reaches: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The tensors with every new unit gone its way by its reach."""
    values = dict(base)
    for side, direction in zip(sides, _directions(sides, ways, lengths), strict=True):
        reach = reaches[side.width].to(direction)[_number(side)]
        step = direction * _column(reach, direction)
        tensor = values[side.row.tensor].movedim(side.row.dim, 0)
        if side.reads:
            tensor = _outgoing(side, tensor, step)
        else:
            tensor = _incoming(side, tensor, direction, step)
        values[side.row.tensor] = tensor.movedim(0, side.row.dim)
    return values


def _directions(
    sides: list[_Side], ways: list[Tensor], lengths: dict[tuple[str, bool], Tensor]
) -> list[Tensor]:
    """Each side's ways at the lengths that they are to have, a unit's over all its tensors."""
    squares: dict[tuple[str, bool], Tensor] = {}
    for side, way in zip(sides, ways, strict=True):
        key = side.width, side.reads
        own = way.reshape(len(way), -1).square().sum(1)
        total = squares.get(key, own.new_zeros(len(side.twin)))
        squares[key] = total.index_add(0, _number(side), own)
    directions = []
    for side, way in zip(sides, ways, strict=True):
        key = side.width, side.reads
        # d_u = l_u way_u / |way_u|
        tiny = torch.finfo(way.dtype).tiny
        norm = lengths[key].to(way) / squares[key].clamp_min(tiny).sqrt()
        directions.append(way * _column(norm[_number(side)], way))
    return directions


def _outgoing(side: _Side, tensor: Tensor, step: Tensor) -> Tensor:
    """What a grown unit gives is its way alone; twins have their halves already."""
    grown = _mask(side, NEW, step)
    new = (side.unit >= side.before).nonzero()[:, 0]
    return tensor.index_add(0, new, torch.where(grown, step, torch.zeros_like(step)))


def _incoming(side: _Side, tensor: Tensor, direction: Tensor, step: Tensor) -> Tensor:
    """A grown unit reads its direction; of twins one goes by the step, the other by its
    negative.
    """
    grown = _mask(side, NEW, step)
    number = _number(side)
    new = (side.unit >= side.before).nonzero()[:, 0]
    old = [new[:0]]
    steps = [step[:0]]
    for k, twin in enumerate(side.twin):
        if twin != NEW:
            old.append((side.unit == twin).nonzero()[:, 0])
            steps.append(step[number == k])
    tensor = tensor.index_copy(0, new, torch.where(grown, direction, tensor[new] + step))
    return tensor.index_add(0, torch.cat(old), -torch.cat(steps))


class _View(nn.Module):
    """A model that runs with other values of some tensors; its modules are there for a loss that
    changes modes, or reads.
    """

    def __init__(self, model: nn.Module, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self._values = values

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        result: Tensor = functional_call(self.model, self._values, args, kwargs)
        return result
