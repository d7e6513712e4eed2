"""Branch and bound: what input splitting and ReLU splitting share, `solved(question, search)`.

A search keeps open subproblems, each a part of the inputs with a bound on the margin; it bounds and
splits the worst of them, batch after batch, until none is open, one has a witness or time is up.

Source: the framework of Bunel et al. 2018 (arXiv 1711.00455).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from morphogen.bounds.box import InputSet
from morphogen.deadline import Deadline, OutOfTime, deadline
from morphogen.tracing.program import Program
from morphogen.verification.unsafe import Unsafe, Verdict, stacked

Callback = Callable[[float, int], None]
"""Called with the least bound and the number of open subproblems."""
Witness = tuple[Tensor, float]
"""An unsafe input (*shape) and its margin."""


@dataclass(frozen=True)
class Question:
    """Whether some input of a set, of one example, (1, *shape), is in any of the unsafe sets. net:
    keeps the deadline. rows, limits: of the sets, (sets, k, outputs) and (sets, k).
    """

    net: Program
    unsafe: Sequence[Unsafe]
    box: InputSet
    rows: Tensor
    limits: Tensor
    until: Deadline
    began: float

    @property
    def spent(self) -> float:
        """Seconds since it was asked."""
        return self.until.now() - self.began


def question(
    net: Program, unsafe: Sequence[Unsafe], box: InputSet, seconds: float | Deadline
) -> Question:
    """The question in the network's dtype, to be answered in so many seconds, or by a deadline."""
    until = deadline(seconds)
    rows, limits = stacked(unsafe)
    return Question(
        replace(net, until=until),
        unsafe,
        box.as_input(net.dtype),
        rows.to(net.dtype),
        limits.to(net.dtype),
        until,
        until.now(),
    )


class Search(Protocol):
    """What a search has seen. witness: of an unsafe input. seen: how many subproblems were
    bounded. stuck: whether what is open cannot be decided.
    """

    witness: Witness | None
    seen: int
    stuck: bool

    @property
    def open(self) -> int:
        """How many subproblems are open."""

    @property
    def least(self) -> float:
        """The least bound of those that are open, of all where none is."""

    @property
    def proved(self) -> float:
        """The margin of every input is at least so much, wherever the search was interrupted."""

    def begin(self) -> None:
        """Find the first subproblems."""

    def advance(self, batch: int) -> None:
        """Bound and split the worst subproblems."""


def solved(asked: Question, search: Search, batch: int, callback: Callback | None) -> Verdict:
    """What a search says by the deadline."""
    try:
        search.begin()
        while search.open and search.witness is None and not search.stuck:
            asked.until.check()
            search.advance(batch)
            if callback and search.witness is None:
                callback(search.least, search.open)
        unknown = bool(search.open)
    except OutOfTime:
        unknown = True
    if search.witness is not None:
        x, margin = search.witness
        return Verdict("sat", margin, x, search.seen, asked.spent)
    return Verdict("unknown" if unknown else "unsat", search.proved, None, search.seen, asked.spent)
