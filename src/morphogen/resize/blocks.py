"""Blocks join and leave at the end of a stack: of a `LearnedDepth`, or of the `nn.Sequential` or `nn.ModuleList` of a model.

A new block leaves the function as it is. In a `LearnedDepth` it is what `block(i)` builds, and its gate is closed. In a plain
stack it is a copy of the last block, fresh wherever a part knows how to reset itself, and the last layer of each of its
residual branches starts at zero: x + f(x) = x.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.errors import PlanError
from morphogen.graph.residual import closing
from morphogen.graph.trace import evaluating, trace
from morphogen.layers.stack import BlockStack, reinitialised

Stack = nn.Sequential | nn.ModuleList


def stacks(model: nn.Module) -> dict[str, Stack]:
    """What blocks can join and leave, by the name that `AddBlock` and `DropBlock` take."""
    found: dict[str, Stack] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, BlockStack):
            found[name] = module.blocks
            inside.add(module.blocks)
        elif isinstance(module, Stack) and module not in inside:
            found[name] = module
    return found


def is_plain(model: nn.Module, name: str) -> bool:
    """Whether a stack is the model's own, without gates."""
    return not isinstance(model.get_submodule(name), BlockStack)


def new_block(model: nn.Module, name: str) -> nn.Module:
    """A fresh block for the end of the stack, at the width that its blocks have now."""
    module = model.get_submodule(name)
    return module.new_block() if isinstance(module, BlockStack) else reinitialised(copy.deepcopy(stacks(model)[name][-1]))


def change_blocks(
    model: nn.Module,
    name: str,
    delta: int,
    optimizers: Sequence[Optimizer],
    generator: torch.Generator | None,
    example: Tensor | tuple[Any, ...] | None,
    back: list[Callable[[], None]],
) -> None:
    """One more block at the end of a stack, or one fewer; what takes it back is appended to `back`."""
    blocks = stacks(model)[name]
    if delta < 0:
        key, last = detach(blocks)
        back.append(partial(blocks._modules.__setitem__, key, last))
        live = {id(p) for p in model.parameters()}  # what the block shared with others stays trained
        for parameter in last.parameters():
            for optimizer in optimizers:
                if id(parameter) not in live:
                    release(optimizer, parameter, back)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        block = new_block(model, name)
    held = {id(p) for p in model.parameters()}  # what the block shares with others is trained already
    key = attach(blocks, block)
    back.append(lambda: blocks._modules.__delitem__(key))
    if is_plain(model, name):
        _close(model, name, key, example)
    for like, new in _pairs(blocks, block):
        for optimizer in optimizers if id(new) not in held else ():
            enrol(optimizer, like, new, back)


def attach(blocks: Stack, block: nn.Module) -> str:
    """Put a block at the end, under the first free number from the stack's length on; other names stay. Returns its name."""
    key = next(str(number) for number in itertools.count(len(blocks)) if str(number) not in blocks._modules)
    blocks._modules[key] = block
    return key


def detach(blocks: Stack) -> tuple[str, nn.Module]:
    """Take the last block away, name and all; other names stay."""
    key, block = blocks._modules.popitem()
    assert block is not None
    return key, block


def _pairs(blocks: Stack, block: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """(an older parameter, one of the new block that is to be trained like it): of the last block of the same make, or else
    any of as many dimensions."""
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
        raise PlanError(f"AddBlock('{name}'): give example=..., to find what the new block adds to its input")
    tensors = dict(model.named_parameters())
    found = [tensor for tensor in closing(trace(model, example), f"{name}.{key}".removeprefix(".")) if tensor in tensors]
    with torch.no_grad():
        for tensor in found:
            tensors[tensor].zero_()
    if not _is_identity(model, block, example):
        raise PlanError(
            f"AddBlock('{name}'): its blocks do not just add to what they are given, x + f(x) (a norm after the sum is one "
            "reason), or the forward pass does not run the new one, so it could not keep the function; put a LearnedDepth there"
        )


def _is_identity(model: nn.Module, block: nn.Module, example: Tensor | tuple[Any, ...]) -> bool:
    """Whether `block`, where `model` runs it on `example`, gives exactly what it gets."""
    seen: list[bool] = []

    def look(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        seen.append(bool(inputs) and isinstance(first, Tensor) and torch.equal(inputs[0], first))

    # the input may be changed in place (out += x), so it is looked at as a copy
    before = block.register_forward_pre_hook(lambda _, inputs: tuple(v.clone() if isinstance(v, Tensor) else v for v in inputs))
    after = block.register_forward_hook(look)
    try:
        with evaluating(model), torch.no_grad():
            model(*(example if isinstance(example, tuple) else (example,)))
    finally:
        before.remove()
        after.remove()
    return bool(seen) and all(seen)


def release(optimizer: Optimizer, parameter: Tensor, back: list[Callable[[], None]]) -> None:
    """The optimizer forgets a parameter."""
    for group in optimizer.param_groups:
        for position, held in enumerate(group["params"]):
            if held is parameter:
                back.append(lambda g=group, i=position: g["params"].insert(i, parameter))  # type: ignore[misc]
                del group["params"][position]
                break
    if parameter in optimizer.state:
        back.append(lambda s=optimizer.state[parameter]: optimizer.state.__setitem__(parameter, s))  # type: ignore[misc]
        del optimizer.state[parameter]


def enrol(optimizer: Optimizer, like: Tensor, parameter: Tensor, back: list[Callable[[], None]]) -> None:
    """The optimizer trains `parameter` in the group that holds `like`."""
    for group in optimizer.param_groups:
        if any(held is like for held in group["params"]):
            group["params"].append(parameter)
            back.append(lambda: release(optimizer, parameter, []))
