"""The linked pair as one operation that keeps z alone for its backward pass: `linked(z, kind,
dim)`.

Both directions work on halves of one output, without a copy: no `cat`, no second tensor for the
backward pass. Float32 on a CPU takes one compiled pass each way (`kernels/linked.py`); everything
else the passes of PyTorch that `KINDS` names.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.layers.kernels.threads import shared
from morphogen.layers.orders import forward_mode, further, gradient, refuse_forward_mode

aten = torch.ops.aten


@dataclass(frozen=True)
class Kind:
    """g in four forms. module: its class. value: plain, for derivatives of any order. into: (z,
    positive, negative) writes both halves. back: (gradients of both halves, z) -> the gradient of
    z.
    """

    module: type[nn.Module]
    value: Callable[[Tensor], Tensor]
    into: Callable[[Tensor, Tensor, Tensor], Any]
    back: Callable[[Tensor, Tensor, Tensor], Tensor]


def _relu_into(z: Tensor, positive: Tensor, negative: Tensor) -> None:
    torch.clamp_min(z, 0, out=positive)
    torch.neg(z, out=negative).clamp_min_(0)


def _relu_back(positive: Tensor, negative: Tensor, z: Tensor) -> Tensor:
    # each half's gradient passes on its own side of 0; hardtanh's is the one kernel that passes the
    # negative side
    passed: Tensor = aten.threshold_backward(positive, z, 0)
    return passed.sub_(aten.hardtanh_backward(negative, z, -math.inf, 0))


def _both(value: Callable[..., Any]) -> Callable[[Tensor, Tensor, Tensor], None]:
    """Two evaluations, at z and at -z, each argument made in the place of its result."""

    def into(z: Tensor, positive: Tensor, negative: Tensor) -> None:
        # in place: PyTorch 2.13 loses the result of gelu(contiguous float32, out=a part of a larger
        # tensor)
        value(positive.copy_(z), out=positive)
        value(torch.neg(z, out=negative), out=negative)

    return into


def _mirrored(
    back: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def both(positive: Tensor, negative: Tensor, z: Tensor) -> Tensor:
        return back(positive, z).sub_(back(negative, -z))

    return both


_ALPHA = 1.6732632423543772848170429916717
_SCALE = 1.0507009873554804934193349852946

KINDS: dict[str, Kind] = {
    "relu": Kind(nn.ReLU, F.relu, _relu_into, _relu_back),
    "elu": Kind(
        nn.ELU,
        F.elu,
        _both(aten.elu),
        _mirrored(lambda g, z: aten.elu_backward(g, 1.0, 1.0, 1.0, False, z)),
    ),
    "selu": Kind(
        nn.SELU,
        F.selu,
        _both(lambda z, **out: aten.elu(z, _ALPHA, _SCALE, 1.0, **out)),
        _mirrored(lambda g, z: aten.elu_backward(g, _ALPHA, _SCALE, 1.0, False, z)),
    ),
    "silu": Kind(nn.SiLU, F.silu, _both(aten.silu), _mirrored(aten.silu_backward)),
    "gelu": Kind(nn.GELU, F.gelu, _both(aten.gelu), _mirrored(aten.gelu_backward)),
}


def linked(z: Tensor, kind: str, dim: int) -> Tensor:
    """[g(z), g(-z)] along `dim`, g a name of `KINDS`. Keeps z alone for the backward pass; can be
    differentiated again, in either direction.
    """
    if forward_mode():
        return plain(z, kind, dim)
    function = _Linked if torch.compiler.is_compiling() or _transformed() else _Kept
    result: Tensor = function.apply(z, kind, dim)  # type: ignore[no-untyped-call]
    return result


def plain(z: Tensor, kind: str, dim: int) -> Tensor:
    """`linked` by operations that PyTorch differentiates in every way."""
    value = KINDS[kind].value
    return torch.cat([value(z), value(-z)], dim)


def _forward(z: Tensor, kind: str, dim: int) -> Tensor:
    refuse_forward_mode("linked")
    result = _doubled(z, dim)
    if _compilable(z):
        _run("forward", kind, dim, _ordered(z, z), result)
    else:
        KINDS[kind].into(z, *result.chunk(2, dim))
    return result


def _backward(gradient: Tensor, z: Tensor, kind: str, dim: int) -> Tensor:
    refuse_forward_mode("linked_backward")
    if not (_compilable(z) and _stored(gradient)):
        positive, negative = gradient.chunk(2, dim)
        return _ordered(KINDS[kind].back(positive, negative, z), z)
    source = _ordered(z, z)
    result = torch.empty_like(source)
    _run("backward", kind, dim, _ordered(gradient, z), source, result)
    return result


def _compilable(z: Tensor) -> bool:
    """A subclass (a fake tensor, one that is traced) and a batch of gradients have no memory to
    read.
    """
    return (
        z.dtype == torch.float32
        and z.device.type == "cpu"
        and type(z) is Tensor
        and z.numel() > 0
        and _stored(z)
    )


# not public: where it is missing, every call goes the slower way
_stored: Callable[[Tensor], bool] = getattr(torch._C, "_has_storage", lambda z: False)


def _run(name: str, kind: str, dim: int, *tensors: Tensor) -> None:
    """A compiled loop over `tensors`, the last but one of them shaped as z and all in one order of
    memory.
    """
    z = tensors[-2]
    kernels = _kernels()
    shape = z.shape
    # what lies between two steps along the dimensions before `dim`; in memory the channels come
    # last of (0, 2, 3, 1), or not
    run = (
        math.prod(shape[i] for i in _LAST[_LAST.index(dim) :])
        if _last(z)
        else math.prod(shape[dim:])
    )
    kernel = getattr(kernels, name)
    number = kernels.NUMBERS[kind]
    addresses = [t.data_ptr() for t in tensors]
    shared(
        lambda begin, end: kernel(number, *addresses, begin, end, run),
        z.numel() // run,
        _LEAST // run,
    )


# numbers that are worth the 20 microseconds of handing them to another thread
_LEAST = 50_000


@lru_cache(maxsize=1)
def _kernels() -> Any:
    return import_module("morphogen.layers.kernels.linked")


# The same as operations that a compiler takes as they are, one node each; called by name they would
# cost 90 microseconds more.
_FORWARD = torch.library.custom_op("morphogen::linked", _forward, mutates_args=())
_BACKWARD = torch.library.custom_op("morphogen::linked_backward", _backward, mutates_args=())


@_FORWARD.register_fake
def _(z: Tensor, kind: str, dim: int) -> Tensor:
    return _doubled(z, dim)


@_BACKWARD.register_fake
def _(gradient: Tensor, z: Tensor, kind: str, dim: int) -> Tensor:
    return torch.empty_like(_ordered(z, z))


@_FORWARD.register_vmap
def _(
    info: Any, dims: tuple[int, None, None], z: Tensor, kind: str, dim: int
) -> tuple[Tensor, int]:
    return _FORWARD(z.movedim(dims[0], 0), kind, dim + 1), 0


@_BACKWARD.register_vmap
def _(
    info: Any,
    dims: tuple[int | None, int | None, None, None],
    gradient: Tensor,
    z: Tensor,
    kind: str,
    dim: int,
) -> tuple[Tensor, int]:
    both = (
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip((gradient, z), dims[:2], strict=True)
    )
    return _BACKWARD(*both, kind, dim + 1), 0


_LAST = (0, 2, 3, 1)


def _last(z: Tensor) -> bool:
    """Whether memory runs over the channels first."""
    return (
        z.dim() == 4
        and z.is_contiguous(memory_format=torch.channels_last)
        and not z.is_contiguous()
    )


def _ordered(t: Tensor, z: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last if _last(z) else torch.contiguous_format)


def _doubled(z: Tensor, dim: int) -> Tensor:
    shape = list(z.shape)
    shape[dim] *= 2
    if _last(z):
        return torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=torch.channels_last)
    return z.new_empty(shape)


class _Linked(torch.autograd.Function):
    @staticmethod
    def forward(z: Tensor, kind: str, dim: int) -> Tensor:
        return (_FORWARD if torch.compiler.is_compiling() else _forward)(z, kind, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str, int], output: Tensor) -> None:
        z, ctx.kind, ctx.dim = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        if torch.compiler.is_compiling():
            return _BACKWARD(above, z, ctx.kind, ctx.dim), None, None
        # by plain operations: seldom asked for, so not worth kernels of its own
        if further() or _transformed():
            run = partial(plain, kind=ctx.kind, dim=ctx.dim)
            return *gradient(run, (z,), (True,), above), None, None
        return _backward(above, z, ctx.kind, ctx.dim), None, None

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int, None, None], z: Tensor, kind: str, dim: int
    ) -> tuple[Tensor, int]:
        return linked(z.movedim(dims[0], 0), kind, dim + 1), 0


class _Kept(torch.autograd.Function):
    """The same for plain calls: with a context of its own, which `torch.func` cannot take, a call
    costs 0.1 ms less.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, kind: str, dim: int) -> Tensor:
        ctx.kind = kind
        ctx.dim = dim
        ctx.save_for_backward(z)
        return _forward(z, kind, dim)

    backward = _Linked.backward


# not public: where it is missing, every call goes the longer way
_transformed = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
