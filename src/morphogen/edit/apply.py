"""Carry out a plan, all or nothing: `apply_(model, plan, optimizers) -> Applied`.

A parameter keeps its identity (`p.data` is replaced, see `_setter`), so every optimizer, scheduler,
hook and user reference that held it holds the live one, and every optimizer's state is cut by the
same rows. Its version counter is raised, so that a backward through a graph from before the resize
fails loudly.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from morphogen.edit.base import note_blocks, note_sizes
from morphogen.edit.blocks import change_blocks, freeze, is_plain, place
from morphogen.edit.edit import Edit
from morphogen.edit.follow import undeclared
from morphogen.edit.inits.constant import INITS, Inits, keeps_function, share_out
from morphogen.edit.optim import (
    Handled,
    Way,
    checked_fraction,
    cut_gradients,
    cut_states,
    drop_states,
    handled,
    laid_out_as,
    take,
    whole,
)
from morphogen.edit.plan import Plan, Row, changes, plan, tensors_of
from morphogen.edit.probe import change_of, probe
from morphogen.edit.replicas import refuse_spread
from morphogen.edit.shapes import shapes_of, stops
from morphogen.edit.sizes import refresh_sizes
from morphogen.edit.watch import Put, PutState, UndoStack, all_or_nothing, rollback, seen
from morphogen.errors import NotExact, PlanError
from morphogen.layers.protocol import Rewiring, Wired, is_wired
from morphogen.random_state import ALONE
from morphogen.record import Receipt
from morphogen.tracing.modes import eval_mode, train_mode, writes
from morphogen.tracing.trace import trace
from morphogen.tracing.widths import widths

NOTHING: Mapping[str, Tensor] = {}
BY_VALUE: Mapping[str, Way] = {}


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
    states: Mapping[str, Way] = BY_VALUE,
) -> Applied:
    """Trace, plan and apply in one call. See `apply_` for the arguments and `plan` for the
    errors.
    """
    refuse_spread(model)
    return apply_(
        model,
        plan(model, widths(trace(model, example)), edits, generator=generator),
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
    states: Mapping[str, Way] = BY_VALUE,
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
    if ema and (values or plan.values):
        raise PlanError(
            "values=: an average has old entries of its own, which whole tensors would replace; "
            "give no ema, and copy"
        )
    keeps = plan.keeps and keeps_function(inits) and not values
    fraction = checked_fraction(new_state_fraction)
    how = _How(example, generator, inits, fraction, {**plan.values, **values}, keeps)
    handling = _handled(model, plan, optimizers, states)
    with ALONE:
        if example is not None:
            prove(model, plan, example)
        undo_stack: UndoStack = []
        undo_stack.append(_redraw(generator))
        with all_or_nothing(undo_stack):
            receipt = _change(model, plan, optimizers, handling, how, ema, undo_stack)
            changed = seen(tensors_of(model), undo_stack)
            del undo_stack[0]  # what was drawn stays drawn
        return Applied(receipt, undo_stack, lambda: changed(tensors_of(model)))


@dataclass(frozen=True)
class _How:
    """How a plan is carried out, see `apply_`. values: the plan's among them. keeps: whether the
    function has to stay.
    """

    example: Tensor | tuple[Any, ...] | None
    generator: torch.Generator | None
    inits: Inits
    new_state_fraction: float
    values: Mapping[str, Tensor]
    keeps: bool


@dataclass(frozen=True)
class _Computed:
    """What is to be written: values and gradients of tensors, states of optimizers. late: what
    waits for the final values.
    """

    values: list[tuple[Tensor, Tensor]]
    gradients: list[tuple[Tensor, Tensor]]
    states: list[tuple[Optimizer, Tensor, dict[str, Any]]]
    late: list[Callable[[], None]]


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
    how: _How,
    ema: Sequence[nn.Module],
    undo_stack: UndoStack,
) -> Receipt:
    """Carry out the plan; before anything changes, what takes it back is appended to `undo_stack`.
    See `apply_`.
    """
    redraw = _redraw(how.generator)
    before = probe(model, how.example)
    parameters = count_parameters(model)
    computed = _computed(model, plan, handling, how)
    layers = [(_wired_for(model, name, wiring), wiring) for name, wiring in plan.wirings]
    # first in, last out: wirings go back once the tensors have
    undo_stack += [layer.rewirer() for layer, _ in layers]
    note_sizes(model, [tensor for tensor, _ in computed.values], edited=bool(plan.edits))
    note_blocks(model, [*plan.blocks, *_joining(model, plan)])
    try:
        _write(model, plan, computed, layers, how, undo_stack)
        _move_modules(model, plan, optimizers, how, undo_stack)
        after = probe(model, how.example)
        change = change_of(before, after, plan if how.keeps else None)
        for copied in ema:
            redraw()  # the same draws give its new units the same values
            _change_average(model, copied, plan, how, undo_stack)
    except NotExact:
        raise
    except Exception as error:
        raise PlanError(
            f"the resized model does not run ({error}); nothing was changed. Plan: {plan}"
        ) from error
    edits = (*map(str, plan.edits), *plan.rewrites)
    counts = (parameters, count_parameters(model))
    return Receipt(edits, dict(plan.sizes), counts, change, how.keeps)


def _joining(model: nn.Module, plan: Plan) -> list[tuple[str, int]]:
    """(stack, 1) for each module that takes the place of none."""
    places = [placed.name.rpartition(".") for placed in plan.modules]
    return [
        (stack, 1) for stack, _, key in places if key not in model.get_submodule(stack)._modules
    ]


def _write(
    model: nn.Module,
    plan: Plan,
    computed: _Computed,
    layers: Sequence[tuple[Wired, Rewiring]],
    how: _How,
    undo_stack: UndoStack,
) -> None:
    """New values, gradients, states, wirings and the sizes that go with them."""
    commit(computed.values, computed.states, undo_stack)
    for tensor, gradient in computed.gradients:
        tensor.grad = gradient
    for layer, wiring in layers:
        layer.rewire(wiring)
    _regroup(model, plan, undo_stack)
    _set_attributes(model, plan, undo_stack)
    refresh_sizes(model, undo_stack)
    for (layer, wiring), (name, _) in zip(layers, plan.wirings, strict=True):
        if f"{name}.weight".removeprefix(".") not in how.values:
            layer.start(wiring.first, how.generator)
    for settle in computed.late:
        settle()


def _move_modules(
    model: nn.Module,
    plan: Plan,
    optimizers: Sequence[Optimizer],
    how: _How,
    undo_stack: UndoStack,
) -> None:
    """Blocks and other modules that come and go, and parameters that learn no more.

    After the sizes: to find what a new block adds to its input, the model is run.
    """
    for name, delta in plan.blocks:
        change_blocks(model, name, delta, optimizers, how.generator, how.example, undo_stack)
    for name in plan.frozen:
        freeze(model, name, optimizers, undo_stack)
    for placed in plan.modules:
        like = tensors_of(model)[placed.like]
        module = placed.build(model, how.generator)
        if like.is_meta:
            module = module.to(like.device)
        place(model, placed.name, module, like, optimizers, undo_stack)


def _change_average(
    model: nn.Module, copied: nn.Module, plan: Plan, how: _How, undo_stack: UndoStack
) -> None:
    """Change a copy of the model alike; plain stacks alone need the example for it."""
    inner = copied.module if isinstance(copied, AveragedModel) else copied
    plain = any(is_plain(model, name) for name, _ in plan.blocks)
    own = replace(how, example=how.example if plain else None)
    _change(inner, plan, (), (), own, (), undo_stack)


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
    how = _How(None, torch.Generator(), INITS, 1.0, plan.values, keeps=False)
    _change(bare, plan, (), (), how, (), [])
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


def _computed(model: nn.Module, plan: Plan, handling: Sequence[Handled], how: _How) -> _Computed:
    """What becomes of every touched tensor, of its gradient and of its state in the optimizers;
    nothing is written yet.
    """
    late: list[Callable[[], None]] = []
    computed = _Computed([], [], drop_states(handling, late), late)
    for tensor, rows in _by_tensor(model, plan.rows):
        value = _value_of(tensor, rows, how)
        computed.values.append((tensor, laid_out_as(tensor, value)))
        cuts = [(row.dim, row.index, row.tensor) for row in rows]
        computed.states.extend(cut_states(handling, tensor, cuts, how.new_state_fraction, late))
        reading = [(row.dim, row.index, row.role.startswith("in")) for row in rows]
        computed.gradients.extend(cut_gradients(tensor, reading))
    return computed


def _value_of(tensor: Tensor, rows: Sequence[Row], how: _How) -> Tensor:
    """What a tensor becomes by its rows, one after the other, or the value that is given for it."""
    value = tensor.detach()
    for row in rows:
        value = take(value, row.dim, row.index)
        if row.role.startswith("in"):
            share_out(value, row.dim, row.index, how.generator)
        if len(new := row.new().to(value.device)):
            made = how.inits[row.role](row, value, new, how.generator)
            value.index_copy_(row.dim, new, made)
    name = rows[-1].tensor
    if name not in how.values:
        return value
    return _checked(how.values[name].to(value), value.shape, name)


def _handled(
    model: nn.Module, plan: Plan, optimizers: Sequence[Optimizer], states: Mapping[str, Way]
) -> list[Handled]:
    tensors = tensors_of(model)
    touched = [(row.tensor, tensors[row.tensor]) for row in plan.rows]
    moving = bool(plan.blocks or plan.modules or plan.frozen)
    return handled(optimizers, touched, moving, states)


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
        if not torch.equal(other.index, row.index):
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


def put(tensor: Tensor, value: Tensor) -> None:
    """Give a parameter or buffer other data, of any shape, in its own memory format; every holder
    holds the live one.
    """
    _setter(tensor, laid_out_as(tensor, value), None)()


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
