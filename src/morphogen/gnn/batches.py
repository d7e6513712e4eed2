"""Batches of targets with their scopes, the next one extracted while the network works on this:
`ScopeBatches`, and `outputs_of` for all nodes asked for.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from morphogen.gnn.extractors import Extractor, NodeSets, Whole, draws, scopes_of
from morphogen.gnn.network import Inputs, ShaDow, inputs
from morphogen.gnn.scopes import joined, shared_by
from morphogen.gnn.stored import Stored, store
from morphogen.gnn.task import NodeTask
from morphogen.tracing.trace import eval_mode
from morphogen.training.train import Batches

MOST_KEPT = 2**28
"""Nodes of scopes that are kept in memory."""

_AT_ONCE = 256  # targets whose outputs are computed together


@dataclass(eq=False)
class Extraction:
    """The scopes of nodes by each of several extractors. Those that are the same in every epoch are
    kept for the nodes `kept`, where they are not too many.
    """

    task: NodeTask
    extractors: Sequence[Extractor]
    kept: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    seed: int = 0

    def __call__(self, targets: np.ndarray, epoch: int = 0) -> tuple[Inputs, ...]:
        """targets: (n,) nodes. A batch for each extractor."""
        batches = []
        for number, how in enumerate(self.extractors):
            if isinstance(how, Whole):
                batch = shared_by(self.task.graph, targets)
            else:
                batch = joined(self.task.graph, targets, self._sets(number, targets, epoch))
            batches.append(inputs(batch, self.task.x))
        return tuple(batches)

    def _sets(self, number: int, targets: np.ndarray, epoch: int) -> NodeSets:
        stored = self._stored[number]
        if stored is not None and np.isin(targets, stored.targets).all():
            return stored.of(targets)
        how = self.extractors[number]
        return scopes_of(self.task.graph, targets, how, self.seed + number, epoch)

    @cached_property
    def _stored(self) -> list[Stored | None]:
        return [self._kept(how) for how in self.extractors]

    def _kept(self, how: Extractor) -> Stored | None:
        most = getattr(how, "most", self.task.graph.nodes)
        if draws(how) or isinstance(how, Whole) or len(self.kept) * most > MOST_KEPT:
            return None
        return store(self.task.graph, self.kept, how)


@dataclass(frozen=True, eq=False)
class ScopeBatches:
    """(a batch of scopes for each extractor, what is to be predicted) of the training nodes, in a
    seeded order. size: targets of a batch.
    """

    extraction: Extraction
    size: int
    seed: int = 0

    @cached_property
    def _targets(self) -> Batches:
        task = self.extraction.task
        train = torch.from_numpy(task.train)
        return Batches(train, task.y[train], min(self.size, len(train)), self.seed)

    @property
    def per_epoch(self) -> int:
        return self._targets.per_epoch

    def range(self, start: int, stop: int) -> Iterable[tuple[tuple[Inputs, ...], Tensor]]:
        """The batches of steps start .. stop-1."""

        def extracted() -> Iterator[tuple[tuple[Inputs, ...], Tensor]]:
            for number, (targets, y) in enumerate(self._targets.range(start, stop), start):
                yield self.extraction(targets.numpy(), number // self.per_epoch), y

        return ahead(extracted())


def ahead(
    made: Iterator[tuple[tuple[Inputs, ...], Tensor]],
) -> Iterator[tuple[tuple[Inputs, ...], Tensor]]:
    """The same, each made in a thread of its own while its predecessor is used."""
    nothing = ((), torch.empty(0))
    with ThreadPoolExecutor(1, thread_name_prefix="scopes") as thread:
        coming = thread.submit(next, made, nothing)
        while (now := coming.result()) is not nothing:
            coming = thread.submit(next, made, nothing)
            yield now


@torch.no_grad()
def outputs_of(model: ShaDow, extraction: Extraction, nodes: np.ndarray) -> Tensor:
    """(n, outputs) of nodes in evaluation mode, which the model leaves again."""
    size = len(nodes) if any(isinstance(h, Whole) for h in extraction.extractors) else _AT_ONCE
    parts = [nodes[at : at + size] for at in range(0, len(nodes), max(1, size))]
    with eval_mode(model):
        outputs = [model(*extraction(part)) for part in parts]
    return torch.cat(outputs) if outputs else torch.empty(0, model.outputs)
