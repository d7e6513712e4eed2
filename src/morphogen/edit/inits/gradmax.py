"""New units that the loss has the most use for: `gradmax(model, plan, loss) -> inits`, for `apply_`
and `resize`.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from morphogen.edit.apply import apply_
from morphogen.edit.inits.constant import Init, given
from morphogen.edit.plan import NEW, Plan, Row, tensors_of
from morphogen.edit.preserve_state import preserve_state
from morphogen.errors import PlanError, Unsupported

MAKES = ("out", "own")


def gradmax(
    model: nn.Module,
    plan: Plan,
    loss: Callable[[nn.Module], Tensor],
    generator: torch.Generator | None = None,
    rounds: int = 10,
) -> dict[str, Init]:
    """Incoming weights of the plan's new units, such that their outgoing weights, which start at
    zero, get the largest gradient. The function stays, and the first step of gradient descent gains
    the most.

    loss: model -> a scalar that can be differentiated, the mean over a batch of training examples.
    Neither the model, nor its gradients and buffers, nor the random state are touched. generator:
    draws where the search begins. rounds: of the search, each about the price of four training
    steps on a copy.

    Let G(V) be the gradient of the outgoing weights where the incoming ones are V, one row a unit.
    The rows go to the gradient of |G(V)|^2, made orthonormal, times the norm that He's start has: a
    subspace iteration. For linear units it ends at the leading singular vectors of E[dL/dz h^T],
    the closed form of the paper; through an activation, a norm or a pooling it is an ascent, and
    the best of all rounds is kept, never less than He's start.

    Raises `PlanError` where the plan is not the growth of one width, or nothing reads its units,
    and `Unsupported` where the model cannot be differentiated twice. Source: Evci et al. 2022
    (arXiv 2201.05125), eq. 7 to 9. Differs: the maximum is sought through the activation, too, and
    in any architecture that can be resized.
    """
    grown = copy.deepcopy(model)
    apply_(grown, plan, generator=generator)
    tensors = tensors_of(grown)
    producers, consumers = _sides(plan, tensors)
    searched = {row.tensor for row in (*producers, *consumers)}
    for name, tensor in grown.named_parameters():
        tensor.requires_grad_(name in searched)
    rows = [_slice(tensors[row.tensor], row).detach().clone() for row in producers]
    squares = sum(float(value.double().square().sum()) for value in rows)
    norm = math.sqrt(squares / len(producers[0].new()))
    best = -math.inf
    best_rows = rows
    for number in range(rounds + 1):
        strength, ascent = _strength(grown, tensors, producers, consumers, loss)
        if strength > best:
            best = strength
            best_rows = rows
        if number == rounds or not any(bool(value.any()) for value in ascent):
            break
        rows = _orthonormal(ascent, norm)
        for row, value in zip(producers, rows, strict=True):
            _put(tensors[row.tensor], row, _masked(value, row, plan))
    values = {
        row.tensor: _as_drawn(value, row, plan, model)
        for row, value in zip(producers, best_rows, strict=True)
    }
    return given(values)


def _sides(plan: Plan, tensors: dict[str, Tensor]) -> tuple[list[Row], list[Row]]:
    """The rows that make the new units of a plan, and those that read them. Raises `PlanError`, see
    `gradmax`.
    """
    growing = [row for row in plan.rows if len(row.new())]
    producers = [row for row in growing if row.role in MAKES and tensors[row.tensor].dim() > 1]
    consumers = [row for row in growing if row.role.startswith("in")]
    if not producers or not consumers or len(plan.sizes) != 1:
        raise PlanError(
            f"gradmax: this plan is not the growth of one width with weights on both sides ({plan})"
        )
    return producers, consumers


def _strength(
    grown: nn.Module,
    tensors: dict[str, Tensor],
    producers: list[Row],
    consumers: list[Row],
    loss: Callable[[nn.Module], Tensor],
) -> tuple[float, list[Tensor]]:
    """|G|^2, the squared gradient of the new outgoing weights, and its gradient by the new incoming
    ones.
    """
    incoming = [tensors[row.tensor] for row in producers]
    outgoing = [tensors[row.tensor] for row in consumers]
    with preserve_state(grown), torch.enable_grad():
        value = loss(grown)
        try:
            gradients = torch.autograd.grad(value, outgoing, create_graph=True)
            # |G|^2 = sum over the new outgoing weights of (dL/dw)^2
            strength = value.new_zeros(())
            for gradient, row in zip(gradients, consumers, strict=True):
                strength = strength + _slice(gradient, row).square().sum()
            ascent = torch.autograd.grad(strength, incoming)
        except RuntimeError as error:
            raise Unsupported(
                f"gradmax: the loss cannot be differentiated twice by the weights ({error})"
            ) from error
    rows = [_slice(gradient, row) for gradient, row in zip(ascent, producers, strict=True)]
    return float(strength.detach()), rows


def _orthonormal(ascent: list[Tensor], norm: float) -> list[Tensor]:
    """Each unit's entries in all producers as one row; rows made orthonormal, as many at a time as
    can be, times `norm`.
    """
    flat = torch.cat([value.double().flatten(1) for value in ascent], 1)
    parts = []
    for part in flat.split(flat.shape[1]):
        # part^T = Q R, the signs such that R has a positive diagonal: only then is Q unique
        q, r = torch.linalg.qr(part.T)
        signs = torch.where(r.diagonal() < 0, -1.0, 1.0)
        parts.append((q * signs).T)
    rows = torch.cat(parts) * norm
    start = 0
    result = []
    for value in ascent:
        size = value[0].numel()
        result.append(rows[:, start : start + size].reshape(value.shape).to(value))
        start += size
    return result


def _slice(tensor: Tensor, row: Row) -> Tensor:
    """The new entries of a row, units first."""
    return tensor.index_select(row.dim, row.new().to(tensor.device)).movedim(row.dim, 0)


@torch.no_grad()
def _put(tensor: Tensor, row: Row, value: Tensor) -> None:
    tensor.index_copy_(row.dim, row.new().to(tensor.device), value.movedim(0, row.dim))


def _others(row: Row, plan: Plan) -> list[Row]:
    """The plan's rows for the other dimensions of the same tensor."""
    return [other for other in plan.rows if other.tensor == row.tensor and other.dim != row.dim]


def _masked(value: Tensor, row: Row, plan: Plan) -> Tensor:
    """What a new unit reads from other new units starts at zero, as `apply_` will have it."""
    value = value.movedim(0, row.dim).clone()
    for other in _others(row, plan):
        value.index_fill_(other.dim, other.new().to(value.device), 0.0)
    return value.movedim(row.dim, 0)


def _as_drawn(value: Tensor, row: Row, plan: Plan, model: nn.Module) -> Tensor:
    """The new slices as a `Init` gives them: before the dimensions whose rows come later in the
    plan were changed.
    """
    value = _masked(value, row, plan).movedim(0, row.dim)
    seen = False
    for other in plan.rows:
        seen = seen or other == row
        if not seen or other.tensor != row.tensor or other.dim == row.dim:
            continue
        shape = list(value.shape)
        shape[other.dim] = tensors_of(model)[row.tensor].shape[other.dim]
        old = (other.index != NEW).nonzero()[:, 0]
        sources = other.index[old].to(value.device)
        kept = value.index_select(other.dim, old.to(value.device))
        value = value.new_zeros(shape).index_copy_(other.dim, sources, kept)
    return value
