"""What layers of learned depth share: a list of blocks of equal input and output shape that can get
one more.
"""

import copy
import itertools
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.errors import PlanError
from morphogen.random_state import own_draws


def reinitialised(module: nn.Module) -> nn.Module:
    """`module` itself with fresh parameters, at the sizes it has now, wherever a part of it knows
    how to reset itself.

    What no part resets keeps its values; `without_reset` names it.
    """
    for child in module.children():
        reinitialised(child)
    # a part after what it holds: an attention, for one, starts a layer inside it in another way
    # than that layer does
    if reset := _reset_of(module):
        reset()
    return module


def without_reset(module: nn.Module, prefix: str = "") -> list[str]:
    """The parameters that `reinitialised` leaves as they are, by name."""
    if _reset_of(module):
        return []
    own = [
        f"{prefix}{name}" for name, parameter in module._parameters.items() if parameter is not None
    ]
    return own + [
        name
        for key, child in module.named_children()
        for name in without_reset(child, f"{prefix}{key}.")
    ]


def _reset_of(module: nn.Module) -> Callable[[], object] | None:
    resets = (getattr(module, name, None) for name in ("reset_parameters", "_reset_parameters"))
    return next((reset for reset in resets if callable(reset)), None)


def last_weight(block: nn.Module) -> str:
    """The name of the weight of a block's last part that has one; "" where none has."""
    return next(
        (
            name
            for name, _ in reversed([*block.named_parameters()])
            if name.rpartition(".")[2] == "weight"
        ),
        "",
    )


_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
# f(a x) = a f(x)
_SCALED_THROUGH = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)


def last_norm(block: nn.Module) -> tuple[list[nn.Module], int] | None:
    """The modules that a block runs one after another, and the place among them of the norm that it
    ends with, dropout after it aside. What the block gives is linear in that norm's scale and
    shift: scaled for its call, they scale it.

    None where that is not sure: the block is no plain `nn.Sequential`, another kind of norm or none
    stands there, its scale is no plain parameter, or a hook, a `forward` of its own or a compiler
    takes part in a call from the norm on.
    """
    steps = list(_steps(block))
    for place in reversed(range(len(steps))):
        step = steps[place]
        if not _bare(step):
            return None
        if type(step) in _NORMS:
            return (steps, place) if type(step._parameters.get("weight")) is nn.Parameter else None
        if type(step) not in _SCALED_THROUGH:
            return None
    return None


def _steps(block: nn.Module) -> Iterator[nn.Module]:
    if type(block) is nn.Sequential and _bare(block):
        for child in block:
            yield from _steps(child)
    else:
        yield block


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _bare(module: nn.Module) -> bool:
    """Whether a call of a module is a call of its class's `forward` and nothing else."""
    about = vars(module)
    changed = (
        "forward" in about
        or about.get("_compiled_call_impl") is not None
        or any(about.get(hooks) for hooks in _HOOKS)
    )
    return not changed and not nn.modules.module._has_any_global_hook()


def scaled(steps: list[nn.Module], place: int, x: Tensor, factor: Tensor) -> Tensor:
    """What a block that is these steps gives, times `factor`; see `last_norm`. Gradients reach
    all.
    """
    for number, step in enumerate(steps):
        # for that one call: the same norm may stand in several places
        with _with_factor(step, factor) if number == place else nullcontext():
            x = step(x)
    return x


@contextmanager
def _with_factor(norm: nn.Module, factor: Tensor) -> Iterator[None]:
    own = dict(norm._parameters)
    for name, parameter in own.items():
        norm._parameters[name] = None if parameter is None else factor * parameter  # type: ignore[assignment]
    try:
        yield
    finally:
        norm._parameters.update(own)


class BlockStack(nn.Module, ABC):
    """Blocks that are run in order, as many as the layer wants.

    Blocks join and leave through `morphogen.edit` (`AddBlock`, `DropBlock`, `adapt`), never by
    themselves, so that no optimizer is left behind. block: `block(i)` builds sub-layer i; kinds may
    differ by i, and parts may be shared. count: how many there are at first. zero_init: a new block
    starts with its last weight at 0.

    A pickle keeps a builder that can be imported by its name, or a `functools.partial` of one; not
    others, see `new_block`.
    """

    _copied = False

    def __init__(
        self, block: Callable[[int], nn.Module], count: int, zero_init: bool = False
    ) -> None:
        super().__init__()
        self._build: Callable[[int], nn.Module] | None = block
        self.zero_init = zero_init
        self.blocks = nn.ModuleList(block(i) for i in range(count))

    @property
    @abstractmethod
    def depth(self) -> float:
        """The learned depth, a real number."""

    @abstractmethod
    def wanted(self) -> int:
        """How many blocks should exist."""

    @abstractmethod
    def new_block_is_silent(self) -> bool:
        """Whether a new block would leave the function exactly as it is."""

    def reason(self) -> str:
        """Why so many are wanted."""
        return f"learned depth w = {self.depth:.2f}"

    def new_block(self) -> nn.Module:
        """What `block(i)` builds for the next place, as it is: its own values, where the blocks
        are, in their precision.

        Where sizes have changed since, entries up to the size that `block(i)` builds are those that
        it builds, and the others come from further calls of it. A builder that reads the sizes as
        they are now is taken at its word. Where a pickle lost the builder, a copy of the last block
        is reset, with a warning. Raises `PlanError` where that cannot be, and where a copied
        layer's builder gives parts of the network that it was copied from.
        """
        block = self._reset_copy() if self._build is None else self._built(self._build)
        if not self.training:
            block.eval()
        if self.zero_init:
            self._silence(block)
        return block

    def _built(self, build: Callable[[int], nn.Module]) -> nn.Module:
        number = len(self.blocks)
        block = build(number)
        if self._copied:
            with own_draws():
                shared = _tensors(build(number)).values()
            first = next(self.blocks.parameters(), None)
            if {id(t) for t in shared} & {id(t) for t in _tensors(block).values()} and not (
                first is None or first.is_meta
            ):
                raise PlanError(
                    f"{type(self).__name__}: block({number}) gives parts that it did not build, "
                    "and this layer is a copy: they belong to another network; build this one "
                    "anew instead of copying it"
                )
            block = copy.deepcopy(block)
        like = next(
            (other for other in reversed(self.blocks) if _kind(other) == _kind(block)), None
        )
        if like is None:
            return block.to(next(self.blocks.parameters(), torch.empty(0)))
        live = _tensors(like)
        made = _tensors(block)
        own = {id(tensor) for tensor in _tensors(self.blocks).values()}
        if any(live[name].shape != tensor.shape for name, tensor in made.items()):
            if own & {id(tensor) for tensor in made.values()}:
                raise PlanError(
                    f"{type(self).__name__}: block({number}) shares some parts with other blocks "
                    "and builds others at sizes that have changed since; let it read the sizes as "
                    "they are now"
                )
            return _resized(like, block, lambda: build(number))
        as_like = {id(tensor): live[name] for name, tensor in made.items() if id(tensor) not in own}
        placed: nn.Module = block._apply(lambda t: _placed(t, as_like.get(id(t))))
        return placed

    def _reset_copy(self) -> nn.Module:
        block = copy.deepcopy(self.blocks[-1])
        if kept := without_reset(block):
            raise PlanError(
                f"{type(self).__name__}: its builder was not pickled, and a copy of the last block "
                f"would keep the trained '{kept[0]}', which nothing resets; give "
                f"{type(block).__name__} a reset_parameters(), or use a builder that can be "
                "imported by its name"
            )
        warnings.warn(
            f"{type(self).__name__}: its builder was not pickled; a new block is a copy of the "
            "last one, reset to defaults",
            stacklevel=3,
        )
        return reinitialised(block)

    def _silence(self, block: nn.Module) -> None:
        last = last_weight(block)
        own = {id(p) for p in self.blocks.parameters()}
        for name, parameter in block.named_parameters():
            if last and name in (last, f"{last.removesuffix('weight')}bias"):
                if id(parameter) in own:
                    raise PlanError(
                        f"{type(self).__name__}: zero_init=True would zero '{name}' of a new "
                        "block, which other blocks share; leave zero_init off, or let block(i) "
                        "build it"
                    )
                nn.init.zeros_(parameter)

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlockStack":
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        result.__dict__.update(
            {k: v if k == "_build" else copy.deepcopy(v, memo) for k, v in vars(self).items()}
        )
        result._copied = True
        return result

    def __getstate__(self) -> dict[str, Any]:
        # `block` is often a lambda, which cannot be pickled
        return {**vars(self), "_build": self._build if _importable(self._build) else None}


def _kind(block: nn.Module) -> list[tuple[str, object]]:
    tensors = ((name, tensor.dim()) for name, tensor in _tensors(block).items())
    return [*((name, type(module)) for name, module in block.named_modules()), *tensors]


def _tensors(block: nn.Module) -> dict[str, Tensor]:
    return {**dict(block.named_parameters()), **dict(block.named_buffers())}


def _placed(tensor: Tensor | None, like: Tensor | None) -> Tensor:
    """`tensor` where `like` is, in its precision and order of memory."""
    assert tensor is not None
    if like is None or (tensor.dtype, tensor.device, tensor.stride()) == (
        like.dtype,
        like.device,
        like.stride(),
    ):
        return tensor
    return torch.empty_like(like, requires_grad=False).copy_(tensor.detach())


@torch.no_grad()
def _resized(like: nn.Module, block: nn.Module, again: Callable[[], nn.Module]) -> nn.Module:
    """A block of the sizes of `like` with the values of `block`, beyond its sizes with those of
    what `again` builds.
    """
    result = copy.deepcopy(like)
    built = [_tensors(block)]
    for name, tensor in _tensors(result).items():
        size = built[0][name].shape
        corners = itertools.product(
            *(range(0, whole, max(1, step)) for whole, step in zip(tensor.shape, size, strict=True))
        )
        for number, corner in enumerate(corners):
            if number == len(built):
                built.append(_tensors(again()))
            part = tensor[
                tuple(slice(start, start + step) for start, step in zip(corner, size, strict=True))
            ]
            part.copy_(built[number][name][tuple(slice(n) for n in part.shape)])
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(built[0][name].requires_grad)
    return result.train(block.training)


def _importable(value: object) -> bool:
    """Whether a pickle can name it: a function or class of a module, plain values, and a partial of
    such.
    """
    if isinstance(value, partial):
        return all(map(_importable, (value.func, *value.args, *value.keywords.values())))
    if value is None or isinstance(value, (bool, int, float, str)):
        return True
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    return callable(value) and getattr(module, getattr(value, "__qualname__", ""), None) is value
