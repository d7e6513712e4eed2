"""Linear programs around a network, solved by HiGHS: its relaxation, and with ReLUs decided one
after the other the network.

What comes back is a bound that was worked out anew from the solver's multipliers, so that its
tolerances cannot make it wrong.

Source: the triangle relaxation, Ehlers 2017 (arXiv 1705.01320). Differs from programs in whole
numbers (Tjeng et al. 2019, arXiv 1711.07356): the unit whose relaxation costs the most at the
optimum is decided next, which no general solver knows.
"""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from morphogen.bounds.box import Boxes
from morphogen.bounds.highs import solver
from morphogen.bounds.lp_encoding import Encoding, Unstable, encoded, variables
from morphogen.bounds.rounding import size, unit
from morphogen.deadline import Deadline
from morphogen.tracing.program import Program

_LARGE = 5_000  # numbers in a program
_LARGEST = 2**25  # numbers in one, with those that are 0; nobody waits for the end of a larger one
# a unit this near to its ReLU is on it, relative to its range, and a bound this near to a value is
# reached, relative to the size of what is bounded
_TIGHT = 1e-9
# the least number above 0: a bound that is enough where any above 0 proves what is asked
LEAST = math.ulp(0.0)


def lp_minimum(
    net: Program,
    boxes: Boxes,
    rows: Tensor,
    limits: Tensor,
    exact: bool = False,
    seconds: float = torch.inf,
    stop_above: float = torch.inf,
) -> tuple[float, Tensor | None]:
    """(a lower bound on the largest of rows . output - limits, the input (1, *shape) at the
    solver's optimum).

    boxes: of every value, for one example, from `crown` or `alpha_crown`; where one ends at 0, that
    is a constraint of its own. rows: (k, *shape of the output); limits: (k,). exact: with ReLUs
    decided one after the other, which makes the bound exact, to 1e-9 of the size of rows . output
    and limits, for networks of (leaky) ReLUs, if there is time. stop_above: it may end with a bound
    so large, or with a point below 0. Infinite where no input fits the boxes, minus infinity where
    the program is too large to be built. Raises `OutOfTime` where `net.until` passes before there
    is a program; afterwards what was found by then is returned.
    """
    count = variables(net, boxes)
    if count * max(3 * count, net.numbers) > _LARGEST:
        return -torch.inf, None
    encoding = encoded(net, boxes, spare=1)
    reach = _largest_surplus(net, encoding, rows, limits)
    relaxed = _Relaxation(encoding, net.until.within(seconds))
    first = relaxed.solve({})
    box = boxes[net.input].box

    def point(solution: _Solution) -> Tensor | None:
        if solution.values is None:
            return None
        x = box.centre.flatten()  # inputs that do not matter stay there
        inputs = relaxed.columns < len(x)
        x[relaxed.columns[inputs]] = torch.from_numpy(solution.values[inputs])
        return x.view_as(box.lower).clamp(box.lower, box.upper)

    def surplus(x: Tensor) -> float:
        return float((net(x).flatten(1) @ rows.flatten(1).T - limits).amax())

    if not exact or first.values is None:
        return first.bound, point(first)
    return _searched(relaxed, first, point, surplus, stop_above, _TIGHT * reach)


def _largest_surplus(net: Program, encoding: Encoding, rows: Tensor, limits: Tensor) -> float:
    """One more variable t, the largest surplus, with t >= rows . output - limits: the size of what
    is bounded.
    """
    output = encoding.forms[net.output]
    out = encoding.boxes[net.output].box
    by_size = rows.flatten(1).abs().T
    function = output.function.flatten(1)
    surplus = function @ rows.flatten(1).T
    surplus[0] -= limits
    rounding = unit(net.dtype, len(by_size))
    off = output.off.flatten() @ by_size
    off += rounding * ((encoding.far @ function.abs()) @ by_size + limits.abs())
    # t lies between what intervals say of it
    centre = (out.centre.flatten() * rows.flatten(1)).sum(1)
    reach = (out.radius.flatten() * rows.abs().flatten(1)).sum(1)
    sizes = size(out).flatten() @ by_size + limits.abs()
    lower = (centre - reach - limits - rounding * sizes).amax()[None]
    upper = (centre + reach - limits + rounding * sizes).amax()[None]
    column = encoding.open(lower, upper, torch.ones_like(lower))
    t = torch.zeros(len(surplus), 1, dtype=net.dtype)
    t[column] = 1
    encoding.rows.add(t - surplus, 0.0, torch.inf, off)
    return float(sizes.amax())


def _searched(
    relaxed: "_Relaxation",
    first: "_Solution",
    point: Callable[["_Solution"], Tensor | None],
    surplus: Callable[[Tensor], float],
    stop_above: float,
    tight: float,
) -> tuple[float, Tensor | None]:
    """Best bound first: the unit whose relaxation costs the most at the optimum is decided, on and
    off.
    """
    best = torch.inf
    witness = None
    count = 0
    waiting: list[tuple[float, int, dict[int, bool], int | None]] = []

    def put(solution: _Solution, decided: dict[int, bool]) -> None:
        nonlocal best, witness, count
        x = point(solution)
        if x is not None and (value := surplus(x)) < best:
            best = value
            witness = x
        unit = relaxed.widest(solution, decided)
        heapq.heappush(waiting, (solution.bound, count, decided, unit))
        count += 1

    put(first, {})
    while waiting:
        bound, _, decided, unit = waiting[0]
        known = bound >= min(stop_above, best - tight) or (stop_above < torch.inf and best < 0)
        if known or unit is None or relaxed.until.left() <= 0:
            return bound, witness
        heapq.heappop(waiting)
        for on in (False, True):
            child = {**decided, unit: on}
            solution = relaxed.solve(child)
            if solution.bound < torch.inf:
                # what is infeasible for the solver and for no certificate keeps its mother's bound,
                # and is decided no further
                put(replace(solution, bound=max(bound, solution.bound)), child)
    return torch.inf, None


@dataclass(frozen=True)
class _Solution:
    """bound: proved. values, above (how far each row is above its least), duals: of the solver,
    None where it has none.
    """

    bound: float
    values: np.ndarray | None = None
    above: np.ndarray | None = None
    duals: np.ndarray | None = None


@dataclass(frozen=True)
class _LinearProgram:
    """The least c . x for low <= x <= high and row_low <= matrix x <= row_high, x in the units of
    an `Encoding`.
    """

    c: np.ndarray
    low: np.ndarray
    high: np.ndarray
    matrix: np.ndarray
    row_low: np.ndarray
    row_high: np.ndarray

    def proved(self, c: np.ndarray, duals: np.ndarray, row_high: np.ndarray) -> float:
        """What any multipliers d prove about the least c . x, by weak duality:

        c . x = d . A x + (c - A^T d) . x >= d+ . row_low + d- . row_high + min (c - A^T d) . x,

        with a multiplier of the wrong sign left out.
        """
        rising = (duals > 0) & np.isfinite(self.row_low)
        falling = (duals < 0) & np.isfinite(row_high)
        duals = np.where(rising | falling, duals, 0.0)
        ends = np.where(duals > 0, self.row_low, np.where(duals < 0, row_high, 0.0))
        left = c - duals @ self.matrix
        value = float(duals @ ends + np.where(left > 0, left * self.low, left * self.high).sum())
        # what rounding may do to these sums, see `rounding`
        sizes = np.maximum(np.abs(self.low), np.abs(self.high))
        products = np.abs(duals) @ (np.abs(ends) + np.abs(self.matrix) @ sizes) + np.abs(c) @ sizes
        return value - unit(torch.float64, len(c) + len(duals)) * float(products)


class _Relaxation:
    """The linear program, kept in HiGHS, so that what is decided changes it and each answer starts
    from the last. What is bounded is the last variable.

    HiGHS has tolerances that do not know how large the numbers of a network are: it is given
    variables and rows of size 1.
    """

    def __init__(self, encoding: Encoding, until: Deadline) -> None:
        began = until.now()
        self.until = until
        self._reduce(encoding)
        until.check()
        self._hand_over()
        # what one step of HiGHS may take, in which it does not look at its clock
        self.step = until.now() - began
        self.decided: Mapping[int, bool] = {}

    def _reduce(self, encoding: Encoding) -> None:
        """The rows and variables that what is bounded depends on."""
        rows = encoding.rows
        matrix = np.concatenate(rows.matrix)
        self.until.check()
        kept, self.columns = _needed(matrix)
        self.until.check()
        c = np.zeros(matrix.shape[1])
        c[-1] = 1.0
        self.program = _LinearProgram(
            c[self.columns],
            torch.cat(encoding.lower).numpy()[self.columns],
            torch.cat(encoding.upper).numpy()[self.columns],
            matrix[np.ix_(kept, self.columns)],
            np.concatenate(rows.low)[kept],
            np.concatenate(rows.high)[kept],
        )
        self.room = np.concatenate(rows.room)[kept]
        self.unstable: Unstable = encoding.unstable.among(kept, self.columns)
        # of the variables, in which all that is here is counted but what is found
        self.units = encoding.units[1:].numpy()[self.columns]

    def _hand_over(self) -> None:
        """To HiGHS, with x = unit x', rows divided by `row_unit`, the cost by `price`."""
        program = self.program
        self.unit = _or_one(np.maximum(np.abs(program.low), np.abs(program.high)))
        scaled = program.matrix * self.unit
        self.row_unit = _or_one(np.abs(scaled).max(1, initial=0.0))
        self.price = float(_or_one(np.abs(program.c * self.unit).max(initial=0.0)))
        scaled /= self.row_unit[:, None]
        self.until.check()
        # from nowhere the simplex method may take a hundred times as long as interior points; from
        # nearby it is quick
        method = "ipm" if np.count_nonzero(program.matrix) > _LARGE else "simplex"
        self.solver, self.highs = solver(
            program.c * self.unit / self.price,
            program.low / self.unit,
            program.high / self.unit,
            scaled,
            program.row_low / self.row_unit,
            program.row_high / self.row_unit,
            self.until,
            solver=method,
        )

    def solve(self, decided: Mapping[int, bool]) -> _Solution:
        """With these units on (True) or off: y - z is 0, or y - slope z is."""
        row_high = self._decide(decided)
        left = self.until.left() - self.step
        if left <= 0:
            return _Solution(-torch.inf)
        if left < torch.inf:
            # HiGHS counts from the model's first run
            self.solver.setOptionValue("time_limit", self.solver.getRunTime() + left)
        self.solver.run()
        self.solver.setOptionValue("solver", "simplex")
        if self.solver.getModelStatus() == self.highs.HighsModelStatus.kInfeasible:
            return _Solution(torch.inf if self._infeasible(row_high) else -torch.inf)
        return self._solution(row_high)

    def _decide(self, decided: Mapping[int, bool]) -> np.ndarray:
        """The upper ends of rows where these units are on or off, which HiGHS is told too."""
        program = self.program
        on = self.unstable.on
        off = self.unstable.off
        row_high = program.row_high.copy()
        for place, active in decided.items():
            row = on[place] if active else off[place]
            row_high[row] = program.row_low[row] + self.room[row]
        for place in {*decided, *self.decided}:
            if self.decided.get(place) is decided.get(place):
                continue
            for row in (on[place], off[place]):
                scale = self.row_unit[row]
                self.solver.changeRowBounds(
                    row, program.row_low[row] / scale, row_high[row] / scale
                )
        self.decided = decided
        return row_high

    def _infeasible(self, row_high: np.ndarray) -> bool:
        """Whether the solver's ray proves that there is no x: the least 0 . x is above 0."""
        _, there, ray = self.solver.getDualRay()
        if not there:
            return False
        duals = np.asarray(ray) / self.row_unit
        return self.program.proved(np.zeros_like(self.program.c), duals, row_high) > 0

    def _solution(self, row_high: np.ndarray) -> _Solution:
        solution = self.solver.getSolution()
        values = np.array(solution.col_value)
        duals = np.array(solution.row_dual)
        if len(values) != len(self.program.c) or len(duals) != len(self.program.matrix):
            return _Solution(-torch.inf)
        duals = duals * self.price / self.row_unit
        above = np.array(solution.row_value) * self.row_unit - self.program.row_low
        bound = self.program.proved(self.program.c, duals, row_high)
        return _Solution(bound, values * self.unit * self.units, above, duals)

    def widest(self, solution: _Solution, decided: Mapping[int, bool]) -> int | None:
        """The unit whose relaxation costs the most here, None where no unit is off its ReLU."""
        unstable = self.unstable
        if solution.values is None or solution.above is None or solution.duals is None:
            return None
        if not unstable.on:
            return None
        # y - max(z, slope z)
        y = solution.values[unstable.column]
        z = y - solution.above[unstable.on]
        gap = y - np.maximum(z, np.array(unstable.slope) * z)
        gap[list(decided)] = 0.0
        far = gap > _TIGHT * np.array(unstable.reach)
        if not bool(far.any()):
            return None
        cost = np.where(far, gap * np.abs(solution.duals[unstable.chord]), -1.0)
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


def _or_one(sizes: np.ndarray) -> np.ndarray:
    return np.where(sizes > 0, sizes, 1.0)
