"""Linear programs around a network, solved by HiGHS: its relaxation, and with ReLUs decided one
after the other the network.

A variable stands for each input and each unit whose sign is open; everything else is an affine
function of these. What comes back is a bound that was worked out anew from the solver's
multipliers, so that its tolerances cannot make it wrong; and every constraint is wider by what
rounding may have done to the affine functions in it.

Source: the triangle relaxation, Ehlers 2017 (arXiv 1705.01320). Differs from programs in whole
numbers (Tjeng et al. 2019, arXiv 1711.07356): the unit whose relaxation costs the most at the
optimum is decided next, which no general solver knows.
"""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from morphogen.activations import RELU
from morphogen.bounds.box import Box
from morphogen.bounds.highs import solver
from morphogen.bounds.jacobian import abs_jacobian, linear_step
from morphogen.bounds.relaxation import linear_relaxation
from morphogen.bounds.rounding import size, unit
from morphogen.bounds.rules import MAXIMA, activation, affine, rectifier, refuse
from morphogen.deadline import Deadline
from morphogen.tracing.program import Program, Step, run

_LARGE = 5_000  # numbers in a program
_LARGEST = 2**25  # numbers in one, with those that are 0; nobody waits for the end of a larger one
# a unit this near to its ReLU is on it, relative to its range, and a bound this near to a value is
# reached, relative to the size of what is bounded
_TIGHT = 1e-9
# the least number above 0: a bound that is enough where any above 0 proves what is asked
LEAST = math.ulp(0.0)


@dataclass
class _Rows:
    """low <= matrix x <= high, row after row, in numpy. room: how far above its least a row may be
    that is at it.
    """

    matrix: list[np.ndarray] = field(default_factory=list)
    low: list[np.ndarray] = field(default_factory=list)
    high: list[np.ndarray] = field(default_factory=list)
    room: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.matrix))

    def add(
        self, coefficients: Tensor, low: Tensor | float, high: Tensor | float, off: Tensor
    ) -> None:
        """coefficients: (1 + variables, rows), a constant first, which goes over to the other side.
        off: (rows,), by how much the function, or an end, may be off.
        """
        constant = coefficients[0]
        self.matrix.append(coefficients[1:].T.numpy())
        self.low.append((low - constant - off).numpy())
        self.high.append((high - constant + off).numpy())
        self.room.append((2 * off).numpy())


@dataclass
class _Unstable:
    """By unstable unit: the row of y - z, which is 0 where it is on; the row of y - slope z, which
    is 0 where it is off; the row of the chord, y; slope; and reach, how large y can be.
    """

    on: list[int] = field(default_factory=list)
    off: list[int] = field(default_factory=list)
    chord: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    slope: list[float] = field(default_factory=list)
    reach: list[float] = field(default_factory=list)

    def among(self, rows: np.ndarray, columns: np.ndarray) -> "_Unstable":
        """Those whose variable is among some columns, by their places in some rows and columns."""
        there = np.isin(self.column, columns).nonzero()[0]
        on, off, chord, column = (
            np.searchsorted(kept, np.array(own, int)[there]).tolist()
            for own, kept in (
                (self.on, rows),
                (self.off, rows),
                (self.chord, rows),
                (self.column, columns),
            )
        )
        slope, reach = (np.array(values)[there].tolist() for values in (self.slope, self.reach))
        return _Unstable(on, off, chord, column, slope, reach)


def lp_minimum(
    net: Program,
    boxes: Mapping[str, Box],
    rows: Tensor,
    limits: Tensor,
    exact: bool = False,
    seconds: float = torch.inf,
    stop_above: float = torch.inf,
) -> tuple[float, Tensor | None]:
    """(a lower bound on the largest of rows . output - limits, the input (1, *shape) at the
    solver's optimum).

    boxes: of every value, for one example, from `linear` or `alpha`; where one ends at 0, that is a
    constraint of its own. rows: (k, *shape of the output); limits: (k,). exact: with ReLUs decided
    one after the other, which makes the bound exact, to 1e-9 of the size of rows . output and
    limits, for networks of (leaky) ReLUs, if there is time. stop_above: it may end with a bound so
    large, or with a point below 0. Infinite where no input fits the boxes, minus infinity where the
    program is too large to be built. Raises `OutOfTime` where `net.until` passes before there is a
    program; afterwards what was found by then is returned.
    """
    variables = boxes[net.input].lower[0].numel() + sum(
        _opens(step, boxes) for step in net.forth() if not affine(step)
    )
    if variables * max(3 * variables, net.numbers) > _LARGEST:
        return -torch.inf, None
    wanted, units, far, held, lower, upper, unstable = _encoded(net, boxes)
    by_size = rows.flatten(1).abs().T
    surplus = wanted.function.flatten(1) @ rows.flatten(1).T
    off = wanted.off.flatten() @ by_size
    rounding = unit(net.dtype, len(by_size))
    off += rounding * ((far @ wanted.function.flatten(1).abs()) @ by_size + limits.abs())
    surplus[0] -= limits
    # one more variable, the largest surplus, between what intervals say of it
    out = boxes[net.output]
    centre, reach = (
        (t.flatten() * part.flatten(1)).sum(1)
        for t, part in ((out.centre, rows), (out.radius, rows.abs()))
    )
    sizes = size(out).flatten() @ by_size + limits.abs()
    lower.append((centre - reach - limits - rounding * sizes).amax()[None])
    upper.append((centre + reach - limits + rounding * sizes).amax()[None])
    cost = torch.zeros(len(surplus), dtype=net.dtype)
    cost[-1] = 1
    held.add(cost[:, None] - surplus, 0.0, torch.inf, off)
    until = net.until.within(seconds)
    relaxed = _Relaxation(cost, held, lower, upper, unstable, units[1:].numpy(), until)
    unstable = relaxed.unstable
    first = relaxed.solve({}, unstable)
    box = boxes[net.input]

    def point(found: _Solution) -> Tensor | None:
        if found.values is None:
            return None
        x = box.centre.flatten()  # inputs that do not matter stay there
        inputs = relaxed.columns < len(x)
        x[relaxed.columns[inputs]] = torch.from_numpy(found.values[inputs])
        return x.view_as(box.lower).clamp(box.lower, box.upper)

    if not exact or first.values is None:
        return first.bound, point(first)

    def true(x: Tensor) -> float:
        return float((net(x).flatten(1) @ rows.flatten(1).T - limits).amax())

    return _searched(
        relaxed, unstable, first, point, true, until, stop_above, _TIGHT * float(sizes.amax())
    )


def _searched(
    relaxed: "_Relaxation",
    unstable: _Unstable,
    first: "_Solution",
    point: Callable[["_Solution"], Tensor | None],
    true: Callable[[Tensor], float],
    until: Deadline,
    stop_above: float,
    tight: float,
) -> tuple[float, Tensor | None]:
    """Best bound first: the unit whose relaxation costs the most at the optimum is decided, on and
    off.
    """
    best = torch.inf
    where = None
    count = 0
    waiting: list[tuple[float, int, dict[int, bool], int | None]] = []

    def look(found: _Solution, decided: dict[int, bool]) -> None:
        nonlocal best, where, count
        x = point(found)
        if x is not None and (value := true(x)) < best:
            best = value
            where = x
        heapq.heappush(waiting, (found.bound, count, decided, found.widest(unstable, decided)))
        count += 1

    look(first, {})
    while waiting:
        bound, _, decided, unit = waiting[0]
        known = bound >= min(stop_above, best - tight) or (stop_above < torch.inf and best < 0)
        if known or unit is None or until.left() <= 0:
            return bound, where
        heapq.heappop(waiting)
        for on in (False, True):
            child = {**decided, unit: on}
            found = relaxed.solve(child, unstable)
            if found.bound < torch.inf:
                # what is infeasible for the solver and for no certificate keeps its mother's bound,
                # and is decided no further
                look(replace(found, bound=max(bound, found.bound)), child)
    return torch.inf, None


@dataclass(frozen=True)
class _Known:
    """A value as an affine function of the variables, (1 + variables, *shape), a constant first,
    and by how much that may be off, (*shape).
    """

    function: Tensor
    off: Tensor


def _encoded(
    net: Program, boxes: Mapping[str, Box]
) -> tuple[_Known, Tensor, Tensor, _Rows, list[Tensor], list[Tensor], _Unstable]:
    """(the output, with one more variable; the unit of each variable, a 1 first; its largest size
    in that; constraints; bounds of the variables but the last; which of these are of ReLUs).

    Variables are counted in units of about their largest size, powers of two: beside what is added
    in a layer, coefficients of large variables would be lost.
    """
    inputs = boxes[net.input].lower[0].numel()
    total = 1 + inputs + sum(_opens(step, boxes) for step in net.forth() if not affine(step))
    first = _power(size(boxes[net.input])).flatten()
    start = torch.zeros(1 + total, inputs, dtype=net.dtype)
    start[1 : 1 + inputs] = torch.diag(first)
    shape = net.shapes[net.input]
    known = {net.input: _Known(start.view(1 + total, *shape), torch.zeros(shape, dtype=net.dtype))}
    units = torch.ones(1 + total, dtype=net.dtype)
    far = torch.zeros(1 + total, dtype=net.dtype)
    units[1 : 1 + inputs] = first
    far[0], far[1 : 1 + inputs] = 1.0, size(boxes[net.input]).flatten() / first
    rows = _Rows()
    at = 1 + inputs
    few = unit(net.dtype, 0)
    lower = [boxes[net.input].lower.flatten() / first]
    upper = [boxes[net.input].upper.flatten() / first]
    unstable = _Unstable()
    for step in net.forth():
        if affine(step):
            known[step.name] = _carried(step, known, far)
            continue
        read = known[step.reads[0]]
        z = read.function.flatten(1)
        z_off = read.off.flatten()
        y, y_off = (
            torch.zeros(*part.shape[:-1], math.prod(step.shape), dtype=net.dtype)
            for part in (z, z_off)
        )
        box = _first(boxes[step.reads[0]])
        z_off = z_off + few * (far @ z.abs())  # of a row with z in it
        h = activation(step)
        ends = (box.lower == 0) | (box.upper == 0)
        if h is RELU and bool(ends.any()):
            rows.add(
                z[:, ends], box.lower[ends], box.upper[ends], z_off[ends] + few * size(box)[ends]
            )
        new = _open(step, boxes).nonzero()[:, 0]
        own = _first(boxes[step.name])
        unit_ = _power(size(own))[new]
        y[at + torch.arange(len(new)), new] = unit_
        if (slope := rectifier(step)) is not None:
            active = (box.lower >= 0).nonzero()[:, 0]
            off = (box.upper <= 0).nonzero()[:, 0]
            y[:, active], y[:, off] = z[:, active], slope * z[:, off]
            y_off[active], y_off[off] = z_off[active], slope * z_off[off]
            low = box.lower[new]
            high = box.upper[new]
            room = z_off[new] + few * (high - low)
            places = [len(rows)]
            rows.add(y[:, new] - z[:, new], 0.0, torch.inf, room)
            places.append(len(rows))
            rows.add(y[:, new] - slope * z[:, new], 0.0, torch.inf, room)
            places.append(len(rows))
            chord = (high - slope * low) / (high - low)
            rows.add(y[:, new] - chord * z[:, new], -torch.inf, slope * low - chord * low, room)
            for found, place in zip(
                (unstable.on, unstable.off, unstable.chord), places, strict=True
            ):
                found += range(place, place + len(new))
            unstable.column += range(at - 1, at - 1 + len(new))
            unstable.slope += [slope] * len(new)
            unstable.reach += torch.maximum(high, -slope * low).tolist()
            lower.append(slope * low / unit_)
            upper.append(high / unit_)
        elif h is not None:
            lined = linear_relaxation(h, Box(box.lower[None], box.upper[None]))
            below, above = (
                (slope[0, 0], offset[0, 0])
                for slope, offset in (
                    (lined.lower_slope, lined.lower_bias),
                    (lined.upper_slope, lined.upper_bias),
                )
            )
            for (steep, offset), (least, most) in (
                (below, (below[1], torch.inf)),
                (above, (-torch.inf, above[1])),
            ):
                room = steep.abs() * z_off + few * (
                    steep.abs() * size(box) + size(own) + offset.abs()
                )
                rows.add(y - steep * z, least, most, room)
        elif step.kind not in MAXIMA:
            raise refuse(step, "lp")
        if slope is None:
            lower.append(own.lower / unit_)
            upper.append(own.upper / unit_)
        units[at : at + len(new)] = unit_
        far[at : at + len(new)] = torch.maximum(lower[-1].abs(), upper[-1].abs())
        at += len(new)
        known[step.name] = _Known(y.view(-1, *step.shape), y_off.view(step.shape))
    return known[net.output], units, far, rows, lower, upper, unstable


def _carried(step: Step, known: Mapping[str, _Known], far: Tensor) -> _Known:
    """Through an affine step, with what its sums may be off, see `rounding`. far: of each variable,
    a 1 first.
    """
    function = linear_step(step, {name: known[name].function[None] for name in step.reads})[0]
    added: Tensor = run(
        step, {name: torch.zeros_like(known[name].off)[None] for name in step.reads}
    )
    sizes = {name: torch.tensordot(far, known[name].function.abs(), 1)[None] for name in step.reads}
    off = abs_jacobian(step, {name: known[name].off[None] for name in step.reads})
    terms = sum(known[name].off.numel() for name in step.reads)
    # what is added is added to every coefficient, and taken away again
    off = off + unit(function.dtype, terms) * (
        abs_jacobian(step, sizes) + (1 + far.sum()) * added.abs()
    )
    return _Known(function, off[0])


def _power(sizes: Tensor) -> Tensor:
    """A power of two near each size, 1 for 0: whatever is counted in it is not rounded."""
    return torch.where(sizes > 0, torch.exp2(torch.log2(sizes).ceil().clamp(-1000, 1000)), 1.0)


def _first(box: Box) -> Box:
    """Of one example, flat."""
    return Box(box.lower[0].flatten(), box.upper[0].flatten())


def _open(step: Step, boxes: Mapping[str, Box]) -> Tensor:
    """Which of the step's entries have a variable, flat."""
    if rectifier(step) is not None:
        box = boxes[step.reads[0]]
        return ((box.lower < 0) & (box.upper > 0)).flatten()
    return torch.ones(int(torch.Size(step.shape).numel()), dtype=torch.bool)


def _opens(step: Step, boxes: Mapping[str, Box]) -> int:
    """How many variables the step brings."""
    return int(_open(step, boxes).sum())


@dataclass(frozen=True)
class _Solution:
    """bound: proved. values, above (how far each row is above its least), duals: of the solver,
    None where it has none.
    """

    bound: float
    values: np.ndarray | None = None
    above: np.ndarray | None = None
    duals: np.ndarray | None = None

    def widest(self, unstable: _Unstable, decided: Mapping[int, bool]) -> int | None:
        """The unit whose relaxation costs the most here, None where no unit is off its ReLU."""
        if self.values is None or self.above is None or self.duals is None or not unstable.on:
            return None
        y = self.values[unstable.column]
        z = y - self.above[unstable.on]
        gap = y - np.maximum(z, np.array(unstable.slope) * z)
        gap[list(decided)] = 0.0
        far = gap > _TIGHT * np.array(unstable.reach)
        if not bool(far.any()):
            return None
        cost = np.where(far, gap * np.abs(self.duals[unstable.chord]), -1.0)
        return int(cost.argmax() if cost.max() > 0 else gap.argmax())


def _needed(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) on which the last column, the cost, depends. A row tells of its last variable
    by those before.
    """
    there = matrix != 0
    last = np.where(there.any(1), there.shape[1] - 1 - there[:, ::-1].argmax(1), -1)
    wanted = np.zeros(there.shape[1], bool)
    wanted[-1] = True
    for column in range(there.shape[1] - 1, -1, -1):
        if wanted[column]:
            wanted |= there[last == column].any(0)
    return ((last >= 0) & wanted[last]).nonzero()[0], wanted.nonzero()[0]


class _Relaxation:
    """The linear program, kept in HiGHS, so that what is decided changes it and each answer starts
    from the last.

    HiGHS has tolerances that do not know how large the numbers of a network are: it is given
    variables and rows of size 1.
    """

    def __init__(
        self,
        cost: Tensor,
        rows: _Rows,
        lower: list[Tensor],
        upper: list[Tensor],
        unstable: _Unstable,
        units: np.ndarray,
        until: Deadline,
    ) -> None:
        began = until.now()
        matrix = np.concatenate(rows.matrix)
        until.check()
        kept, self.columns = _needed(matrix)
        until.check()
        self.matrix = matrix[np.ix_(kept, self.columns)]
        self.unstable = unstable.among(kept, self.columns)
        self.c = cost[1:].numpy()[self.columns]
        self.constant = float(cost[0])
        self.until = until
        self.low, self.high = (torch.cat(ends).numpy()[self.columns] for ends in (lower, upper))
        self.row_low, self.row_high, self.room = (
            np.concatenate(ends)[kept] for ends in (rows.low, rows.high, rows.room)
        )
        # of the variables, in which all that is here is counted but what is found
        self.units = units[self.columns]
        self.unit = _or_one(np.maximum(np.abs(self.low), np.abs(self.high)))
        scaled = self.matrix * self.unit
        self.row_unit = _or_one(np.abs(scaled).max(1, initial=0.0))
        self.price = float(_or_one(np.abs(self.c * self.unit).max(initial=0.0)))
        scaled /= self.row_unit[:, None]
        until.check()
        # from nowhere the simplex method may take a hundred times as long as interior points; from
        # nearby it is quick
        method = "ipm" if np.count_nonzero(self.matrix) > _LARGE else "simplex"
        ends = (
            self.low / self.unit,
            self.high / self.unit,
            scaled,
            self.row_low / self.row_unit,
            self.row_high / self.row_unit,
        )
        self.solver, self.highs = solver(
            self.c * self.unit / self.price, *ends, until, solver=method
        )
        # what one step of HiGHS may take, in which it does not look at its clock
        self.step = until.now() - began
        self.decided: Mapping[int, bool] = {}

    def solve(self, decided: Mapping[int, bool], unstable: _Unstable) -> _Solution:
        """With these units on (True) or off: y - z is 0, or y - slope z is."""
        row_high = self.row_high.copy()
        for place, on in decided.items():
            row = unstable.on[place] if on else unstable.off[place]
            row_high[row] = self.row_low[row] + self.room[row]
        for place in {*decided, *self.decided}:
            if self.decided.get(place) is not decided.get(place):
                for row in (unstable.on[place], unstable.off[place]):
                    self.solver.changeRowBounds(
                        row,
                        self.row_low[row] / self.row_unit[row],
                        row_high[row] / self.row_unit[row],
                    )
        self.decided = decided
        if (left := self.until.left() - self.step) <= 0:
            return _Solution(-torch.inf)
        if left < torch.inf:
            # HiGHS counts from the model's first run
            self.solver.setOptionValue("time_limit", self.solver.getRunTime() + left)
        self.solver.run()
        self.solver.setOptionValue("solver", "simplex")
        if self.solver.getModelStatus() == self.highs.HighsModelStatus.kInfeasible:
            _, there, ray = self.solver.getDualRay()
            proved = (
                there
                and self._proves(np.zeros_like(self.c), np.asarray(ray) / self.row_unit, row_high)
                > 0
            )
            return _Solution(torch.inf if proved else -torch.inf)
        solution = self.solver.getSolution()
        values, activities, duals = (
            np.array(part) for part in (solution.col_value, solution.row_value, solution.row_dual)
        )
        if len(values) != len(self.c) or len(duals) != len(self.matrix):
            return _Solution(-torch.inf)
        duals = duals * self.price / self.row_unit
        above = activities * self.row_unit - self.row_low
        return _Solution(
            self.constant + self._proves(self.c, duals, row_high),
            values * self.unit * self.units,
            above,
            duals,
        )

    def _proves(self, c: np.ndarray, duals: np.ndarray, row_high: np.ndarray) -> float:
        return _dual(c, duals, self.matrix, self.row_low, row_high, self.low, self.high)


def _or_one(sizes: np.ndarray) -> np.ndarray:
    return np.where(sizes > 0, sizes, 1.0)


def _dual(
    c: np.ndarray,
    duals: np.ndarray,
    matrix: np.ndarray,
    row_low: np.ndarray,
    row_high: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> float:
    """What any multipliers prove about the least c . x: weak duality, with a multiplier of the
    wrong sign left out.
    """
    duals = np.where(
        (duals > 0) & np.isfinite(row_low),
        duals,
        np.where((duals < 0) & np.isfinite(row_high), duals, 0.0),
    )
    ends = np.where(duals > 0, row_low, np.where(duals < 0, row_high, 0.0))
    left = c - duals @ matrix
    value = float(duals @ ends + np.where(left > 0, left * low, left * high).sum())
    # what rounding may do to these sums, see `rounding`
    sizes = np.maximum(np.abs(low), np.abs(high))
    products = np.abs(duals) @ (np.abs(ends) + np.abs(matrix) @ sizes) + np.abs(c) @ sizes
    return value - unit(torch.float64, len(c) + len(duals)) * float(products)
