"""Linear programs around a network, solved by HiGHS: its relaxation, and with ReLUs decided one after the other the network.

A variable stands for each input and each unit whose sign is open; everything else is an affine function of these. What comes
back is a bound that was worked out anew from the solver's multipliers, so that its tolerances cannot make it wrong.

Source: the triangle relaxation, Ehlers 2017 (arXiv 1705.01320). Differs from programs in whole numbers (Tjeng et al. 2019,
arXiv 1711.07356): the unit whose relaxation costs the most at the optimum is decided next, which no general solver knows.
"""

import heapq
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from morphogen.bounds.activation import RELU
from morphogen.bounds.box import Box
from morphogen.bounds.highs import solver
from morphogen.bounds.linear import lines
from morphogen.bounds.program import Program, Step
from morphogen.bounds.rounding import unit
from morphogen.bounds.rules import MAXIMA, activation, affine, carried, rectifier, refuse

_LARGE = 5_000  # numbers in a program
_TIGHT = 1e-9  # a unit this near to its ReLU is on it, and a bound this near to a value is reached; relative to 1


@dataclass
class _Rows:
    """low <= matrix x <= high, row after row, in numpy."""

    matrix: list[np.ndarray] = field(default_factory=list)
    low: list[np.ndarray] = field(default_factory=list)
    high: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.matrix))

    def add(self, coefficients: Tensor, low: Tensor | float, high: Tensor | float) -> None:
        """coefficients: (1 + variables, rows), a constant first, which goes over to the other side."""
        constant = coefficients[0]
        self.matrix.append(coefficients[1:].T.numpy())
        self.low.append((low - constant).numpy())
        self.high.append((high - constant).numpy())


@dataclass
class _Bends:
    """By open unit: the row of y - z, which is 0 where it is on; the row of y - slope z, which is 0 where it is off; the row of
    the chord, y; and slope."""

    on: list[int] = field(default_factory=list)
    off: list[int] = field(default_factory=list)
    chord: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    slope: list[float] = field(default_factory=list)

    def among(self, rows: np.ndarray, columns: np.ndarray) -> "_Bends":
        """Those whose variable is among some columns, by their places in some rows and columns."""
        there = np.isin(self.column, columns).nonzero()[0]
        on, off, chord, column = (
            np.searchsorted(kept, np.array(own, int)[there]).tolist()
            for own, kept in ((self.on, rows), (self.off, rows), (self.chord, rows), (self.column, columns))
        )
        return _Bends(on, off, chord, column, np.array(self.slope)[there].tolist())


def least_of(
    net: Program, boxes: Mapping[str, Box], rows: Tensor, limits: Tensor, whole: bool = False, seconds: float = torch.inf,
    enough: float = torch.inf,
) -> tuple[float, Tensor | None]:  # fmt: skip
    """(a lower bound on the largest of rows . output - limits, the input (1, *shape) at the solver's optimum).

    boxes: of every value, for one example, from `linear` or `alpha`; where one ends at 0, that is a constraint of its own.
    rows: (k, *shape of the output); limits: (k,). whole: with ReLUs decided one after the other, which makes the bound exact,
    to 1e-9, for networks of (leaky) ReLUs, if there is time. enough: it may end with a bound so large, or with a point below 0.
    Infinite where no input fits the boxes.
    """
    wanted, held, lower, upper, bends = _encoded(net, boxes)
    surplus = wanted.flatten(1) @ rows.flatten(1).T
    surplus[0] -= limits
    # one more variable, the largest surplus, between what intervals say of it
    out = boxes[net.output]
    centre, reach = ((t.flatten() * part.flatten(1)).sum(1) for t, part in ((out.centre, rows), (out.radius, rows.abs())))
    lower.append((centre - reach - limits).amax()[None])
    upper.append((centre + reach - limits).amax()[None])
    cost = torch.zeros(len(surplus), dtype=net.dtype)
    cost[-1] = 1
    held.add(cost[:, None] - surplus, 0.0, torch.inf)
    until = time.perf_counter() + seconds
    relaxed = _Relaxation(cost, held, lower, upper, bends, until)
    bends = relaxed.bends
    first = relaxed.solve({}, bends)
    box = boxes[net.input]

    def point(found: _Found) -> Tensor | None:
        if found.values is None:
            return None
        x = box.centre.flatten()  # inputs that do not matter stay there
        inputs = relaxed.columns < len(x)
        x[relaxed.columns[inputs]] = torch.from_numpy(found.values[inputs])
        return x.view_as(box.lower).clamp(box.lower, box.upper)

    if not whole or first.values is None:
        return first.bound, point(first)

    def true(x: Tensor) -> float:
        return float((net(x).flatten(1) @ rows.flatten(1).T - limits).amax())

    return _searched(relaxed, bends, first, point, true, until, enough)


def _searched(
    relaxed: "_Relaxation", bends: _Bends, first: "_Found", point: Callable[["_Found"], Tensor | None],
    true: Callable[[Tensor], float], until: float, enough: float,
) -> tuple[float, Tensor | None]:  # fmt: skip
    """Best bound first: the unit whose relaxation costs the most at the optimum is decided, on and off."""
    best, where, count = torch.inf, None, 0
    waiting: list[tuple[float, int, dict[int, bool], int | None]] = []

    def look(found: _Found, decided: dict[int, bool]) -> None:
        nonlocal best, where, count
        x = point(found)
        if x is not None and (value := true(x)) < best:
            best, where = value, x
        heapq.heappush(waiting, (found.bound, count, decided, found.widest(bends, decided)))
        count += 1

    look(first, {})
    while waiting:
        bound, _, decided, unit = waiting[0]
        known = bound >= min(enough, best - _TIGHT * (1 + abs(best))) or (enough < torch.inf and best < 0)
        if known or unit is None or time.perf_counter() > until:
            return bound, where
        heapq.heappop(waiting)
        for on in (False, True):
            child = {**decided, unit: on}
            found = relaxed.solve(child, bends)
            if found.bound < torch.inf:
                # what is infeasible for the solver and for no certificate keeps its mother's bound, and is decided no further
                look(replace(found, bound=max(bound, found.bound)), child)
    return torch.inf, None


def _encoded(net: Program, boxes: Mapping[str, Box]) -> tuple[Tensor, _Rows, list[Tensor], list[Tensor], _Bends]:
    """(the output as an affine function of the variables and one more, constraints, bounds of the variables but that one,
    which of these are of ReLUs)."""
    inputs = boxes[net.input].lower[0].numel()
    total = 1 + inputs + sum(_opens(step, boxes) for step in net.steps if not affine(step))
    start = torch.zeros(1 + total, inputs, dtype=net.dtype)
    start[1 : 1 + inputs] = torch.eye(inputs, dtype=net.dtype)
    known = {net.input: start.view(1 + total, *net.shapes[net.input])}
    rows, at = _Rows(), 1 + inputs
    lower, upper = [boxes[net.input].lower.flatten()], [boxes[net.input].upper.flatten()]
    bends = _Bends()
    for step in net.steps:
        if affine(step):
            known[step.name] = carried(step, {name: known[name][None] for name in step.reads})[0]
            continue
        read, made = known[step.reads[0]], torch.zeros(1 + total, *step.shape, dtype=net.dtype)
        z, box = read.flatten(1), _first(boxes[step.reads[0]])
        h = activation(step)
        ends = (box.lower == 0) | (box.upper == 0)
        if h is RELU and bool(ends.any()):
            rows.add(z[:, ends], box.lower[ends], box.upper[ends])
        new = _open(step, boxes).nonzero()[:, 0]
        y = made.flatten(1)
        y[at + torch.arange(len(new)), new] = 1
        if (slope := rectifier(step)) is not None:
            active, off = (box.lower >= 0).nonzero()[:, 0], (box.upper <= 0).nonzero()[:, 0]
            y[:, active], y[:, off] = z[:, active], slope * z[:, off]
            low, high = box.lower[new], box.upper[new]
            places = [len(rows)]
            rows.add(y[:, new] - z[:, new], 0.0, torch.inf)
            places.append(len(rows))
            rows.add(y[:, new] - slope * z[:, new], 0.0, torch.inf)
            places.append(len(rows))
            chord = (high - slope * low) / (high - low)
            rows.add(y[:, new] - chord * z[:, new], -torch.inf, slope * low - chord * low)
            for found, place in zip((bends.on, bends.off, bends.chord), places, strict=True):
                found += range(place, place + len(new))
            bends.column += range(at - 1, at - 1 + len(new))
            bends.slope += [slope] * len(new)
            lower.append(slope * low)
            upper.append(high)
        elif h is not None:
            lined = lines(h, Box(box.lower[None], box.upper[None]))
            below, above = ((slope[0, 0], offset[0, 0]) for slope, offset in
                            ((lined.below, lined.below_at), (lined.above, lined.above_at)))  # fmt: skip
            rows.add(y - below[0] * z, below[1], torch.inf)
            rows.add(y - above[0] * z, -torch.inf, above[1])
        elif step.kind not in MAXIMA:
            raise refuse(step, "lp")
        if slope is None:
            own = boxes[step.name]
            lower.append(own.lower.flatten())
            upper.append(own.upper.flatten())
        at += _opens(step, boxes)
        known[step.name] = y.view(made.shape)
    return known[net.output], rows, lower, upper, bends


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
class _Found:
    """bound: proved. values, above (how far each row is above its least), duals: of the solver, None where it has none."""

    bound: float
    values: np.ndarray | None = None
    above: np.ndarray | None = None
    duals: np.ndarray | None = None

    def widest(self, bends: _Bends, decided: Mapping[int, bool]) -> int | None:
        """The unit whose relaxation costs the most here, None where no unit is off its ReLU."""
        if self.values is None or self.above is None or self.duals is None or not bends.on:
            return None
        y = self.values[bends.column]
        z = y - self.above[bends.on]
        gap = y - np.maximum(z, np.array(bends.slope) * z)
        gap[list(decided)] = 0.0
        if not bool((gap > _TIGHT).any()):
            return None
        cost = np.where(gap > _TIGHT, gap * np.abs(self.duals[bends.chord]), -1.0)
        return int(cost.argmax() if cost.max() > 0 else gap.argmax())


def _needed(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) on which the last column, the cost, depends. A row tells of its last variable by those before."""
    there = matrix != 0
    last = np.where(there.any(1), there.shape[1] - 1 - there[:, ::-1].argmax(1), -1)
    wanted = np.zeros(there.shape[1], bool)
    wanted[-1] = True
    for column in range(there.shape[1] - 1, -1, -1):
        if wanted[column]:
            wanted |= there[last == column].any(0)
    return ((last >= 0) & wanted[last]).nonzero()[0], wanted.nonzero()[0]


class _Relaxation:
    """The linear program, kept in HiGHS, so that what is decided changes it and each answer starts from the last."""

    def __init__(
        self, cost: Tensor, rows: _Rows, lower: list[Tensor], upper: list[Tensor], bends: _Bends, until: float
    ) -> None:  # fmt: skip
        matrix = np.concatenate(rows.matrix)
        kept, self.columns = _needed(matrix)
        self.matrix, self.bends = matrix[np.ix_(kept, self.columns)], bends.among(kept, self.columns)
        self.c, self.constant, self.until = cost[1:].numpy()[self.columns], float(cost[0]), until
        self.low, self.high = (torch.cat(ends).numpy()[self.columns] for ends in (lower, upper))
        self.row_low, self.row_high = (np.concatenate(ends)[kept] for ends in (rows.low, rows.high))
        # from nowhere the simplex method may take a hundred times as long as interior points; from nearby it is quick
        method = "ipm" if np.count_nonzero(self.matrix) > _LARGE else "simplex"
        ends = self.low, self.high, self.matrix, self.row_low, self.row_high
        self.solver, self.highs = solver(self.c, *ends, solver=method)
        self.decided: Mapping[int, bool] = {}

    def solve(self, decided: Mapping[int, bool], bends: _Bends) -> _Found:
        """With these units on (True) or off: y - z is 0, or y - slope z is."""
        row_high = self.row_high.copy()
        for place, on in decided.items():
            row = bends.on[place] if on else bends.off[place]
            row_high[row] = self.row_low[row]
        for place in {*decided, *self.decided}:
            if self.decided.get(place) is not decided.get(place):
                for row in (bends.on[place], bends.off[place]):
                    self.solver.changeRowBounds(row, self.row_low[row], row_high[row])
        self.decided = decided
        if self.until < torch.inf:
            # HiGHS counts from the model's first run
            left = max(0.0, self.until - time.perf_counter())
            self.solver.setOptionValue("time_limit", self.solver.getRunTime() + left)
        self.solver.run()
        self.solver.setOptionValue("solver", "simplex")
        if self.solver.getModelStatus() == self.highs.HighsModelStatus.kInfeasible:
            _, there, ray = self.solver.getDualRay()
            proved = there and self._proves(np.zeros_like(self.c), np.asarray(ray), row_high) > 0
            return _Found(torch.inf if proved else -torch.inf)
        solution = self.solver.getSolution()
        values, activities, duals = (np.array(part) for part in (solution.col_value, solution.row_value, solution.row_dual))
        if len(values) != len(self.c) or len(duals) != len(self.matrix):
            return _Found(-torch.inf)
        return _Found(self.constant + self._proves(self.c, duals, row_high), values, activities - self.row_low, duals)

    def _proves(self, c: np.ndarray, duals: np.ndarray, row_high: np.ndarray) -> float:
        return _dual(c, duals, self.matrix, self.row_low, row_high, self.low, self.high)


def _dual(
    c: np.ndarray, duals: np.ndarray, matrix: np.ndarray, row_low: np.ndarray, row_high: np.ndarray, low: np.ndarray,
    high: np.ndarray,
) -> float:  # fmt: skip
    """What any multipliers prove about the least c . x: weak duality, with a multiplier of the wrong sign left out."""
    duals = np.where((duals > 0) & np.isfinite(row_low), duals, np.where((duals < 0) & np.isfinite(row_high), duals, 0.0))
    ends = np.where(duals > 0, row_low, np.where(duals < 0, row_high, 0.0))
    left = c - duals @ matrix
    value = float(duals @ ends + np.where(left > 0, left * low, left * high).sum())
    # what rounding may do to these sums, see `rounding`
    sizes = np.maximum(np.abs(low), np.abs(high))
    products = np.abs(duals) @ (np.abs(ends) + np.abs(matrix) @ sizes) + np.abs(c) @ sizes
    return value - unit(torch.float64, len(c) + len(duals)) * float(products)
