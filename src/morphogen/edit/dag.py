"""Nodes and weights join and leave a `Dag` while it is trained: `grow_nodes`, `prune_weights`,
`rewire`, and `add_stage`.

As in every resize, parameters keep their identity, the optimizers' state is cut by the same
entries, and `undo()` takes it back.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.edit.apply import BY_VALUE, Applied, applied, commit, count_parameters, refresh_sizes
from morphogen.edit.base import note_blocks, note_sizes
from morphogen.edit.blocks import enrol, release
from morphogen.edit.optim import (
    checked_fraction,
    cut_gradients,
    cut_states,
    drop_states,
    handled,
    take,
    whole,
)
from morphogen.edit.plan import NEW, tensors_of
from morphogen.edit.watch import UndoStack, all_or_nothing
from morphogen.errors import PlanError
from morphogen.layers.dag.cascade import Cascade
from morphogen.layers.dag.dense import Layout, scatter
from morphogen.layers.dag.dense import dag as values
from morphogen.layers.dag.module import Dag, entries, moved, places
from morphogen.random_state import ALONE
from morphogen.record import Receipt

Wires = tuple[Tensor | None, Tensor | None]
"""Sources and starts of a sparse wiring; None and None of a dense one."""


def grow_nodes(
    dag: Dag,
    count: int,
    *,
    optimizers: Sequence[Optimizer] = (),
    generator: torch.Generator | None = None,
    new_state_fraction: float = 1.0,
    states: Mapping[str, str] = BY_VALUE,
) -> Applied:
    """Append nodes that read the inputs and the nodes before them, as the wiring says, and start as
    those did.

    The readout's new weights are zero, so the function stays; without a readout the output gets
    longer. new_state_fraction: how the optimizer state of new weights starts, see
    `optim.checked_fraction`, and states, see `optim.handled`. Errors: `PlanError` for a count below
    1.
    """
    if count < 1:
        raise PlanError(f"grow_nodes: count={count}; give at least 1")
    rows = [*range(dag.layout.values), *[NEW] * count * dag.layout.width]
    change = moved(dag, rows, dag.in_features)
    cuts = [("weight", 0, change.index), ("bias", 0, _extended(dag.nodes, change.layout.nodes))]
    cuts.append(("readout.weight", 1, torch.tensor(rows)))
    return _changed(
        dag,
        cuts,
        change.layout,
        (change.indices, change.indptr),
        f"grow {count} nodes",
        optimizers,
        new_state_fraction,
        states,
        lambda: dag.start(change.first, generator),
        dag.readout is not None,
    )


def add_stage(
    cascade: Cascade,
    count: int,
    *,
    optimizers: Sequence[Optimizer] = (),
    generator: torch.Generator | None = None,
    new_state_fraction: float = 1.0,
    states: Mapping[str, str] = BY_VALUE,
) -> Applied:
    """Begin a new stage of `count` nodes, which alone learns from now on, with the readout: the
    nodes that are there are frozen, and the optimizers let go of them.

    The readout's new weights are zero, so the function stays. The new nodes join the group of the
    readout's weight. Errors: `PlanError` for a count below 1.
    """
    if count < 1:
        raise PlanError(f"add_stage: count={count}; give at least 1")
    before = count_parameters(cascade)
    weight = cascade.readout.weight
    width = cascade.features
    optimizers = whole(optimizers)
    handling = handled(optimizers, [("readout.weight", weight)], True, states)
    stage = cascade.new_stage(count, generator)
    index = _extended(width, width + stage.layout.width * count)
    late: list[Callable[[], None]] = []
    cut = drop_states(handling, late) + cut_states(
        handling, weight, [(1, index, "readout.weight")], checked_fraction(new_state_fraction), late
    )
    gradients = cut_gradients(weight, [(1, index, True)])
    undo_stack: UndoStack = []
    with ALONE, all_or_nothing(undo_stack):
        for parameter in cascade.stages[-1].parameters():
            undo_stack.append(partial(parameter.requires_grad_, parameter.requires_grad))
            parameter.requires_grad_(False)
            for optimizer in optimizers:
                release(optimizer, parameter, undo_stack)
        for parameter in stage.parameters():
            for optimizer in optimizers:
                enrol(optimizer, weight, parameter, undo_stack)
        undo_stack.append(partial(_shorten, cascade.stages, len(cascade.stages)))
        note_blocks(cascade, [("stages", 1)])
        cascade.stages.append(stage)
        note_sizes(cascade, [weight])
        commit([(weight, take(weight.detach(), 1, index))], cut, undo_stack)
        _settle(gradients, late)
        refresh_sizes(cascade, undo_stack)
        sizes = {
            "stages": (len(cascade.stages) - 1, len(cascade.stages)),
            "readout.weight": (width, len(index)),
        }
        receipt = Receipt(
            (f"begin a stage of {count} nodes",),
            sizes,
            (before, count_parameters(cascade)),
            keeps=True,
        )
        return applied(cascade, receipt, undo_stack)


def _shorten(stages: nn.ModuleList, count: int) -> None:
    while len(stages) > count:
        del stages[-1]


def prune_weights(
    dag: Dag,
    share: float,
    *,
    optimizers: Sequence[Optimizer] = (),
    states: Mapping[str, str] = BY_VALUE,
) -> Applied:
    """Drop the share of all weights that is smallest in size; a dense DAG becomes a sparse one.

    A node that loses all its sources puts out the activation of its bias. Errors: `PlanError`
    unless 0 < share < 1.
    """
    _checked_share("prune_weights", share)
    kept = max(1, round(dag.weight.numel() * (1 - share)))
    keep = dag.weight.detach().abs().topk(kept).indices.sort().values.cpu()
    node, row = dag.entries()
    return _sparse(
        dag,
        keep,
        node[keep],
        row[keep],
        f"prune {dag.weight.numel() - kept} weights",
        optimizers,
        1.0,
        states,
    )


def rewire(
    dag: Dag,
    share: float,
    gradient: Tensor | None = None,
    *,
    optimizers: Sequence[Optimizer] = (),
    generator: torch.Generator | None = None,
    new_state_fraction: float = 1.0,
    states: Mapping[str, str] = BY_VALUE,
) -> Applied:
    """Drop the share of the weights that is smallest in size, and bring as many, at zero, to places
    that had none.

    gradient: of the loss by all weights of the full wiring, as `full_gradient` gives it: the places
    where it is largest are taken (RigL); without it any (SET, which starts them at random instead).
    Errors: `PlanError` for a DAG that is not sparse, or a share outside 0 to 1. Source: Evci et al.
    2020 (arXiv 1911.11134); Mocanu et al. 2018 (arXiv 1707.04780).
    """
    if dag.indices is None or dag.indptr is None:
        raise PlanError(
            "rewire: this DAG has every weight; prune_weights it first, or build it with "
            "wiring='random'"
        )
    _checked_share("rewire", share)
    dropped = max(1, round(share * dag.weight.numel()))
    by_size = dag.weight.detach().abs().cpu().argsort()
    at = places(dag.layout, dag.indices.cpu(), dag.indptr.cpu())
    keep = by_size[dropped:]
    score = (
        torch.rand(dag.layout.weights, generator=generator)
        if gradient is None
        else gradient.detach().abs().cpu()
    )
    if score.shape != (dag.layout.weights,):
        raise PlanError(
            f"rewire: gradient is {tuple(score.shape)}; give full_gradient's, "
            f"({dag.layout.weights},)"
        )
    score[at] = -torch.inf  # what is there, and what was just dropped
    if int(score.isfinite().sum()) < dropped:
        raise PlanError(
            f"rewire: share={share} is {dropped} weights, and fewer places are free; give less"
        )
    new = score.topk(dropped).indices
    node, row = (
        torch.cat([mine[keep], of[new]])
        for mine, of in zip(dag.entries(), entries(dag.layout), strict=True)
    )
    index = torch.cat([keep, torch.full((dropped,), NEW)])
    return _sparse(
        dag, index, node, row, f"rewire {dropped} weights", optimizers, new_state_fraction, states
    )


def full_gradient(dag: Dag, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of loss(dag(x)) by every weight that the full wiring has, flat, those included
    that a sparse one lacks.

    x: rows (batch, in_features).
    """
    if dag.indices is None or dag.indptr is None:
        return torch.autograd.grad(loss(dag(x)), dag.weight)[0]
    at = places(dag.layout, dag.indices.cpu(), dag.indptr.cpu()).to(dag.weight.device)
    flat = scatter(dag.weight.detach(), at, dag.layout).requires_grad_()
    return torch.autograd.grad(
        loss(dag.read(values(x, flat, dag.bias, dag.layout, dag.solver))), flat
    )[0]


def _sparse(
    dag: Dag,
    index: Tensor,
    node: Tensor,
    row: Tensor,
    name: str,
    optimizers: Sequence[Optimizer],
    new_state_fraction: float,
    states: Mapping[str, str],
) -> Applied:
    """The entries `index` of the weight, `NEW` for a new one, that stand at (node, row)."""
    order = (node * dag.layout.values + row).argsort()
    counts = torch.bincount(node, minlength=dag.nodes)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    device = dag.weight.device
    wires = row[order].to(device), indptr.to(device)
    return _changed(
        dag,
        [("weight", 0, index[order])],
        dag.layout,
        wires,
        name,
        optimizers,
        new_state_fraction,
        states,
    )


def _changed(
    dag: Dag,
    cuts: Sequence[tuple[str, int, Tensor]],
    layout: Layout,
    wires: Wires,
    name: str,
    optimizers: Sequence[Optimizer],
    new_state_fraction: float,
    states: Mapping[str, str],
    start: Callable[[], None] = lambda: None,
    keeps: bool = False,
) -> Applied:
    """Cut the parameters (name, dimension, index), new entries zero, take the wiring, then let
    `start` fill what it likes.

    keeps: whether the function stays.
    """
    live = tensors_of(dag)
    cuts = [(tensor, dim, index) for tensor, dim, index in cuts if tensor in live]
    before = count_parameters(dag)
    sizes = (dag.nodes, layout.nodes)
    old = dag.layout, dag.indices, dag.indptr
    made = [(live[tensor], take(live[tensor].detach(), dim, index)) for tensor, dim, index in cuts]
    handling = handled(
        whole(optimizers), [(tensor, live[tensor]) for tensor, _, _ in cuts], False, states
    )
    late: list[Callable[[], None]] = []
    cut = drop_states(handling, late)
    gradients = []
    for tensor, dim, index in cuts:
        cut += cut_states(
            handling,
            live[tensor],
            [(dim, index, tensor)],
            checked_fraction(new_state_fraction),
            late,
        )
        gradients += cut_gradients(live[tensor], [(dim, index, True)])
    # first in, last out: the wiring goes back once the tensors have
    undo_stack: UndoStack = [lambda: dag.rearrange(*old)]
    with ALONE, all_or_nothing(undo_stack):
        note_sizes(dag, [tensor for tensor, _ in made])
        commit(made, cut, undo_stack)
        dag.rearrange(layout, *wires)
        refresh_sizes(dag, undo_stack)
        start()
        _settle(gradients, late)
        changed = {"nodes": sizes} if sizes[0] != sizes[1] else {}
        return applied(
            dag, Receipt((name,), changed, (before, count_parameters(dag)), keeps=keeps), undo_stack
        )


def _settle(gradients: Sequence[tuple[Tensor, Tensor]], late: Sequence[Callable[[], None]]) -> None:
    for tensor, gradient in gradients:
        tensor.grad = gradient
    for settle in late:
        settle()


def _extended(count: int, total: int) -> Tensor:
    return torch.cat([torch.arange(count), torch.full((total - count,), NEW)])


def _checked_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise PlanError(f"{name}: share={share}; give a number between 0 and 1")
