"""What becomes of the wiring of a `Dag` whose nodes and weights come and go; nothing is changed.

Each function gives a `Moved`: entry j of the weight afterwards was entry index[j], or is new.
"""

import torch
from torch import Tensor

from morphogen.errors import PlanError
from morphogen.layers.dag.module import Dag, Moved, entries, moved, places

_NEW = -1  # as in a `Moved`


def grown(dag: Dag, count: int) -> Moved:
    """`count` more nodes. Errors: `PlanError` for a count below 1."""
    if count < 1:
        raise PlanError(f"GrowNodes: count={count}; give at least 1")
    values = dag.layout.values
    return moved(dag, extended(values, values + count * dag.layout.width), dag.in_features)


def extended(count: int, total: int) -> Tensor:
    """An index of `total` entries: `count` that stay, then new ones."""
    places = torch.arange(total)
    return torch.where(places < count, places, _NEW)


def pruned(dag: Dag, share: float) -> Moved:
    """The share of all weights that is smallest in size leaves. Errors: `PlanError` unless
    0 < share < 1.
    """
    _check_share("PruneWeights", share)
    kept = max(1, round(dag.weight.numel() * (1 - share)))
    keep = dag.weight.detach().abs().topk(kept).indices.sort().values.cpu()
    node, row = dag.entries()
    return _sparse(dag, keep, node[keep], row[keep])


def rewired(
    dag: Dag, share: float, gradient: Tensor | None, generator: torch.Generator | None
) -> Moved:
    """The share of the weights that is smallest in size leaves, and as many new ones come where the
    full wiring has room: where `gradient` is largest, or anywhere. See `dag.rewire`.
    """
    if dag.indices is None or dag.indptr is None:
        raise PlanError(
            "Rewire: this DAG has every weight; prune_weights it first, or build it with "
            "wiring='random'"
        )
    _check_share("Rewire", share)
    dropped = max(1, round(share * dag.weight.numel()))
    by_size = dag.weight.detach().abs().cpu().argsort()
    keep = by_size[dropped:]
    new = _best_free(dag, share, dropped, _score(dag, gradient, generator))
    node, row = dag.entries()
    full_node, full_row = entries(dag.layout)
    index = torch.cat([keep, torch.full((dropped,), _NEW)])
    node = torch.cat([node[keep], full_node[new]])
    row = torch.cat([row[keep], full_row[new]])
    return _sparse(dag, index, node, row)


def _score(dag: Dag, gradient: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """How much each place of the full wiring is wanted."""
    count = dag.layout.weights
    if gradient is None:
        return torch.rand(count, generator=generator)
    if gradient.shape != (count,):
        raise PlanError(
            f"Rewire: gradient is {tuple(gradient.shape)}; give full_gradient's, ({count},)"
        )
    return gradient.detach().abs().cpu()


def _best_free(dag: Dag, share: float, count: int, score: Tensor) -> Tensor:
    """The `count` places with the highest score that no weight takes, those that just leave among
    them.
    """
    assert dag.indices is not None
    assert dag.indptr is not None
    score[places(dag.layout, dag.indices.cpu(), dag.indptr.cpu())] = -torch.inf
    if int(score.isfinite().sum()) < count:
        raise PlanError(
            f"Rewire: share={share} is {count} weights, and fewer places are free; give less"
        )
    return score.topk(count).indices


def _sparse(dag: Dag, index: Tensor, node: Tensor, row: Tensor) -> Moved:
    """The entries `index` of the weight, -1 for a new one, that stand at (node, row)."""
    order = (node * dag.layout.values + row).argsort()
    counts = torch.bincount(node, minlength=dag.nodes)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    before = dag.layout, dag.indices, dag.indptr
    return Moved(before, dag.layout, row[order], indptr, index[order], dag.nodes)


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise PlanError(f"{name}: share={share}; give a number between 0 and 1")
