"""Which nodes the scope of a target holds: a value each, and `scopes_of(graph, targets, how)`.

`PageRank` keeps the best of what a walk from the target visits, `Neighbourhood` goes along edges,
`WeightedPageRank` draws anew each epoch from what a walk visits, `Alone` is the target by itself,
`Whole` all there is.
The same graph, targets, seed and epoch give the same scopes, for any number of threads.

Source: shaDow (see `gnn`), section 3.3 and its settings. Differs: the push keeps nothing back
(`pagerank`), and draws follow the scores, where the published code draws nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from morphogen.data.csr_graph import CsrGraph
from morphogen.errors import ShapeError
from morphogen.gnn import neighbourhood, pagerank
from morphogen.gnn.counter import streams
from morphogen.gnn.induced import union
from morphogen.gnn.slots import in_parts


@dataclass(frozen=True)
class PageRank:
    """The `most` nodes of the largest personalised PageRank, the target among them.

    threshold: the least score, as a share of the second best one. epsilon: an edge's error of the
    score at most; visits grow as 1 / epsilon. teleport: of a walk that does not rest; see
    `pagerank.EAGER`.
    """

    most: int = 200
    threshold: float = 0.0
    epsilon: float = 1e-4
    teleport: float = pagerank.EAGER

    def __post_init__(self) -> None:
        _check(self, ("most",), ("epsilon", "teleport"))
        if not 0 <= self.threshold <= 1:
            raise ShapeError(f"PageRank: threshold={self.threshold}; give a share from 0 to 1")


@dataclass(frozen=True)
class WeightedPageRank:
    """`most` nodes drawn each epoch from the `pool` best, in proportion to their score and without
    replacement; the target is always among them.
    """

    most: int = 200
    pool: int = 400
    epsilon: float = 1e-4
    teleport: float = pagerank.EAGER

    def __post_init__(self) -> None:
        _check(self, ("most", "pool"), ("epsilon", "teleport"))


@dataclass(frozen=True)
class Neighbourhood:
    """All nodes within `depth` edges, on paths that take at most `budget` neighbours of each node,
    drawn each epoch; None takes all. replace: draw with replacement, as published.
    """

    depth: int = 2
    budget: int | None = 20
    replace: bool = True

    def __post_init__(self) -> None:
        _check(self, ("depth",) if self.budget is None else ("depth", "budget"))


@dataclass(frozen=True)
class Alone:
    """The target by itself."""


@dataclass(frozen=True)
class Whole:
    """The whole graph, one for all targets of a batch: full batches, for comparison."""


def _check(extractor: object, counts: tuple[str, ...], shares: tuple[str, ...] = ()) -> None:
    """Counts are at least 1, shares in (0, 1)."""
    name = type(extractor).__name__
    for argument in counts:
        if (value := getattr(extractor, argument)) < 1:
            raise ShapeError(f"{name}: {argument}={value}; give at least 1")
    for argument in shares:
        if not 0 < (value := getattr(extractor, argument)) < 1:
            raise ShapeError(f"{name}: {argument}={value}; give a number between 0 and 1")


Extractor = PageRank | WeightedPageRank | Neighbourhood | Alone | Whole


@dataclass(frozen=True, eq=False)
class NodeSets:
    """Nodes of each scope: nodes[starts[i] : starts[i + 1]] of scope i, sorted, each once.

    starts: (scopes + 1,) int64. nodes: (entries,) int32. visits: edges that were looked at.
    """

    starts: np.ndarray
    nodes: np.ndarray
    visits: int = 0

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, numbers: np.ndarray) -> "NodeSets":
        """Those of some scopes."""
        sizes = self.starts[numbers + 1] - self.starts[numbers]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        places = np.repeat(self.starts[numbers] - starts[:-1], sizes) + np.arange(starts[-1])
        return NodeSets(starts, self.nodes[places])


def scopes_of(
    graph: CsrGraph, targets: np.ndarray, extractor: Extractor, seed: int = 0, epoch: int = 0
) -> NodeSets:
    """The scope of each target, on as many threads as PyTorch uses.

    targets: (n,) nodes, or (n, 2) pairs, whose scope is that of both joined. Raises `ShapeError`
    for a target that does not exist.
    """
    roots = checked(graph, targets)
    each = roots.ravel()
    keys = streams(seed, epoch if draws(extractor) else 0, each)
    choose = _CHOICES[type(extractor)]

    def part(begin: int, end: int, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        return choose(graph, extractor, each[begin:end], keys[begin:end], slots)

    parts = in_parts(part, len(each), graph.nodes)
    sizes = np.concatenate([np.diff(starts) for starts, _, _ in parts])
    nodes = np.concatenate([nodes for _, nodes, _ in parts])
    starts, nodes = union(np.concatenate([[0], np.cumsum(sizes)]), nodes, roots.shape[1])
    return NodeSets(starts, nodes, sum(visits for *_, visits in parts))


Chosen = tuple[np.ndarray, np.ndarray, int]


def _by_rank(
    graph: CsrGraph, how: PageRank, roots: np.ndarray, keys: np.ndarray, slots: np.ndarray
) -> Chosen:
    starts, nodes, _, visits = pagerank.choose(
        graph.indptr,
        graph.indices,
        roots,
        slots,
        how.most,
        how.threshold,
        how.teleport,
        how.epsilon,
        0,
        keys,
    )
    return starts, nodes, visits


def _by_draw(
    graph: CsrGraph, how: WeightedPageRank, roots: np.ndarray, keys: np.ndarray, slots: np.ndarray
) -> Chosen:
    starts, nodes, _, visits = pagerank.choose(
        graph.indptr,
        graph.indices,
        roots,
        slots,
        how.most,
        0.0,
        how.teleport,
        how.epsilon,
        how.pool,
        keys,
    )
    return starts, nodes, visits


def _by_depth(
    graph: CsrGraph, how: Neighbourhood, roots: np.ndarray, keys: np.ndarray, slots: np.ndarray
) -> Chosen:
    budget = -1 if how.budget is None else how.budget
    chosen: Chosen = neighbourhood.choose(
        graph.indptr, graph.indices, roots, slots, how.depth, budget, how.replace, keys
    )
    return chosen


def _whole(
    graph: CsrGraph, how: Whole, roots: np.ndarray, keys: np.ndarray, slots: np.ndarray
) -> Chosen:
    raise ShapeError(
        "Whole: the scope of every target would be a copy of the graph; use scopes.shared_by"
    )


def _alone(
    graph: CsrGraph, how: Alone, roots: np.ndarray, keys: np.ndarray, slots: np.ndarray
) -> Chosen:
    return np.arange(len(roots) + 1), roots.astype(np.int32), 0


_CHOICES: Mapping[type, Callable[..., Chosen]] = {
    PageRank: _by_rank,
    WeightedPageRank: _by_draw,
    Neighbourhood: _by_depth,
    Alone: _alone,
    Whole: _whole,
}


def draws(extractor: Extractor) -> bool:
    """Whether its scopes differ from epoch to epoch."""
    limited = isinstance(extractor, Neighbourhood) and extractor.budget is not None
    return limited or isinstance(extractor, WeightedPageRank)


def checked(graph: CsrGraph, targets: np.ndarray) -> np.ndarray:
    """Targets as (n, roots of each)."""
    roots = np.asarray(targets)
    roots = roots[:, None] if roots.ndim == 1 else roots
    if roots.ndim != 2 or roots.dtype.kind not in "iu" or roots.shape[1] not in (1, 2):
        raise ShapeError(
            f"targets: {roots.dtype} of shape {np.shape(targets)}; give whole numbers of shape "
            "(n,), or (n, 2) for pairs"
        )
    bad = (roots < 0) | (roots >= graph.nodes)
    if bad.any():
        raise ShapeError(f"targets: {roots[bad][0]} is no node; nodes are 0 to {graph.nodes - 1}")
    return roots.astype(np.int64)
