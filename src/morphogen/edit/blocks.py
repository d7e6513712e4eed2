"""Blocks join and leave at the end of a stack: of a `LearnedDepth`, or of the `nn.Sequential` or
`nn.ModuleList` of a model.

A new block leaves the function as it is. In a `LearnedDepth` it is what `block(i)` builds, and its
gate is closed. In a plain stack it is a copy of the last block, fresh wherever a part knows how to
reset itself, and the last layer of each of its residual branches starts at zero: x + f(x) = x.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.edit.numbers import number, recount
from morphogen.edit.preserve_state import preserve_state
from morphogen.edit.watch import UndoStack
from morphogen.errors import PlanError
from morphogen.layers.protocol import has_blocks
from morphogen.layers.stack import reinitialised
from morphogen.random_state import random_kept
from morphogen.tracing.modes import eval_mode, train_mode
from morphogen.tracing.residual import closing
from morphogen.tracing.trace import trace

Stack = nn.Sequential | nn.ModuleList


def stacks(model: nn.Module) -> dict[str, Stack]:
    """What blocks can join and leave, by the name that `AddBlock` and `DropBlock` take."""
    known: dict[str, Stack] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if has_blocks(module):
            known[name] = module.blocks
            inside.add(module.blocks)
        elif isinstance(module, Stack) and module not in inside:
            known[name] = module
    return known


def is_plain(model: nn.Module, name: str) -> bool:
    """Whether a stack is the model's own, without gates."""
    return not has_blocks(model.get_submodule(name))


def new_block(model: nn.Module, name: str) -> nn.Module:
    """A fresh block for the end of the stack, at the width that its blocks have now, numbered as
    they are.
    """
    module = model.get_submodule(name)
    blocks = stacks(model)[name]
    block = module.new_block() if has_blocks(module) else reinitialised(copy.deepcopy(blocks[-1]))
    return number(block, list(blocks), model, name)


def change_blocks(
    model: nn.Module,
    name: str,
    delta: int,
    optimizers: Sequence[Optimizer],
    generator: torch.Generator | None,
    example: Tensor | tuple[Any, ...] | None,
    undo_stack: UndoStack,
) -> None:
    """One more block at the end of a stack, or one fewer; what takes it back is appended to
    `undo_stack`.
    """
    for optimizer in optimizers:
        keep_groups(optimizer, undo_stack)
    if delta < 0:
        _drop_block(model, name, optimizers, undo_stack)
    else:
        _add_block(model, name, optimizers, generator, example, undo_stack)


def _drop_block(
    model: nn.Module, name: str, optimizers: Sequence[Optimizer], undo_stack: UndoStack
) -> None:
    blocks = stacks(model)[name]
    recount(model, name, len(blocks), -1, undo_stack)
    undo_stack.append(_putter(blocks._modules))
    _, last = detach(blocks)
    # what the block shared with others stays trained
    live = {id(p) for p in model.parameters()}
    gone = [p for p in last.parameters() if id(p) not in live]
    for optimizer in optimizers:
        for parameter in gone:
            _forget(optimizer, parameter)


def _add_block(
    model: nn.Module,
    name: str,
    optimizers: Sequence[Optimizer],
    generator: torch.Generator | None,
    example: Tensor | tuple[Any, ...] | None,
    undo_stack: UndoStack,
) -> None:
    blocks = stacks(model)[name]
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with random_kept(seed):
        block = new_block(model, name)
    # what the block shares with others is trained already
    held = {id(p) for p in model.parameters()}
    recount(model, name, len(blocks), 1, undo_stack)
    undo_stack.append(_putter(blocks._modules))
    key = attach(blocks, block)
    if is_plain(model, name):
        _close(model, name, key, example)
    joining = [(like, new) for like, new in _pairs(blocks, block) if id(new) not in held]
    for optimizer in optimizers:
        for like, new in joining:
            _join(optimizer, like, new)


def place(
    model: nn.Module,
    name: str,
    module: nn.Module,
    like: Tensor,
    optimizers: Sequence[Optimizer],
    undo_stack: UndoStack,
) -> None:
    """`module` comes to stand at `name`, in the place of another or of none, and its parameters
    join the groups that hold `like`; those that leave the model leave the optimizers. What takes it
    back is appended to `undo_stack`.
    """
    parent, _, key = name.rpartition(".")
    holder = model.get_submodule(parent)
    old = holder._modules.get(key)
    module.train(holder.training if old is None else old.training)
    undo_stack.append(_putter(holder._modules))
    holder._modules[key] = module
    live = {id(p) for p in model.parameters()}
    gone = [] if old is None else [p for p in old.parameters() if id(p) not in live]
    for optimizer in optimizers:
        keep_groups(optimizer, undo_stack)
        for parameter in module.parameters():
            _join(optimizer, like, parameter)
        for parameter in gone:
            _forget(optimizer, parameter)


def freeze(
    model: nn.Module, name: str, optimizers: Sequence[Optimizer], undo_stack: UndoStack
) -> None:
    """The parameter called `name` learns no more; what takes it back is appended to
    `undo_stack`.
    """
    parameter = model.get_parameter(name)
    undo_stack.append(partial(parameter.requires_grad_, parameter.requires_grad))
    parameter.requires_grad_(False)
    for optimizer in optimizers:
        keep_groups(optimizer, undo_stack)
        _forget(optimizer, parameter)


def attach(blocks: Stack, block: nn.Module) -> str:
    """Put a block at the end, under the first free number from the stack's length on; other names
    stay. Returns its name.
    """
    key = next(
        str(number) for number in itertools.count(len(blocks)) if str(number) not in blocks._modules
    )
    blocks._modules[key] = block
    return key


def detach(blocks: Stack) -> tuple[str, nn.Module]:
    """Take the last block away, name and all; other names stay."""
    key, block = blocks._modules.popitem()
    assert block is not None
    return key, block


def _putter(live: dict[Any, Any]) -> Callable[[], None]:
    """Gives a dictionary what it holds now, in this order."""
    held = dict(live)

    def put() -> None:
        live.clear()
        live.update(held)

    return put


def _pairs(blocks: Stack, block: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """(an older parameter, one of the new block that is to be trained like it): of the last block
    of the same make, or else any of as many dimensions.
    """
    names = [name for name, _ in block.named_parameters()]
    older = list(blocks)[:-1]
    for other in reversed(older):
        if [name for name, _ in other.named_parameters()] == names:
            yield from zip(other.parameters(), block.parameters(), strict=True)
            return
    known = [p for other in older for p in other.parameters()]
    for new in block.parameters():
        yield next((p for p in reversed(known) if p.dim() == new.dim()), known[-1]), new


def _close(model: nn.Module, name: str, key: str, example: Tensor | tuple[Any, ...] | None) -> None:
    """Set to zero what makes the new block the identity, and see that it is."""
    block = stacks(model)[name]._modules[key]
    assert block is not None
    if any(p.is_meta for p in block.parameters()):
        return  # a proof on shapes alone
    if example is None:
        raise PlanError(
            f"AddBlock('{name}'): give example=..., to find what the new block adds to its input"
        )
    tensors = dict(model.named_parameters())
    graph = trace(model, example, training=False)
    last_layers = [
        tensor for tensor in closing(graph, f"{name}.{key}".removeprefix(".")) if tensor in tensors
    ]
    for tensor in last_layers:
        tensors[tensor].detach().zero_()
    if not (
        _is_identity(model, block, example, eval_mode)
        and _is_identity(model, block, example, train_mode)
    ):
        raise PlanError(
            f"AddBlock('{name}'): its blocks do not just add to what they are given, x + f(x) (a "
            "norm after the sum is one reason), or the forward pass does not run the new one, so "
            "it could not keep the function; put a LearnedDepth there"
        )


def _is_identity(
    model: nn.Module,
    block: nn.Module,
    example: Tensor | tuple[Any, ...],
    mode: Callable[[nn.Module], AbstractContextManager[None]],
) -> bool:
    """Whether `block`, where `model` runs it on `example`, gives exactly what it gets. Training
    mode may leave it out, or not run on the example at all.
    """
    seen: list[bool] = []

    def compare(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        seen.append(bool(inputs) and isinstance(first, Tensor) and torch.equal(inputs[0], first))

    # the input may be changed in place (out += x), so a copy of it is kept
    before = block.register_forward_pre_hook(
        lambda _, inputs: tuple(v.clone() if isinstance(v, Tensor) else v for v in inputs)
    )
    after = block.register_forward_hook(compare)
    try:
        with mode(model), preserve_state(model), torch.no_grad():
            model(*(example if isinstance(example, tuple) else (example,)))
    except Exception:
        if mode is eval_mode:
            raise
        return all(seen)
    finally:
        before.remove()
        after.remove()
    return all(seen) and (bool(seen) or mode is not eval_mode)


def keep_groups(optimizer: Optimizer, undo_stack: UndoStack) -> None:
    """What gives the optimizer the parameters, in their groups, and the state that it has now is
    appended to `undo_stack`.
    """
    groups = [(group["params"], list(group["params"])) for group in optimizer.param_groups]
    state = dict(optimizer.state)

    def put() -> None:
        for live, held in groups:
            live[:] = held
        optimizer.state.clear()
        optimizer.state.update(state)

    undo_stack.append(put)


def _forget(optimizer: Optimizer, parameter: Tensor) -> None:
    for group in optimizer.param_groups:
        group["params"][:] = [held for held in group["params"] if held is not parameter]
    optimizer.state.pop(parameter, None)


def _join(optimizer: Optimizer, like: Tensor, parameter: Tensor) -> None:
    for group in optimizer.param_groups:
        held = [id(p) for p in group["params"]]
        # an optimizer that wraps another may hold the very same groups
        if id(like) in held and id(parameter) not in held:
            group["params"].append(parameter)
