"""Nodes and weights join and leave a `Dag` while it is trained: `grow_nodes`, `prune_weights`,
`rewire`, and `add_stage`.

Each plans one edit and applies it, see `plan` and `apply_`: parameters keep their identity, the
optimizers' state is cut by the same entries, and `undo()` takes it back.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from morphogen.edit.apply import BY_VALUE, Applied, apply_
from morphogen.edit.edit import AddStage, GrowNodes, PruneWeights, Rewire
from morphogen.edit.optim import Way
from morphogen.edit.plan import plan
from morphogen.layers.dag.cascade import Cascade
from morphogen.layers.dag.dense import dag as values
from morphogen.layers.dag.dense import scatter
from morphogen.layers.dag.module import Dag, places


def grow_nodes(
    dag: Dag,
    count: int,
    *,
    optimizers: Sequence[Optimizer] = (),
    generator: torch.Generator | None = None,
    new_state_fraction: float = 1.0,
    states: Mapping[str, Way] = BY_VALUE,
) -> Applied:
    """Append nodes that read the inputs and the nodes before them, as the wiring says, and start as
    those did.

    The readout's new weights are zero, so the function stays; without a readout the output gets
    longer. new_state_fraction: how the optimizer state of new weights starts, see
    `optim.checked_fraction`, and states, see `optim.handled`. Errors: `PlanError` for a count below
    1.
    """
    return apply_(
        dag,
        plan(dag, {}, [GrowNodes("", count)]),
        optimizers=optimizers,
        generator=generator,
        new_state_fraction=new_state_fraction,
        states=states,
    )


def add_stage(
    cascade: Cascade,
    count: int,
    *,
    optimizers: Sequence[Optimizer] = (),
    generator: torch.Generator | None = None,
    new_state_fraction: float = 1.0,
    states: Mapping[str, Way] = BY_VALUE,
) -> Applied:
    """Begin a new stage of `count` nodes, which alone learns from now on, with the readout: the
    nodes that are there are frozen, and the optimizers let go of them.

    The readout's new weights are zero, so the function stays. The new nodes join the group of the
    readout's weight. Errors: `PlanError` for a count below 1.
    """
    return apply_(
        cascade,
        plan(cascade, {}, [AddStage("", count)]),
        optimizers=optimizers,
        generator=generator,
        new_state_fraction=new_state_fraction,
        states=states,
    )


def prune_weights(
    dag: Dag,
    share: float,
    *,
    optimizers: Sequence[Optimizer] = (),
    states: Mapping[str, Way] = BY_VALUE,
) -> Applied:
    """Drop the share of all weights that is smallest in size; a dense DAG becomes a sparse one.

    A node that loses all its sources puts out the activation of its bias. Errors: `PlanError`
    unless 0 < share < 1.
    """
    planned = plan(dag, {}, [PruneWeights("", share)])
    return apply_(dag, planned, optimizers=optimizers, states=states)


def rewire(
    dag: Dag,
    share: float,
    gradient: Tensor | None = None,
    *,
    optimizers: Sequence[Optimizer] = (),
    generator: torch.Generator | None = None,
    new_state_fraction: float = 1.0,
    states: Mapping[str, Way] = BY_VALUE,
) -> Applied:
    """Drop the share of the weights that is smallest in size, and bring as many, at zero, to places
    that had none.

    gradient: of the loss by all weights of the full wiring, as `full_gradient` gives it: the places
    where it is largest are taken (RigL); without it any (SET, which starts them at random instead).
    Errors: `PlanError` for a DAG that is not sparse, or a share outside 0 to 1. Source: Evci et al.
    2020 (arXiv 1911.11134); Mocanu et al. 2018 (arXiv 1707.04780).
    """
    gradients = {} if gradient is None else {"": gradient}
    return apply_(
        dag,
        plan(dag, {}, [Rewire("", share)], gradients=gradients, generator=generator),
        optimizers=optimizers,
        new_state_fraction=new_state_fraction,
        states=states,
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
    out = dag.read(values(x, flat, dag.bias, dag.layout, dag.solver))
    return torch.autograd.grad(loss(out), flat)[0]
