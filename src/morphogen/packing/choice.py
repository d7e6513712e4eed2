"""Which model a table is packed with: whichever makes rows and itself shortest, `choose`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from morphogen.density.groups import Groups
from morphogen.packing.model import (
    Fit,
    Model,
    Plan,
    bits_of_rows,
    build,
    fit,
    independent,
    parts_of,
    widened,
)
from morphogen.packing.weights import Rounding, bits_of, put, rounded

MOST_BITS = 4096  # of a row, above which no weights between bits are tried
_FAR = 0.9  # of the bits of another model, below which the rest are not tried
_WORTH = 64  # bits that a later model must save, which may be slower
_ROWS = 4096  # by which a rounding is chosen
_MATRIX_DIGITS = range(0, 6)
_VECTOR_DIGITS = range(1, 7)


@dataclass(frozen=True)
class Candidate:
    """share: of the seconds that all have together. least: bits that the best one must still need,
    below which its own weights could not pay.
    """

    plan: Plan
    share: float
    least: float = 0.0


CANDIDATES = (
    Candidate(Plan(), 0.4),
    Candidate(Plan(above=True), 0.25),
    Candidate(Plan(head="made", hidden=16), 0.2),
    Candidate(Plan(units=6), 0.15),
    Candidate(Plan(head="made", hidden=128), 1.0, least=1.5e6),
)
"""Each starts from the first, which starts from independent variables."""


@dataclass(frozen=True)
class Chosen:
    """A model whose weights are the whole numbers of `roundings`. bits: of rows and model, as they
    were expected to be. tried: of every plan.
    """

    plan: Plan
    model: Model
    roundings: Sequence[Rounding]
    numbers: Sequence[np.ndarray]
    bits: float
    model_bits: float
    tried: dict[str, float] = field(default_factory=dict)


def choose(x: Tensor, groups: Groups, seconds: float, seed: int = 0) -> Chosen:
    """x: (n, groups.bits), float32."""
    simple = Plan(head="independent")
    plain = independent(x, groups)
    best = compact(simple, plain, x)
    tried = {name_of(simple): best.bits}
    start = plain
    for candidate in CANDIDATES if groups.bits <= MOST_BITS and len(groups) > 1 else ():
        if best.bits < candidate.least:
            continue
        how = Fit(steps=_steps(len(x)), seconds=max(seconds * candidate.share, 1e-3), seed=seed)
        model = fit(widened(start, candidate.plan, seed), x, how)
        if candidate.plan == Plan():
            start = model
        found = compact(candidate.plan, model, x)
        tried[name_of(candidate.plan)] = found.bits
        if found.bits < best.bits - _WORTH:
            best = found
        # where the order of the rows says much, or bits say nothing of each other
        decided = found.bits < _FAR * tried[name_of(Plan())]
        if decided or (candidate.plan == Plan() and found.bits > best.bits / _FAR):
            break
    return Chosen(**{**vars(best), "tried": tried})


def compact(plan: Plan, model: Model, x: Tensor) -> Chosen:
    """With weights rounded so that the whole is shortest: first matrices, then vectors."""
    exact = build(model.groups, plan)
    exact.load_state_dict(model.state_dict())
    parts = [*parts_of(exact)]
    sample = x[:: max(1, len(x) // _ROWS)]
    scale = len(x) / len(sample)
    digits = [4 if part.tensor.dim() > 1 else 3 for part in parts]

    def measured(digits: Sequence[int], rows: Tensor, scale: float) -> Chosen:
        found = [rounded(part, count) for part, count in zip(parts, digits, strict=True)]
        roundings, numbers = zip(*found, strict=True)
        trial = build(model.groups, plan)
        for part, rounding, whole in zip(parts_of(trial), roundings, numbers, strict=True):
            put(part, rounding, whole)
        own = bits_of(trial, roundings, numbers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            total = own + scale * bits_of_rows(trial.eval(), rows)
        return Chosen(plan, trial, roundings, numbers, total, own)

    for matrices, choices in ((True, _MATRIX_DIGITS), (False, _VECTOR_DIGITS)):
        trials = []
        for choice in choices:
            own = [
                choice if (part.tensor.dim() > 1) == matrices else count
                for part, count in zip(parts, digits, strict=True)
            ]
            trials.append((measured(own, sample, scale).bits, own))
        digits = min(trials)[1]
    return measured(digits, x, 1.0)


def _steps(rows: int) -> int:
    return int(np.clip(rows / 8, 1200, 6000))


def name_of(plan: Plan) -> str:
    """What a reader calls it."""
    if plan.above:
        return "row above"
    hidden = f" {plan.hidden}" if plan.hidden else ""
    units = f", {plan.units} stochastic bits" if plan.units else ""
    return f"{plan.head}{hidden}{units}"
