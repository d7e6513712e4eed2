"""A network as linear constraints, `encoded(net, boxes)`: what a linear program knows of it.

A variable stands for each input and each entry of a value that is not affine; everything else is an
affine function of these. Every constraint is wider by what rounding may have done to the functions
in it.

Source: the triangle relaxation, Ehlers 2017 (arXiv 1705.01320).
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from morphogen.bounds.box import Box, Boxes, InputSet
from morphogen.bounds.jacobian import abs_jacobian, linear_step, offset
from morphogen.bounds.propagate import Rules, propagate
from morphogen.bounds.relaxation import linear_relaxation
from morphogen.bounds.rounding import size, unit
from morphogen.bounds.rules import affine, applied, rectifier
from morphogen.tracing.program import Program, Step


@dataclass(frozen=True)
class AffineForm:
    """A value as an affine function of the variables, (1 + variables, *shape), a constant first,
    and by how much that may be off, (*shape).
    """

    function: Tensor
    off: Tensor


@dataclass
class Rows:
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
    ) -> range:
        """The places of new rows. coefficients: (1 + variables, rows), a constant first, which goes
        over to the other side. off: (rows,), by how much the function, or an end, may be off.
        """
        first = len(self)
        constant = coefficients[0]
        self.matrix.append(coefficients[1:].T.numpy())
        self.low.append((low - constant - off).numpy())
        self.high.append((high - constant + off).numpy())
        self.room.append((2 * off).numpy())
        return range(first, first + coefficients.shape[1])


@dataclass
class Unstable:
    """By unstable unit: the row of y - z, which is 0 where it is on; the row of y - slope z, which
    is 0 where it is off; the row of the chord, y; slope; and reach, how large y can be.
    """

    on: list[int] = field(default_factory=list)
    off: list[int] = field(default_factory=list)
    chord: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    slope: list[float] = field(default_factory=list)
    reach: list[float] = field(default_factory=list)

    def among(self, rows: np.ndarray, columns: np.ndarray) -> "Unstable":
        """Those whose variable is among some columns, by their places in some rows and columns."""
        there = np.isin(self.column, columns).nonzero()[0]

        def places(own: list[int], kept: np.ndarray) -> list[int]:
            among: list[int] = np.searchsorted(kept, np.array(own, int)[there]).tolist()
            return among

        return Unstable(
            places(self.on, rows),
            places(self.off, rows),
            places(self.chord, rows),
            places(self.column, columns),
            np.array(self.slope)[there].tolist(),
            np.array(self.reach)[there].tolist(),
        )


@dataclass
class Encoding:
    """The state while a network is encoded, and what comes of it.

    units: of each variable, a 1 first. far: its largest size in them. lower, upper: of the
    variables so far, in them. opened: how many variables there are so far, with the constant.

    Variables are counted in units of about their largest size, powers of two: beside what is added
    in a layer, coefficients of large variables would be lost.
    """

    boxes: Boxes
    forms: dict[str, AffineForm]
    units: Tensor
    far: Tensor
    opened: int = 1
    lower: list[Tensor] = field(default_factory=list)
    upper: list[Tensor] = field(default_factory=list)
    rows: Rows = field(default_factory=Rows)
    unstable: Unstable = field(default_factory=Unstable)

    @property
    def rounding(self) -> float:
        """What a few operations may be off, relative to their sizes."""
        return unit(self.far.dtype, 0)

    def open(self, lower: Tensor, upper: Tensor, units: Tensor) -> Tensor:
        """The places of new variables, between two ends (n,), in units (n,)."""
        places = self.opened + torch.arange(len(units))
        self.opened += len(units)
        self.lower.append(lower / units)
        self.upper.append(upper / units)
        self.units[places] = units
        self.far[places] = torch.maximum(self.lower[-1].abs(), self.upper[-1].abs())
        return places

    def read(self, step: Step) -> tuple[Tensor, Tensor, Box]:
        """Of what a step reads, flat: the function, what a row with it may be off, its box."""
        (name,) = step.reads
        z = self.forms[name].function.flatten(1)
        off = self.forms[name].off.flatten() + self.rounding * (self.far @ z.abs())
        return z, off, flat(self.boxes[name])

    def form(self, step: Step, y: Tensor, off: Tensor | None = None) -> AffineForm:
        """Of a flat function, (1 + variables, entries)."""
        off = y.new_zeros(y.shape[1]) if off is None else off
        return AffineForm(y.view(-1, *step.shape), off.view(step.shape))


def variables(net: Program, boxes: Boxes) -> int:
    """How many variables the network has."""
    count = boxes[net.input].lower[0].numel()
    for step in net.forth():
        if not affine(step):
            count += int(opened(step, boxes).sum())
    return count


def opened(step: Step, boxes: Boxes) -> Tensor:
    """Which entries of a step that is not affine have a variable, flat: of a rectifier those whose
    sign is open, of others all.
    """
    if rectifier(step) is not None:
        box = boxes[step.reads[0]]
        return ((box.lower < 0) & (box.upper > 0)).flatten()
    return torch.ones(math.prod(step.shape), dtype=torch.bool)


def encoded(net: Program, boxes: Boxes, spare: int = 0) -> Encoding:
    """The network's constraints. boxes: of every value, for one example. spare: how many more
    variables there will be.
    """
    inputs = boxes[net.input].lower[0].numel()
    total = 1 + variables(net, boxes) + spare
    units = torch.ones(total, dtype=net.dtype)
    far = torch.zeros(total, dtype=net.dtype)
    far[0] = 1.0
    encoding = Encoding(boxes, {}, units, far)
    box = flat(boxes[net.input])
    first = power(size(box))
    encoding.open(box.lower, box.upper, first)
    function = torch.zeros(total, inputs, dtype=net.dtype)
    function[1 : 1 + inputs] = torch.diag(first)
    shape = net.shapes[net.input]
    encoding.forms[net.input] = AffineForm(
        function.view(total, *shape), torch.zeros(shape, dtype=net.dtype)
    )
    for step, form in propagate(net, LP, encoding):
        encoding.forms[step.name] = form
    return encoding


def _affine(step: Step, encoding: Encoding) -> AffineForm:
    """f(function), and |J| off with what its sums may be off, see `rounding`."""
    read = {name: encoding.forms[name] for name in step.reads}
    function = linear_step(step, {name: form.function[None] for name, form in read.items()})[0]
    offs = {name: form.off[None] for name, form in read.items()}
    sizes = {
        name: torch.tensordot(encoding.far, form.function.abs(), 1)[None]
        for name, form in read.items()
    }
    terms = sum(form.off.numel() for form in read.values())
    # what is added is added to every coefficient, and taken away again
    added = (1 + encoding.far.sum()) * offset(step, offs).abs()
    rounding = unit(function.dtype, terms) * (abs_jacobian(step, sizes) + added)
    return AffineForm(function, (abs_jacobian(step, offs) + rounding)[0])


def _relu(step: Step, encoding: Encoding) -> AffineForm:
    """As `_rectified`; what is known to be on one side of 0, as after a split, is l <= z <= u."""
    z, off, box = encoding.read(step)
    ends = (box.lower == 0) | (box.upper == 0)
    if bool(ends.any()):
        room = off[ends] + encoding.rounding * size(box)[ends]
        encoding.rows.add(z[:, ends], box.lower[ends], box.upper[ends], room)
    return _rectified(step, encoding, 0.0, (z, off, box))


def _leaky_relu(step: Step, encoding: Encoding) -> AffineForm:
    slope = rectifier(step)
    if slope is None:
        return _curved(step, encoding)
    return _rectified(step, encoding, slope, encoding.read(step))


def _rectified(
    step: Step, encoding: Encoding, slope: float, read: tuple[Tensor, Tensor, Box]
) -> AffineForm:
    """y = z where l >= 0 and y = s z where u <= 0; elsewhere y is a variable, and

    y >= z, y >= s z, y <= c z + (s - c) l with the chord's slope c = (u - s l) / (u - l).

    read: `Encoding.read`.
    """
    z, z_off, box = read
    new = opened(step, encoding.boxes).nonzero()[:, 0]
    low = box.lower[new]
    high = box.upper[new]
    units = power(size(flat(encoding.boxes[step.name])))[new]
    columns = encoding.open(slope * low, high, units)

    y = torch.zeros_like(z)
    off = torch.zeros_like(z_off)
    y[columns, new] = units
    active = (box.lower >= 0).nonzero()[:, 0]
    inactive = (box.upper <= 0).nonzero()[:, 0]
    y[:, active], y[:, inactive] = z[:, active], slope * z[:, inactive]
    off[active], off[inactive] = z_off[active], slope * z_off[inactive]

    room = z_off[new] + encoding.rounding * (high - low)
    rows = encoding.rows
    chord = (high - slope * low) / (high - low)
    unstable = encoding.unstable
    unstable.on += rows.add(y[:, new] - z[:, new], 0.0, torch.inf, room)
    unstable.off += rows.add(y[:, new] - slope * z[:, new], 0.0, torch.inf, room)
    unstable.chord += rows.add(
        y[:, new] - chord * z[:, new], -torch.inf, slope * low - chord * low, room
    )
    unstable.column += (columns - 1).tolist()
    unstable.slope += [slope] * len(new)
    unstable.reach += torch.maximum(high, -slope * low).tolist()
    return encoding.form(step, y, off)


def _curved(step: Step, encoding: Encoding) -> AffineForm:
    """y is a variable, with b z + c <= y <= B z + C."""
    z, z_off, box = encoding.read(step)
    own = flat(encoding.boxes[step.name])
    line = linear_relaxation(applied(step), Box(box.lower[None], box.upper[None]))
    y = _variables(encoding, own)

    def add(slope: Tensor, bias: Tensor, low: Tensor | float, high: Tensor | float) -> None:
        sizes = slope.abs() * size(box) + size(own) + bias.abs()
        room = slope.abs() * z_off + encoding.rounding * sizes
        encoding.rows.add(y - slope * z, low, high, room)

    lower_bias = line.lower_bias[0, 0]
    upper_bias = line.upper_bias[0, 0]
    add(line.lower_slope[0, 0], lower_bias, lower_bias, torch.inf)
    add(line.upper_slope[0, 0], upper_bias, -torch.inf, upper_bias)
    return encoding.form(step, y)


def _free(step: Step, encoding: Encoding) -> AffineForm:
    """y is a variable, within its bounds."""
    return encoding.form(step, _variables(encoding, flat(encoding.boxes[step.name])))


def _variables(encoding: Encoding, box: Box) -> Tensor:
    """A variable for each entry of a flat box, as functions (1 + variables, entries)."""
    units = power(size(box))
    columns = encoding.open(box.lower, box.upper, units)
    y = units.new_zeros(len(encoding.units), len(units))
    y[columns, torch.arange(len(units))] = units
    return y


LP: Rules[Encoding, AffineForm] = Rules(
    "LP",
    {
        "affine": _affine,
        "activation": _curved,
        "activation relu": _relu,
        "activation leaky_relu": _leaky_relu,
        "max_pool": _free,
    },
)


def power(sizes: Tensor) -> Tensor:
    """A power of two near each size, 1 for 0: whatever is counted in it is not rounded."""
    return torch.where(sizes > 0, torch.exp2(torch.log2(sizes).ceil().clamp(-1000, 1000)), 1.0)


def flat(box: InputSet) -> Box:
    """Of one example, flat."""
    return Box(box.lower[0].flatten(), box.upper[0].flatten())
