"""Cut an optimizer's state by the same index map as its parameter."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils._pytree import tree_leaves

from morphogen.edit.plan import NEW
from morphogen.errors import PlanError, Unsupported

Way = Literal["zero", "mean", "parameter", "drop"]

WAYS: dict[Way, str] = {
    "zero": "new entries are zero, as in a momentum that has seen nothing",
    "mean": "new entries are the mean of the kept ones, times `new_state_fraction`: a scale, "
    "which divides or is the step itself",
    "parameter": "new entries are the parameter's own: a copy or an average of the weights",
    "drop": "the whole state of the parameter is dropped, and starts anew as in a newly built "
    "optimizer",
}
"""What can become of an entry of an optimizer's state at new units."""

# State that is a scale. The number says with which power of the gradient's second moment it goes.
SCALES = {
    **dict.fromkeys("exp_avg_sq max_exp_avg_sq square_avg sum row_var col_var "
                    "variance".split(), 1.0),
    "exp_inf": 0.5, "acc_delta": 0.0, "step_size": 0.0,
}  # fmt: skip

# The names that are known, all of torch.optim's among them. Those of copies are of published
# optimizers: ASGD, D-Adaptation, Prodigy, Ranger, Lookahead. A name that is not here is judged by
# its values.
_BY_WAY: dict[Way, tuple[str, ...]] = {
    "zero": ("exp_avg", "momentum_buffer", "grad_avg", "prev"),
    "mean": tuple(SCALES),
    "parameter": (
        "ax",
        "x0",
        "p0",
        "slow_buffer",
        "slow_param",
        "cached_params",
        "lookahead_slow_buff",
    ),
}
KNOWN: dict[str, Way] = {name: way for way, names in _BY_WAY.items() for name in names}

# Adafactor's factors keep one dimension at size 1 whatever the parameter's size there is.
FACTORED = {"row_var": -1, "col_var": -2}

NEAR = 0.85  # of the weights' norm, see `_near`


@dataclass(frozen=True)
class Handled:
    """What becomes of one optimizer's state: the way of each entry, by its name, and the parameters
    whose state is dropped.
    """

    optimizer: Optimizer
    ways: Mapping[str, Way]
    dropped: tuple[Tensor, ...]


def checked_fraction(new_state_fraction: float) -> float:
    """The share of the kept entries' mean second moment that new entries of an optimizer's state
    start with.

    1: the first steps have the size of the others' (measured: at most 1.2 times the learning rate
    under Adam), so where new units start with small gradients, as behind outgoing weights of zero,
    they learn slowly for a thousand steps. 0: as in a newly built optimizer, but with the old step
    count: first steps of up to 6.6 times the learning rate under Adam. Between: on perceptrons that
    grow from 8 to 64 units a share of 0.1 was 0.6 to 1.3 points better than 1 at a rate of 3e-3 and
    as much worse at 1e-2; with the better rate for each they are alike
    (`experiments/growing_controls.py`).

    Errors: `PlanError` below 0.
    """
    if not isinstance(new_state_fraction, (int, float)) or not 0 <= new_state_fraction < math.inf:
        raise PlanError(
            f"new_state_fraction={new_state_fraction!r}; give a share of at least 0, such as 1.0"
        )
    return new_state_fraction


def whole(optimizers: Iterable[Optimizer]) -> tuple[Optimizer, ...]:
    """The optimizers and those inside them, as a Lookahead holds the one that it wraps; one that
    shares its state once.
    """
    known: list[Optimizer] = []
    waiting = list(optimizers)
    while waiting:
        optimizer = waiting.pop(0)
        if any(optimizer is other or optimizer.state is other.state for other in known):
            continue
        known.append(optimizer)
        waiting += [leaf for leaf in tree_leaves(_own(optimizer)) if isinstance(leaf, Optimizer)]
    return tuple(known)


def handled(
    optimizers: Iterable[Optimizer],
    touched: Sequence[tuple[str, Tensor]],
    blocks: bool,
    ways: Mapping[str, Way],
) -> list[Handled]:
    """How the state of each optimizer is cut; nothing is changed.

    touched: the parameters that change, with their names. blocks: whether parameters come or leave.
    ways: what should become of an entry, by its name, one of `WAYS`; "*" is for all that have no
    rule. Without it the known names are in `KNOWN`; any other starts as the parameter does where it
    is near the weights, see `_near`, and at zero elsewhere. Raises `Unsupported`, naming the
    parameter and the entry, for state that has no rule: neither a number nor of the parameter's
    shape (size 1 in place of any other), or of several parameters at once.
    """
    for key, way in ways.items():
        if way not in WAYS:
            raise PlanError(f"states: {key!r} is {way!r}; give one of {', '.join(map(repr, WAYS))}")
    changed = {id(tensor): name for name, tensor in touched}
    result = []
    for optimizer in optimizers:
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        if blocks or any(key in changed for key in held):
            _refuse_outside(optimizer, touched)
            dropped = tuple(_strange(optimizer, changed, ways))
            result.append(Handled(optimizer, {**KNOWN, **_near(optimizer), **ways}, dropped))
    return result


def cut_states(
    handling: Iterable[Handled],
    tensor: Tensor,
    cuts: Sequence[tuple[int, Tensor, str]],
    new_state_fraction: float,
    late: list[Callable[[], None]],
) -> list[tuple[Optimizer, Tensor, dict[str, Any]]]:
    """The states of a parameter after it was cut: (dimension, index, name) each.

    What waits for the parameter's final values is appended to `late`.
    """
    states = []
    for how in handling:
        dropped = any(tensor is other for other in how.dropped)
        if tensor not in how.optimizer.state or dropped:
            continue
        kept = how.optimizer.state[tensor]
        state = dict(kept)
        shape = tensor.shape
        for dim, index, name in cuts:
            state = cut(state, shape, dim, index, name, new_state_fraction, how.ways)
            shape = torch.Size([*shape[:dim], len(index), *shape[dim + 1 :]])
        for key, value in state.items():
            if isinstance(value, Tensor):
                state[key] = laid_out_as(kept[key], value)
        copies = [key for key, value in state.items() if _copies(how, key, value, shape)]
        if copies:
            taken = tensor.detach()
            for dim, index, _ in cuts:
                taken = take(taken, dim, index)
            late += [partial(_move, state[key], tensor, taken) for key in copies]
        states.append((how.optimizer, tensor, state))
    return states


def _copies(how: Handled, key: str, value: Any, shape: torch.Size) -> bool:
    """Whether an entry of the state is a copy of the weights."""
    return how.ways.get(key) == "parameter" and _like(value, shape)


def drop_states(
    handling: Iterable[Handled], late: list[Callable[[], None]]
) -> list[tuple[Optimizer, Tensor, dict[str, Any]]]:
    """The empty states of the parameters whose state is dropped."""
    states: list[tuple[Optimizer, Tensor, dict[str, Any]]] = []
    for how in handling:
        states += [(how.optimizer, tensor, {}) for tensor in how.dropped]
        if how.dropped and isinstance(how.optimizer, LBFGS):
            # it counts the entries once
            late.append(partial(setattr, how.optimizer, "_numel_cache", None))
    return states


def cut_gradients(
    tensor: Tensor, cuts: Iterable[tuple[int, Tensor, bool]]
) -> list[tuple[Tensor, Tensor]]:
    """What the gradient of a parameter, which is being accumulated, becomes: (parameter, gradient);
    [] where it has none.

    cuts: (dimension, index, whether its entries read units) each. New entries are zero. What a unit
    has got so far is shared between its twins, as its outgoing weights are; those weights get the
    unit's gradient each.
    """
    gradient = tensor.grad
    if gradient is None or gradient.shape != tensor.shape:
        return []
    sparse = gradient.sparse_dim() if gradient.is_sparse else 0
    gradient = gradient.detach().to_dense() if sparse else gradient.detach()
    for dim, index, reads in cuts:
        gradient = take(gradient, dim, index)
        if not reads:
            counts = torch.bincount(index - NEW)[index - NEW].masked_fill(index == NEW, 1)
            shape = [1] * gradient.dim()
            shape[dim] = len(index)
            gradient /= counts.to(gradient).view(shape)
    return [(tensor, gradient.to_sparse(sparse) if sparse else laid_out_as(tensor, gradient))]


def take(tensor: Tensor, dim: int, index: Tensor, fill: float | Tensor = 0.0) -> Tensor:
    """A new tensor whose entry j along `dim` is entry index[j] of `tensor`, or `fill` where
    index[j] is `NEW`.

    index: whole numbers, on the CPU. fill: a number, or a tensor that broadcasts over the new
    slices.
    """
    out = tensor.index_select(dim, index.clamp_min(0).to(tensor.device))
    if len(new := (index == NEW).nonzero()[:, 0]):
        shape = [*out.shape[:dim], len(new), *out.shape[dim + 1 :]]
        filled = fill.expand(shape) if isinstance(fill, Tensor) else out.new_full(shape, fill)
        out.index_copy_(dim, new.to(out.device), filled)
    return out


def cut(
    state: dict[str, Any],
    shape: torch.Size,
    dim: int,
    index: Tensor,
    name: str,
    new_state_fraction: float = 1.0,
    ways: Mapping[str, Way] = KNOWN,
) -> dict[str, Any]:
    """`state[p]` of an optimizer after dimension `dim` of p, which had `shape`, was changed by
    `index`.

    A tensor of p's shape is cut along `dim`, one that has size 1 in place of some of p's sizes as
    well; there size 1 stays. Numbers stay. Anything else raises `Unsupported` naming the parameter
    and the entry. Holds for every optimizer of `torch.optim` but LBFGS, which keeps vectors of all
    parameters. new_state_fraction: see `checked_fraction`. ways: see `handled`; new entries of a
    copy of the weights are zero here, and get their values later.
    """
    return {
        key: _cut_one(key, value, shape, dim, index, name, new_state_fraction, ways)
        for key, value in state.items()
    }


def fits(value: Any, shape: torch.Size) -> bool:
    """Whether an entry of the state of a parameter of `shape` can be cut as the parameter is, or
    stays.
    """
    if isinstance(value, Tensor):
        return value.dim() == 0 or _like(value, shape)
    if isinstance(value, (list, tuple, dict)):
        return not value
    return value is None or isinstance(
        value, (bool, int, float, complex, str, torch.dtype, torch.device)
    )


def at_home(key: str, value: Tensor, p: Tensor, optimizer: Optimizer) -> bool:
    """Whether a tensor may be state of the parameter p: of its shape; of an unknown name, between
    its sizes or of all.
    """
    sizes = {1, *p.shape, p.numel()}
    between = value.dim() <= 2 and sizes.issuperset(value.shape)
    return fits(value, p.shape) or (
        key not in KNOWN and (between or value.numel() in _totals(optimizer))
    )


def laid_out_as(old: Tensor, new: Tensor) -> Tensor:
    """`new` in the memory format of `old`: a network in channels_last stays so."""
    last = torch.channels_last
    if old.dim() == 4 and old.is_contiguous(memory_format=last) and not old.is_contiguous():
        return new.contiguous(memory_format=last)
    return new


def _like(value: Any, shape: torch.Size) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dim() == len(shape)
        and all(size in (1, whole) for size, whole in zip(value.shape, shape, strict=True))
    )


def _cut_one(
    key: str,
    value: Any,
    shape: torch.Size,
    dim: int,
    index: Tensor,
    name: str,
    new_state_fraction: float,
    ways: Mapping[str, Way],
) -> Any:
    if not fits(value, shape):
        raise Unsupported(_no_rule(key, value, torch.empty(shape, device="meta"), name))
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value.clone() if isinstance(value, Tensor) else value
    factored = key in FACTORED and dim == FACTORED[key] % value.dim()
    if factored or (value.shape[dim] == 1 and shape[dim] != 1):
        return value.clone()
    old = index[index != NEW]
    if ways.get(key) != "mean" or len(old) in (0, len(index)):
        return take(value, dim, index)
    mean = value.index_select(dim, old.to(value.device)).mean(dim, keepdim=True)
    return take(value, dim, index, mean * new_state_fraction ** SCALES.get(key, 1.0))


def _move(copied: Tensor, parameter: Tensor, taken: Tensor) -> None:
    """Move a copy of the weights as the weights moved from their kept entries, new ones zero, to
    what they are.

    A twin's outgoing weights keep the whole distance from the copy, as they keep the unit's whole
    momentum.
    """
    with torch.no_grad():
        copied += parameter.detach().to(copied) - taken.to(copied)


def _near(optimizer: Optimizer) -> dict[str, Way]:
    """The entries that are a copy or an average of the weights, by their values: {name:
    "parameter"}.

    Such an entry v is near the weights p: |v - p| <= NEAR |p|, the norms taken over all parameters
    of the optimizer that have the entry, since a bias alone may be near its momentum by chance.
    Measured over 3,000 steps on digits, perceptrons of 8 and 64 units: at most 0.77 for the copies
    of schedule-free SGD, Lookahead, D-Adaptation and ASGD; at least 0.96 for momenta and second
    moments, 1 for fresh zeros. Names that are known are taken by their names, but a copy of nothing
    but zeros does not hold the weights yet.
    """
    sums: dict[str, list[float]] = {}
    for p, state in _by_parameter(optimizer):
        for key, value in state.items():
            if _may_be_copy(key, value, p):
                own = sums.setdefault(key, [0.0, 0.0, 0.0])
                exact = torch.promote_types(p.dtype, torch.float32)
                weights = p.detach().to(exact)
                copied = value.detach().to(p.device, exact)
                for number, tensor in enumerate((copied - weights, weights, copied)):
                    own[number] += float(tensor.square().sum())
    near: dict[str, Way] = {}
    for key, (distance, size, own_size) in sums.items():
        # |v - p|^2 <= NEAR^2 |p|^2
        if size > 0 and distance <= NEAR**2 * size:
            near[key] = "parameter"
        if size > 0 and own_size == 0:
            near[key] = "zero"
    return near


def _may_be_copy(key: str, value: Any, p: Tensor) -> bool:
    """Whether the name and the shape of an entry of the state of p allow for a copy of it."""
    if KNOWN.get(key) not in (None, "parameter") or not isinstance(value, Tensor):
        return False
    return value.dim() > 0 and value.shape == p.shape and value.is_floating_point()


def _by_parameter(optimizer: Optimizer) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    for p, state in optimizer.state.items():
        if isinstance(p, Tensor) and isinstance(state, dict):
            yield p, state


def _strange(
    optimizer: Optimizer, changed: Mapping[int, str], ways: Mapping[str, Way]
) -> Iterator[Tensor]:
    """The parameters whose state is to be dropped. Raises `Unsupported` where one has no rule and
    is to be kept.
    """
    _refuse_other_keys(optimizer)
    totals = _totals(optimizer)
    # a square weight has a preconditioner of its own shape; beside one that is not square its name
    # tells
    odd = {
        key
        for p, state in _by_parameter(optimizer)
        for key, value in state.items()
        if key not in KNOWN and not fits(value, p.shape)
    }
    for p, state in _by_parameter(optimizer):
        touched = id(p) in changed
        strange = [key for key, value in state.items() if _at_once(optimizer, value, p, totals)]
        at_once = bool(strange)
        if touched:
            strange += [
                key
                for key, value in state.items()
                if key in odd or not fits(value, p.shape) or _symmetric(key, value)
            ]
        asked = (touched or at_once) and any(ways.get(key) == "drop" for key in state)
        if asked or (strange and ways.get("*") == "drop"):
            yield p
            continue
        for key in strange:
            if at_once or key not in ways or not fits(state[key], p.shape):
                raise Unsupported(_no_rule(key, state[key], p, changed.get(id(p)), at_once))


def _refuse_other_keys(optimizer: Optimizer) -> None:
    """Raises `Unsupported` where tensors are kept under what is no parameter."""
    for key, value in optimizer.state.items():
        if not isinstance(key, Tensor) and _tensors(value):
            raise Unsupported(
                f"{type(optimizer).__name__} keeps tensors under {key!r}, which is no parameter: "
                "no rule to resize them; rebuild the optimizer after the resize"
            )


def _at_once(optimizer: Optimizer, value: Any, p: Tensor, totals: set[int]) -> bool:
    """Whether an entry of the state of p is of all parameters at once."""
    return (isinstance(optimizer, LBFGS) and bool(_tensors(value))) or _of_all(value, p, totals)


def _totals(optimizer: Optimizer) -> set[int]:
    """How many entries all parameters have together, and those of each group that has several."""
    groups = [[p.numel() for p in group["params"]] for group in optimizer.param_groups]
    every = [size for sizes in groups for size in sizes]
    return {sum(sizes) for sizes in (every, *groups) if len(sizes) > 1}


def _of_all(value: Any, p: Tensor, totals: set[int]) -> bool:
    """Whether an entry of the state of p holds vectors of all parameters."""
    return not _like(value, p.shape) and any(tensor.numel() in totals for tensor in _tensors(value))


def _no_rule(key: str, value: Any, p: Tensor, name: str | None, at_once: bool = False) -> str:
    what = (
        f"of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )
    whose = f"'{name}'" if name else "a parameter"
    why = (
        "it is of all parameters at once"
        if at_once
        else f"the parameter is of shape {tuple(p.shape)}"
    )
    return (
        f"optimizer state '{key}' of {whose} is {what} and {why}: no rule to resize it; nothing "
        f"was changed. Give states={{'{key}': 'drop'}} to begin that parameter's state anew, or "
        "rebuild the optimizer after the resize"
    )


def _symmetric(key: str, value: Any) -> bool:
    """Whether an entry of an unknown name is a preconditioner of a square weight: a symmetric
    matrix, not of one number.
    """
    if (
        key in KNOWN
        or not isinstance(value, Tensor)
        or value.dim() != 2
        or value.shape[0] != value.shape[1]
        or len(value) < 2
    ):
        return False
    return torch.equal(value, value.T) and bool((value != value[0, 0]).any())


def _tensors(value: Any) -> list[Tensor]:
    """The tensors with entries, not single numbers, in anything."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.dim()]


def _own(optimizer: Optimizer) -> list[Any]:
    """What an optimizer keeps beside its groups and its state."""
    return [
        value
        for key, value in vars(optimizer).items()
        if key not in ("state", "param_groups", "defaults")
    ]


def _refuse_outside(optimizer: Optimizer, touched: Sequence[tuple[str, Tensor]]) -> None:
    """Copies of the weights, or vectors of them all, that stand outside of the state cannot be
    found by parameter.
    """
    held = [p for group in optimizer.param_groups for p in group["params"]]
    sizes = {tensor.shape: name for name, tensor in touched}
    total = torch.Size([sum(p.numel() for p in held)])
    beside = [
        value for group in optimizer.param_groups for key, value in group.items() if key != "params"
    ]
    for leaf in _tensors([_own(optimizer), beside]):
        if (
            leaf.numel() > 1
            and (leaf.shape in sizes or leaf.shape == total)
            and not any(leaf is p for p in held)
        ):
            raise Unsupported(
                f"{type(optimizer).__name__} keeps a tensor of shape {tuple(leaf.shape)} outside "
                f"of its state, as large as {sizes.get(leaf.shape, 'all parameters')}: no rule to "
                "resize it; rebuild the optimizer after the resize"
            )
