"""Carry out a plan, all or nothing: `apply_(model, plan, optimizers) -> Applied`.

A parameter keeps its identity (`p.data` is replaced, see `_setter`), so every optimizer, scheduler,
hook and user reference that held it holds the live one, and every optimizer's state is cut by the
same rows. Its version counter is raised, so that a backward through a graph from before the resize
fails loudly.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves

from morphogen.edit.base import note_blocks, note_sizes
from morphogen.edit.blocks import change_blocks, is_plain
from morphogen.edit.edit import Edit
from morphogen.edit.follow import followed, undeclared
from morphogen.edit.inits.constant import INITS, Inits, keeps_function, share_out
from morphogen.edit.optim import (
    Handled,
    checked_fraction,
    cut_gradients,
    cut_states,
    drop_states,
    handled,
    laid_out_as,
    take,
    whole,
)
from morphogen.edit.plan import NEW, Plan, Row, changes, plan, tensors_of
from morphogen.edit.preserve_state import preserve_state
from morphogen.edit.replicas import refuse_spread
from morphogen.edit.shapes import shapes_of, stops
from morphogen.edit.watch import Put, PutState, UndoStack, all_or_nothing, rollback, seen
from morphogen.errors import NotExact, PlanError
from morphogen.layers.protocol import Rewiring, Wired, is_wired, keeps_sizes
from morphogen.random_state import ALONE
from morphogen.record import Receipt
from morphogen.tracing.modes import eval_mode, train_mode, writes
from morphogen.tracing.trace import trace
from morphogen.tracing.widths import widths

# The sizes that modules keep beside their tensors, read back from the tensors after a resize.
_SIZES: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = {
    nn.Linear: lambda m: {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]},
    nn.modules.conv._ConvNd: lambda m: _convolution(m),
    # batch and instance norms
    nn.modules.batchnorm._NormBase: lambda m: (
        {}
        if m.running_mean is None and m.weight is None
        else {"num_features": len(_first(m.weight, m.running_mean))}
    ),
    nn.GroupNorm: lambda m: {} if m.weight is None else {"num_channels": len(m.weight)},
    nn.RMSNorm: lambda m: {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)},
    nn.RNNBase: lambda m: {
        "input_size": m.weight_ih_l0.shape[1],
        "hidden_size": m.weight_hh_l0.shape[1],
    },
    nn.MultiheadAttention: lambda m: _attention(m),
    nn.LayerNorm: lambda m: {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)},
    nn.PReLU: lambda m: {"num_parameters": m.weight.shape[0]},
    nn.Embedding: lambda m: {"embedding_dim": m.weight.shape[1]},
}


NOTHING: Mapping[str, Tensor] = {}
BY_VALUE: Mapping[str, str] = {}


@dataclass(frozen=True)
class Applied:
    """A carried-out resize: the `receipt` says what happened, `undo()` takes it back, bit for bit,
    weights and state.
    """

    receipt: Receipt
    _undo_stack: UndoStack
    _changed: Callable[[], str]

    def undo(self) -> None:
        """Restore weights, buffers, gradients and optimizer state of just before. Newest resize
        first; once only.

        Raises `PlanError`, before anything changes, where a later resize still stands, or the model
        was trained or written to since, `p.data = ...` included: old and new weights would be
        mixed, or what was written lost.
        """
        with ALONE:
            if not self._undo_stack:
                raise PlanError("undo: this resize was already undone")
            if what := self._changed():
                raise PlanError(
                    f"undo: the model was changed since this resize ({what}); undo at once, later "
                    "resizes first, or Shrink"
                )
            rollback(self._undo_stack)


def resize(
    model: nn.Module,
    edits: Iterable[Edit],
    *,
    example: Tensor | tuple[Any, ...],
    optimizers: Sequence[Optimizer] = (),
    schedulers: Sequence[LRScheduler] = (),
    ema: Sequence[nn.Module] = (),
    generator: torch.Generator | None = None,
    inits: Inits = INITS,
    new_state_fraction: float = 1.0,
    values: Mapping[str, Tensor] = NOTHING,
    states: Mapping[str, str] = BY_VALUE,
) -> Applied:
    """Trace, plan and apply in one call. See `apply_` for the arguments and `plan` for the
    errors.
    """
    refuse_spread(model)
    return apply_(
        model,
        plan(model, widths(trace(model, example)), edits),
        optimizers=optimizers,
        schedulers=schedulers,
        ema=ema,
        example=example,
        generator=generator,
        inits=inits,
        new_state_fraction=new_state_fraction,
        values=values,
        states=states,
    )


def apply_(
    model: nn.Module,
    plan: Plan,
    *,
    optimizers: Sequence[Optimizer] = (),
    schedulers: Sequence[LRScheduler] = (),
    ema: Sequence[nn.Module] = (),
    example: Tensor | tuple[Any, ...] | None = None,
    generator: torch.Generator | None = None,
    inits: Inits = INITS,
    new_state_fraction: float = 1.0,
    values: Mapping[str, Tensor] = NOTHING,
    states: Mapping[str, str] = BY_VALUE,
) -> Applied:
    """Change `model`, its gradients and the state of all `optimizers` as `plan` says, or leave all
    as they were and raise.

    example: where given, the model runs on it before and after (evaluation mode, no gradient): the
    receipt then states the largest output change, and a model that no longer runs, or (`NotExact`)
    does not keep the function although the plan is one that keeps it, is rolled back. generator:
    draws the values of new units. schedulers: nothing of them changes, since parameters and groups
    stay; they are checked to drive one of `optimizers`. ema: copies of the model (`AveragedModel`
    too) that are changed alike, their new units equal to the model's. inits: how the values of new
    units start, by role, see `inits.constant`. new_state_fraction: how their optimizer state
    starts, see `optim.checked_fraction`. values: whole tensors of the plan, by name, as they should
    be afterwards instead, see `inits.firefly`. states: what becomes of entries of an optimizer's
    state, by name: "parameter" (a copy of the weights: new entries start as they do), "zero",
    "mean" or "drop", see `optim.handled`; without it known names and the values decide.
    """
    refuse_spread(model)
    optimizers = whole(optimizers)
    for scheduler in schedulers:
        if all(scheduler.optimizer is not optimizer for optimizer in optimizers):
            raise PlanError(
                f"schedulers: a {type(scheduler).__name__} drives an optimizer that is not in "
                "optimizers=[...]"
            )
    if values and ema:
        raise PlanError(
            "values=: an average has old entries of its own, which whole tensors would replace; "
            "give no ema, and copy"
        )
    handling = _handled(model, plan, optimizers, states)
    with ALONE:
        if example is not None:
            prove(model, plan, example)
        undo_stack: UndoStack = []
        undo_stack.append(_redraw(generator))
        with all_or_nothing(undo_stack):
            receipt = _change(
                model,
                plan,
                optimizers,
                handling,
                example,
                generator,
                inits,
                checked_fraction(new_state_fraction),
                values,
                ema,
                undo_stack,
            )
            done = applied(model, receipt, undo_stack)
            del undo_stack[0]  # what was drawn stays drawn
        return done


def _redraw(generator: torch.Generator | None) -> Callable[[], Any]:
    """What lets the generator, torch's own for None, draw again what it draws from here on."""
    if generator is None:
        return partial(torch.set_rng_state, torch.get_rng_state())
    return partial(generator.set_state, generator.get_state())


def _change(
    model: nn.Module,
    plan: Plan,
    optimizers: Sequence[Optimizer],
    handling: Sequence[Handled],
    example: Tensor | tuple[Any, ...] | None,
    generator: torch.Generator | None,
    inits: Inits,
    new_state_fraction: float,
    values: Mapping[str, Tensor],
    ema: Sequence[nn.Module],
    undo_stack: UndoStack,
) -> Receipt:
    """Carry out the plan; before anything changes, what takes it back is appended to `undo_stack`.
    See `apply_`.
    """
    redraw = _redraw(generator)
    before = probe(model, example)
    parameters = count_parameters(model)
    late: list[Callable[[], None]] = []
    made, gradients, cut = _computed(
        model, plan, handling, generator, inits, new_state_fraction, values, late
    )
    # first in, last out: wirings go back once the tensors have
    dags = [(_wired_for(model, name, wiring), wiring) for name, wiring in plan.wirings]
    undo_stack += [dag.rewirer() for dag, _ in dags]
    note_sizes(model, [tensor for tensor, _ in made], edited=bool(plan.edits))
    note_blocks(model, plan.blocks)
    try:
        commit(made, cut, undo_stack)
        for tensor, gradient in gradients:
            tensor.grad = gradient
        for dag, wiring in dags:
            dag.rewire(wiring)
        _regroup(model, plan, undo_stack)
        _set_attributes(model, plan, undo_stack)
        refresh_sizes(model, undo_stack)
        for (name, wiring), (dag, _) in zip(plan.wirings, dags, strict=True):
            if f"{name}.weight".removeprefix(".") not in values:
                dag.start(wiring.first, generator)
        for settle in late:
            settle()
        # after the sizes: to find what a new block adds to its input, the model is run
        for name, delta in plan.blocks:
            change_blocks(model, name, delta, optimizers, generator, example, undo_stack)
        after = probe(model, example)
        keeps = plan.keeps and keeps_function(inits) and not values
        change = change_of(before, after, plan if keeps else None)
        for copied in ema:
            redraw()  # the same draws give its new units the same values
            inner = copied.module if isinstance(copied, AveragedModel) else copied
            needed = example if any(is_plain(model, name) for name, _ in plan.blocks) else None
            _change(
                inner,
                plan,
                (),
                (),
                needed,
                generator,
                inits,
                new_state_fraction,
                values,
                (),
                undo_stack,
            )
    except NotExact:
        raise
    except Exception as error:
        raise PlanError(
            f"the resized model does not run ({error}); nothing was changed. Plan: {plan}"
        ) from error
    edits = tuple(map(str, plan.edits))
    counts = (parameters, count_parameters(model))
    return Receipt(edits, dict(plan.sizes), counts, change, keeps)


def applied(model: nn.Module, receipt: Receipt, undo_stack: UndoStack) -> Applied:
    """What was done to the model as it is now, and what takes it back."""
    changed = seen(tensors_of(model), undo_stack)
    return Applied(receipt, undo_stack, lambda: changed(tensors_of(model)))


def prove(model: nn.Module, plan: Plan, example: Tensor | tuple[Any, ...]) -> None:
    """Carry out the plan on shapes alone; nothing real changes. Raises `PlanError` where the
    resized model would not run, in evaluation or in training mode.

    A model that shapes alone cannot run (a value is read in its forward pass) is left to a run on
    the example.
    """
    try:
        bare = shapes_of(model)
    except Exception:
        return  # what cannot be copied is left to the run on the example as well
    modes = [(eval_mode, "")]
    if stops(bare, example) is not None:
        return
    if stops(bare, example, train_mode) is None:
        modes.append((train_mode, " in training mode"))
    _change(bare, plan, (), (), None, torch.Generator(), INITS, 1.0, NOTHING, (), [])
    for mode, text in modes:
        if error := stops(bare, example, mode):
            hint = undeclared(model, changes(plan.rows, plan.sizes, plan.covers, tensors_of(model)))
            raise PlanError(
                f"the resized model would not run{text} ({error}); nothing was changed.{hint} "
                f"Plan: {plan}"
            ) from error


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters; a shared one counts once."""
    return sum(p.numel() for p in model.parameters())


def _computed(
    model: nn.Module,
    plan: Plan,
    handling: Sequence[Handled],
    generator: torch.Generator | None,
    inits: Inits,
    new_state_fraction: float,
    given: Mapping[str, Tensor],
    late: list[Callable[[], None]],
) -> tuple[
    list[tuple[Tensor, Tensor]],
    list[tuple[Tensor, Tensor]],
    list[tuple[Optimizer, Tensor, dict[str, Any]]],
]:
    """New values of every touched tensor, new gradients, and new optimizer states; nothing is
    written yet.

    What waits for the final values is appended to `late`.
    """
    values = []
    gradients = []
    states = drop_states(handling, late)
    for tensor, rows in _by_tensor(model, plan.rows):
        value = tensor.detach()
        for row in rows:
            index = torch.tensor(row.index)
            value = take(value, row.dim, index)
            if row.role.startswith("in"):
                share_out(value, row.dim, row.index, generator)
            if len(new := (index == NEW).nonzero()[:, 0]):
                new = new.to(value.device)
                value.index_copy_(row.dim, new, inits[row.role](row, value, new, generator))
            if row is rows[-1] and row.tensor in given:
                value = _checked(given[row.tensor].to(value), value.shape, row.tensor)
        values.append((tensor, laid_out_as(tensor, value)))
        cuts = [(row.dim, torch.tensor(row.index), row.tensor) for row in rows]
        states += cut_states(handling, tensor, cuts, new_state_fraction, late)
        gradients += cut_gradients(
            tensor,
            [
                (dim, index, row.role.startswith("in"))
                for (dim, index, _), row in zip(cuts, rows, strict=True)
            ],
        )
    return values, gradients, states


def _handled(
    model: nn.Module, plan: Plan, optimizers: Sequence[Optimizer], states: Mapping[str, str]
) -> list[Handled]:
    tensors = tensors_of(model)
    touched = [(row.tensor, tensors[row.tensor]) for row in plan.rows]
    return handled(optimizers, touched, bool(plan.blocks), states)


def _checked(given: Tensor, shape: torch.Size, name: str) -> Tensor:
    if given.shape != shape:
        raise PlanError(
            f"values: '{name}' is {tuple(given.shape)} and would be {tuple(shape)} after this plan"
        )
    # strides of a search's own would decide which kernels run
    return given.clone(memory_format=torch.contiguous_format)


def _by_tensor(model: nn.Module, rows: Iterable[Row]) -> list[tuple[Tensor, list[Row]]]:
    """Rows grouped by the tensor they change; a tensor tied under two names must be changed alike
    by both.
    """
    tensors = tensors_of(model)
    grouped: dict[int, tuple[Tensor, dict[int, Row]]] = {}
    for row in rows:
        tensor = tensors[row.tensor]
        _, by_dim = grouped.setdefault(id(tensor), (tensor, {}))
        other = by_dim.setdefault(row.dim, row)
        if other.index != row.index:
            raise PlanError(
                f"{row} and {other} are one tensor, but the edits change them differently"
            )
    return [(tensor, list(by_dim.values())) for tensor, by_dim in grouped.values()]


def commit(
    values: Iterable[tuple[Tensor, Tensor]],
    states: Iterable[tuple[Optimizer, Tensor, dict[str, Any]]],
    undo_stack: UndoStack,
) -> None:
    """Write new values and states; what takes them back is appended to `undo_stack`."""
    for tensor, value in values:
        undo_stack.append(_setter(tensor, tensor.data, tensor.grad))
        _setter(tensor, value, None)()
    for optimizer, tensor, state in states:
        undo_stack.append(PutState(optimizer, tensor, optimizer.state[tensor]))
        optimizer.state[tensor] = state


def _setter(tensor: Tensor, data: Tensor, grad: Tensor | None) -> Callable[[], None]:
    return Put(tensor, data, grad, writes(tensor))


def kept_sizes(module: nn.Module) -> dict[str, Any]:
    """The sizes that a module keeps as attributes, as its tensors say they should be."""
    found = {
        k: v
        for kind, sizes in _SIZES.items()
        if isinstance(module, kind)
        for k, v in sizes(module).items()
    }
    return {**found, **module.tensor_sizes()} if keeps_sizes(module) else found


def attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The sizes that all modules keep, and the groups of convolutions, by module."""
    found = {name: kept_sizes(module) for name, module in model.named_modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            found[name]["groups"] = module.groups
    for name, attribute, value in followed(model):
        found[name][attribute] = value
    return {name: sizes for name, sizes in found.items() if sizes}


def refresh_sizes(model: nn.Module, undo_stack: UndoStack) -> None:
    """Set them; what takes it back is appended to `undo_stack`."""
    for module in model.modules():
        for attribute, value in kept_sizes(module).items():
            if (old := getattr(module, attribute)) != value:
                undo_stack.append(lambda m=module, a=attribute, v=old: setattr(m, a, v))  # type: ignore[misc]
                setattr(module, attribute, value)


def put(tensor: Tensor, value: Tensor) -> None:
    """Give a parameter or buffer other data, of any shape, in its own memory format; every holder
    holds the live one.
    """
    _setter(tensor, laid_out_as(tensor, value), None)()


def _convolution(m: Any) -> dict[str, Any]:
    makes, reads = m.weight.shape[:2]
    if isinstance(m, nn.modules.conv._ConvTransposeNd):
        return {"in_channels": makes, "out_channels": reads * m.groups}
    return {"out_channels": makes, "in_channels": reads * m.groups}


def _regroup(model: nn.Module, plan: Plan, undo_stack: UndoStack) -> None:
    """A depthwise convolution has a group for every channel."""
    for row in plan.rows:
        module = model.get_submodule(row.tensor.rpartition(".")[0])
        if row.role == "own" and isinstance(module, nn.modules.conv._ConvNd):
            undo_stack.append(partial(setattr, module, "groups", module.groups))
            module.groups = len(row.index) * module.groups // module.out_channels


def _wired_for(model: nn.Module, name: str, wiring: Rewiring) -> Wired:
    """A model's wired layer, which must be as it was when this was planned."""
    layer = model.get_submodule(name)
    assert is_wired(layer)
    if not layer.wired_for(wiring):
        raise PlanError(
            f"'{name}' was wired otherwise when this was planned; plan again, and wire averages "
            "alike"
        )
    return layer


def _set_attributes(model: nn.Module, plan: Plan, undo_stack: UndoStack) -> None:
    for name, attribute, value in plan.attributes:
        module = model.get_submodule(name)
        undo_stack.append(partial(setattr, module, attribute, getattr(module, attribute)))
        setattr(module, attribute, value)


def _attention(m: nn.MultiheadAttention) -> dict[str, Any]:
    size = m.out_proj.weight.shape[0]
    key, value = (
        (m.k_proj_weight, m.v_proj_weight) if m.in_proj_weight is None else (m.in_proj_weight,) * 2
    )
    return {
        "embed_dim": size,
        "head_dim": size // m.num_heads,
        "kdim": key.shape[1],
        "vdim": value.shape[1],
    }


def _first(*tensors: Tensor | None) -> Tensor:
    return next(t for t in tensors if t is not None)


def probe(model: nn.Module, example: Tensor | tuple[Any, ...] | None) -> Any:
    """The output on the example, for `change_of`; None without one."""
    if example is None:
        return None
    # a model that draws random numbers draws the same ones before and after
    with eval_mode(model), preserve_state(model), torch.no_grad():
        return model(*(example if isinstance(example, tuple) else (example,)))


# units of rounding at the largest output: sums in another order, through many layers
_ROUNDING = 1e4


def change_of(before: Any, after: Any, keeping: object | None) -> float | None:
    """Largest difference of the outputs. Raises `NotExact` where `keeping`, a plan, promised none
    but rounding.
    """
    if before is None:
        return None
    largest = 0.0
    for a, b in zip(tree_leaves(before), tree_leaves(after), strict=True):
        if (
            not isinstance(a, Tensor)
            or not a.is_floating_point()
            or not a.numel()
            or a.shape != b.shape
        ):
            continue
        # equal infinities differ by 0; what became NaN differs by NaN, which no bound allows
        change = float(torch.where(a == b, 0.0, (a - b).abs()).max())
        largest = change if math.isnan(change) else max(largest, change)
        scale = max(1.0, float(torch.nan_to_num(a, posinf=0.0, neginf=0.0).abs().max()))
        if keeping and not change <= (allowed := _ROUNDING * torch.finfo(a.dtype).eps * scale):
            raise NotExact(
                f"this plan should keep the function, but the output moved by {change:.2g} "
                f"(allowed {allowed:.2g}); nothing was changed. Some operation feels units in a "
                f"way that the trace does not show. Plan: {keeping}"
            )
    return largest
