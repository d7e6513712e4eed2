"""Linear programs around a network, solved by HiGHS: its relaxation, and with whole numbers the network itself.

A variable stands for each input and each unit whose sign is open; everything else is an affine function of these. What comes
back is a bound that was worked out anew from the solver's multipliers, so that its tolerances cannot make it wrong, except that
the search over whole numbers is trusted to its tolerance.

Source: the triangle relaxation, Ehlers 2017 (arXiv 1705.01320); with whole numbers, Tjeng et al. 2019 (arXiv 1711.07356).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.bounds.activation import RELU
from morphogen.bounds.box import Box
from morphogen.bounds.linear import lines
from morphogen.bounds.program import Program, Step
from morphogen.bounds.rounding import unit
from morphogen.bounds.rules import MAXIMA, activation, affine, carried, refuse

_TRUST = 1e-6  # by which a bound of the search over whole numbers may be off, relative to 1 and to its size


@dataclass
class _Rows:
    """low <= matrix x <= high, row after row, in numpy."""

    matrix: list[np.ndarray] = field(default_factory=list)
    low: list[np.ndarray] = field(default_factory=list)
    high: list[np.ndarray] = field(default_factory=list)

    def add(self, coefficients: Tensor, low: Tensor | float, high: Tensor | float) -> None:
        """coefficients: (1 + variables, rows), a constant first, which goes over to the other side."""
        constant = coefficients[0]
        self.matrix.append(coefficients[1:].T.numpy())
        self.low.append((low - constant).numpy())
        self.high.append((high - constant).numpy())


def least_of(
    net: Program, boxes: Mapping[str, Box], rows: Tensor, limits: Tensor, whole: bool = False, seconds: float = torch.inf
) -> tuple[float, Tensor | None]:
    """(a lower bound on the largest of rows . output - limits, the input (1, *shape) at the solver's optimum).

    boxes: of every value, for one example, from `linear` or `alpha`; where one ends at 0, that is a constraint of its own.
    rows: (k, *shape of the output); limits: (k,). whole: with whole numbers, which makes the bound exact for piecewise linear
    networks, if there is time. Infinite where no input fits the boxes.
    """
    wanted, held, lower, upper, binary = _encoded(net, boxes, whole)
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
    return _solved(cost, held, lower, upper, [*binary, False], boxes[net.input], seconds)


def _encoded(
    net: Program, boxes: Mapping[str, Box], whole: bool
) -> tuple[Tensor, _Rows, list[Tensor], list[Tensor], list[bool]]:
    """(the output as an affine function of the variables and one more, constraints, bounds of the variables but that one,
    which are whole)."""
    inputs = boxes[net.input].lower[0].numel()
    total = 1 + inputs + sum(_opens(step, boxes, whole) for step in net.steps if not affine(step))
    start = torch.zeros(1 + total, inputs, dtype=net.dtype)
    start[1 : 1 + inputs] = torch.eye(inputs, dtype=net.dtype)
    known = {net.input: start.view(1 + total, *net.shapes[net.input])}
    rows, at = _Rows(), 1 + inputs
    lower, upper = [boxes[net.input].lower.flatten()], [boxes[net.input].upper.flatten()]
    binary = [False] * inputs
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
        if h is RELU:
            active = (box.lower >= 0).nonzero()[:, 0]
            y[:, active] = z[:, active]
            low, high = box.lower[new], box.upper[new]
            rows.add(y[:, new] - z[:, new], 0.0, torch.inf)
            if whole:
                switch = torch.zeros(1 + total, len(new), dtype=net.dtype)
                switch[at + len(new) + torch.arange(len(new)), torch.arange(len(new))] = 1
                rows.add(y[:, new] - z[:, new] - low * switch, -torch.inf, -low)
                rows.add(y[:, new] - high * switch, -torch.inf, 0.0)
            else:
                chord = high / (high - low)
                rows.add(y[:, new] - chord * z[:, new], -torch.inf, -chord * low)
            lower.append(torch.zeros_like(high))
            upper.append(high)
            binary += [False] * len(new)
            if whole:
                lower.append(torch.zeros_like(high))
                upper.append(torch.ones_like(high))
                binary += [True] * len(new)
        elif h is not None:
            found = lines(h, Box(box.lower[None], box.upper[None]))
            below, above = ((slope[0, 0], offset[0, 0]) for slope, offset in
                            ((found.below, found.below_at), (found.above, found.above_at)))  # fmt: skip
            rows.add(y - below[0] * z, below[1], torch.inf)
            rows.add(y - above[0] * z, -torch.inf, above[1])
        elif step.kind not in MAXIMA:
            raise refuse(step, "lp")
        if h is not RELU:
            own = boxes[step.name]
            lower.append(own.lower.flatten())
            upper.append(own.upper.flatten())
            binary += [False] * len(new)
        at += _opens(step, boxes, whole)
        known[step.name] = y.view(made.shape)
    return known[net.output], rows, lower, upper, binary


def _first(box: Box) -> Box:
    """Of one example, flat."""
    return Box(box.lower[0].flatten(), box.upper[0].flatten())


def _open(step: Step, boxes: Mapping[str, Box]) -> Tensor:
    """Which of the step's entries have a variable, flat."""
    if activation(step) is RELU:
        box = boxes[step.reads[0]]
        return ((box.lower < 0) & (box.upper > 0)).flatten()
    return torch.ones(int(torch.Size(step.shape).numel()), dtype=torch.bool)


def _opens(step: Step, boxes: Mapping[str, Box], whole: bool) -> int:
    """How many variables the step brings."""
    return int(_open(step, boxes).sum()) * (2 if whole and activation(step) is RELU else 1)


def _solved(
    cost: Tensor, rows: _Rows, lower: list[Tensor], upper: list[Tensor], binary: list[bool], box: Box, seconds: float
) -> tuple[float, Tensor | None]:  # fmt: skip
    highs: Any = import_module("highspy")  # slow to load, and needed here alone
    c, constant = cost[1:].numpy(), float(cost[0])
    low, high = torch.cat(lower).numpy(), torch.cat(upper).numpy()
    matrix = np.concatenate(rows.matrix) if rows.matrix else np.zeros((0, len(c)))
    row_low, row_high = (np.concatenate(ends) if ends else np.zeros(0) for ends in (rows.low, rows.high))
    program = highs.HighsLp()
    program.num_col_, program.num_row_ = len(c), len(matrix)
    program.col_cost_, program.col_lower_, program.col_upper_ = c, low, high
    program.row_lower_, program.row_upper_ = row_low, row_high
    filled, where = np.nonzero(matrix)
    program.a_matrix_.format_ = highs.MatrixFormat.kRowwise
    program.a_matrix_.start_ = np.concatenate([[0], np.cumsum(np.bincount(filled, minlength=len(matrix)))]).astype(np.int32)
    program.a_matrix_.index_, program.a_matrix_.value_ = where.astype(np.int32), matrix[filled, where]
    if any(binary):
        kinds = (highs.HighsVarType.kContinuous, highs.HighsVarType.kInteger)
        program.integrality_ = [kinds[b] for b in binary]
    solver = highs.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    if seconds < torch.inf:
        solver.setOptionValue("time_limit", max(0.0, seconds))
    solver.passModel(program)
    solver.run()
    status, solution = solver.getModelStatus(), solver.getSolution()
    values = np.asarray(solution.col_value)
    inputs = box.lower.numel()
    point = torch.from_numpy(values[:inputs].copy()).view_as(box.lower).clamp(box.lower, box.upper) if len(values) else None
    if any(binary):
        if status == highs.HighsModelStatus.kInfeasible:
            return torch.inf, None
        bound = float(solver.getInfo().mip_dual_bound)
        return constant + bound - _TRUST * (1 + abs(bound)), point
    if status == highs.HighsModelStatus.kInfeasible:
        _, there, ray = solver.getDualRay()
        fits = not there or _dual(np.zeros_like(c), np.asarray(ray), matrix, row_low, row_high, low, high) <= 0
        return (-torch.inf if fits else torch.inf), None
    duals = np.asarray(solution.row_dual)
    return constant + _dual(c, duals, matrix, row_low, row_high, low, high), point


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
