"""Which (leaky) ReLUs have one sign on a whole box, each with its proof or two witnesses:
`stability(model, box)`.

A cascade from cheap to dear: points show both signs of most units; of the others, intervals and
linear bounds prove most, then alpha-CROWN; an attack looks for the sign that was not seen;
linear programs decide the rest, at last case by case, a ReLU on or off.

Source: lossless compression, Serra, Kumar et al. 2020 and 2021 (arXiv 2001.00218, 2102.07804),
which decide by whole-number programs alone. Differs: programs come last, where on nets that were
trained for it next to nothing is left for them, and know which ReLU to decide next (`lp`).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from morphogen.activations import RELU
from morphogen.bounds.alpha_crown import alpha_crown
from morphogen.bounds.box import Boxes, InputSet, cube_points
from morphogen.bounds.crown import crown
from morphogen.bounds.interval import interval
from morphogen.bounds.lp import lp_minimum
from morphogen.bounds.rules import activation
from morphogen.tracing.program import Program, needed, program
from morphogen.verification.pgd import descent

ACTIVE = 1
INACTIVE = -1
UNSTABLE = 0
UNDECIDED = 2


@dataclass
class Signs:
    """Of the units of one value, flat. sign: `ACTIVE` (proved: never below 0), `INACTIVE` (proved:
    never above), `UNSTABLE` (seen on either side) or `UNDECIDED`. how: what decided, a name each.
    positive, negative: an input where the unit is above and below 0, NaN where none was seen,
    (units, *shape of the input).
    """

    sign: Tensor
    how: list[str]
    positive: Tensor
    negative: Tensor

    def decide(self, units: Tensor, sign: int, how: str) -> None:
        """What was proved, or seen, of some units."""
        self.sign[units] = sign
        for unit in units.tolist():
            self.how[unit] = how

    def witnessed(self, how: str) -> None:
        """Decide the units that were seen on both sides."""
        both = ~(self.lacks(1) | self.lacks(-1))
        self.decide((both & (self.sign == UNDECIDED)).nonzero()[:, 0], UNSTABLE, how)

    def lacks(self, sign: int) -> Tensor:
        """Which units have no witness of a sign."""
        return (self.positive if sign > 0 else self.negative).flatten(1).isnan().any(1)

    @property
    def open(self) -> Tensor:
        """Units that are not decided."""
        return (self.sign == UNDECIDED).nonzero()[:, 0]


@dataclass(frozen=True)
class Stability:
    """By name of the value that ReLUs read. boxes: proved bounds on every value. seconds: of each
    technique.
    """

    units: Mapping[str, Signs]
    boxes: Boxes
    seconds: Mapping[str, float] = field(default_factory=dict)

    def count(self, sign: int) -> int:
        """How many units are so."""
        return sum(int((signs.sign == sign).sum()) for signs in self.units.values())

    def __str__(self) -> str:
        names = {ACTIVE: "active", INACTIVE: "inactive", UNSTABLE: "both", UNDECIDED: "undecided"}
        return ", ".join(f"{self.count(sign)} {name}" for sign, name in names.items())


def stability(
    model: nn.Module | Program,
    box: InputSet,
    samples: Tensor | None = None,
    points: int = 1000,
    seconds: float = 60.0,
    generator: torch.Generator | None = None,
) -> Stability:
    """Decide for every unit that a (leaky) ReLU reads whether it has one sign on the box.

    box: of one example, (1, *shape). samples: inputs to look at first, (n, *shape), those outside
    the box left out, such as training data; besides them there are the centre and `points` random
    ones. seconds: for linear programs; what they have not decided by then stays `UNDECIDED`. Raises
    `Unsupported` for a network that has an operation without a rule.
    """
    net = model if isinstance(model, Program) else program(model, torch.cat([box.lower, box.upper]))
    box = box.as_input(net.dtype)
    share = cube_points(points, points // 2, box.lower.shape[1:], net.dtype, generator)
    near = torch.cat([box.box.centre, box.lower + box.box.width * share])
    seen = box.repeated(len(near)).inside(near)
    if samples is not None:
        rows = samples.to(net.dtype)
        there = box.repeated(len(rows)).contains(rows)
        seen = torch.cat([rows[there], seen])
    reads = list(
        dict.fromkeys(
            step.reads[0]
            for step in net.steps
            if activation(step) is RELU or step.kind == "leaky_relu"
        )
    )
    spent: dict[str, float] = {}
    boxes: Boxes = {}
    with _clock(spent, "sampling"):
        units = _sampled(net, reads, seen)
    for name, technique in {
        "interval": interval,
        "CROWN": crown,
        "alpha-CROWN": alpha_crown,
    }.items():
        with _clock(spent, name):
            if not boxes or any(len(signs.open) for signs in units.values()):
                boxes = technique(net, box)
            for value, signs in units.items():
                _proved(signs, boxes[value], name)
    with _clock(spent, "attack"):
        for value, signs in units.items():
            _attacked(net, value, signs, box)
    until = time.perf_counter() + seconds
    for name, whole in (("linear program", False), ("cases", True)):
        with _clock(spent, name):
            for value, signs in units.items():
                _solved(net, value, signs, boxes, whole, name, until)
    return Stability(units, boxes, spent)


@contextmanager
def _clock(spent: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    spent[name] = time.perf_counter() - began


def _sampled(net: Program, reads: list[str], x: Tensor) -> dict[str, Signs]:
    """What points show."""
    values = net.values(x)
    sampled = {}
    for name in reads:
        z = values[name].flatten(1)
        count = z.shape[1]
        kept = [torch.full((count, *x.shape[1:]), torch.nan, dtype=net.dtype) for _ in range(2)]
        for witnesses, sign in zip(kept, (1, -1), strict=True):
            farthest, at = (sign * z).max(0)
            witnesses[farthest > 0] = x[at[farthest > 0]]
        undecided = torch.full((count,), UNDECIDED, dtype=torch.int8)
        sampled[name] = Signs(undecided, [""] * count, *kept)
        sampled[name].witnessed("sampling")
    return sampled


def _proved(signs: Signs, box: InputSet, how: str) -> None:
    """What bounds prove. A unit that is 0 everywhere counts as inactive."""
    lower = box.lower.flatten()
    upper = box.upper.flatten()
    open_ = signs.sign == UNDECIDED
    signs.decide((open_ & (upper <= 0)).nonzero()[:, 0], INACTIVE, how)
    signs.decide((open_ & (upper > 0) & (lower >= 0)).nonzero()[:, 0], ACTIVE, how)


def _attacked(
    net: Program, name: str, signs: Signs, box: InputSet, restarts: int = 8, steps: int = 30
) -> None:
    """Climb towards the sign that was not seen, for all open units at once."""
    units = signs.open
    part = _until(net, name)
    draw = torch.Generator().manual_seed(0)
    for chunk in units.split(256):
        towards = torch.where(signs.lacks(1)[chunk], 1.0, -1.0).to(net.dtype).repeat(restarts)
        which = chunk.repeat(restarts)[:, None]
        count = len(which)
        corners = cube_points(count, count, box.lower.shape[1:], net.dtype, draw)

        def short(x: Tensor, which: Tensor = which, towards: Tensor = towards) -> Tensor:
            return -part(x).flatten(1).gather(1, which)[:, 0] * towards

        for x, missing in descent(short, box.repeated(len(which)), corners, steps):
            nearest, run = missing.view(restarts, -1).min(0)
            rows = run * len(chunk) + torch.arange(len(chunk))
            here = nearest < 0
            for kept, sign in ((signs.positive, 1.0), (signs.negative, -1.0)):
                hit = here & (towards[: len(chunk)] == sign)
                kept[chunk[hit]] = x[rows[hit]]
            if bool(here.all()):
                break
    signs.witnessed("attack")


def _solved(
    net: Program,
    name: str,
    signs: Signs,
    boxes: Boxes,
    whole: bool,
    how: str,
    until: float,
) -> None:
    """A program for each open unit and each sign that was not seen; its solution may be a
    witness.
    """
    part = _until(net, name)
    zero = torch.zeros(1, dtype=net.dtype)
    units = signs.open.tolist()
    for number, unit in enumerate(units):
        # a share of the time each, so that one that is hard leaves the others theirs
        ends = time.perf_counter() + (until - time.perf_counter()) / (len(units) - number)
        row = torch.zeros(1, *net.shapes[name], dtype=net.dtype)
        for sign, kept, proof in ((-1.0, signs.positive, INACTIVE), (1.0, signs.negative, ACTIVE)):
            left = ends - time.perf_counter()
            if left <= 0:
                break
            if not bool(kept[unit].isnan().any()):
                continue  # it was seen on that side
            # least of sign * z: above 0 if the unit is never on the other side
            row.view(-1)[unit] = sign
            bound, point = lp_minimum(part, boxes, row, zero, whole, left, 0.0)
            if bound >= 0:
                signs.decide(torch.tensor([unit]), proof, how)
                break
            point = None if point is None else boxes[net.input].inside(point)
            if point is not None and float(part(point).flatten()[unit]) * sign < 0:
                kept[unit] = point[0]
    signs.witnessed(how)


def _until(net: Program, name: str) -> Program:
    """The network that ends with a value."""
    return replace(net, output=name, steps=needed(net.steps, name))
