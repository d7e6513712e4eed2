"""From the values of an ONNX file to calls on batches: what every operator of `onnx_operators` is
written with.

A file computes on one example, whose tensors have the shapes that it says. We compute on a batch of
examples. Of a value whose first size is 1 in the file (the place of the batch) the batch takes that
place: (1, 3, 8, 8) becomes (batch, 3, 8, 8). Any other value has the batch in front: (5,) becomes
(batch, 5), and (2, 5) becomes (batch, 2, 5). No operator mixes examples.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from morphogen.errors import Unsupported

INPUT = "x"  # its name; the others are v0, v1, ...
# numbers of one value of one example; more is a mistake, or an attack on the memory
LARGEST = 2**28


@dataclass(frozen=True)
class Value:
    """A value of the file. shape: of one example. constant: its numbers, where they do not depend
    on the input.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    constant: Tensor | None = None

    @property
    def leads(self) -> bool:
        """Whether the batch takes the place of the first dimension."""
        return leads(self.shape)

    @property
    def inner(self) -> tuple[int, ...]:
        """The sizes that follow the batch."""
        return self.shape[1:] if self.leads else self.shape


def leads(shape: Sequence[int]) -> bool:
    """Whether the batch takes the place of the first dimension of such a value."""
    return len(shape) > 1 and shape[0] == 1


@dataclass(frozen=True)
class Call:
    """makes = run(*reads), on batches; constants are tensors. shape: of the result for one example.
    kind: the operator that it is of.
    """

    run: Callable[..., Tensor]
    reads: tuple[str | Tensor, ...]
    makes: str
    shape: tuple[int, ...]
    kind: str


@dataclass
class Builder:
    """The calls so far. uses: how often the file reads a value; that it is the output counts too.
    kind: the operator that is being read.
    """

    uses: Counter[str] = field(default_factory=Counter)
    calls: list[Call] = field(default_factory=list)
    kind: str = ""

    def input(self, shape: tuple[int, ...], dtype: torch.dtype) -> Value:
        """The value that everything is computed from."""
        if math.prod(shape) > LARGEST:
            raise Unsupported(
                f"the input has {math.prod(shape):,} numbers; at most {LARGEST:,} can be read"
            )
        return Value(INPUT, shape, dtype)

    def call(self, run: Callable[..., Tensor], *reads: Value | Tensor, front: bool) -> Value:
        """A new value, run(*reads). front: whether the result has the batch in front of all its
        dimensions, else in the place of the first one. Values are handed over as they lie on
        batches, see `Value`; constants as tensors.

        Shapes are found without computing anything, so that a size that no memory holds is refused
        here.
        """
        given = [
            read if isinstance(read, Tensor) or read.constant is None else read.constant
            for read in reads
        ]
        seen = run(*(self._blank(read) for read in given))
        shape = tuple(seen.shape[1:]) if front else (1, *seen.shape[1:])
        if math.prod(shape) > LARGEST:
            raise Unsupported(f"a result of shape {shape}; at most {LARGEST:,} numbers can be read")
        if front and leads(shape):
            run = _without_first(run)
        elif not front and not leads(shape):
            run = _with_first(run)
        name = f"v{len(self.calls)}"
        self.calls.append(
            Call(
                run,
                tuple(read if isinstance(read, Tensor) else read.name for read in given),
                name,
                shape,
                self.kind,
            )
        )
        return Value(name, shape, seen.dtype)

    def with_bias(self, value: Value, bias: Value) -> Value | None:
        """A product with a matrix and the constant that is added to it as one layer, None where
        that is not all there is to it: the product must be read by the sum alone.
        """
        if (
            bias.constant is None
            or self.uses[value.name] > 1
            or torch.broadcast_shapes(bias.shape, value.shape) != value.shape
        ):
            return None
        same_in_each_row = bias.constant.numel() in (1, bias.shape[-1]) if bias.shape else True
        made = [
            i
            for i, call in enumerate(self.calls)
            if call.makes == value.name and call.run is F.linear
        ]
        if not same_in_each_row or not made or len(self.calls[made[0]].reads) != 2:
            return None
        call = self.calls[made[0]]
        held = bias.constant.reshape(-1).expand(value.shape[-1]).contiguous()
        self.calls[made[0]] = replace(call, reads=(*call.reads, held))
        return value

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """The same numbers in the same order; shape: of one example."""
        shape = tuple(shape)
        if shape == value.shape:
            return value
        inner = shape[1:] if leads(shape) else shape
        return self.call(lambda x: x.reshape(len(x), *inner), value, front=not leads(shape))

    def in_front(self, value: Value) -> Callable[[Tensor], Tensor]:
        """How a value on a batch becomes one with the batch in front of all of its dimensions."""
        return (lambda x: x.unsqueeze(1)) if value.leads else (lambda x: x)

    def evaluate(self, value: Value, given: dict[str, Tensor]) -> Tensor:
        """The numbers of one example, (*value.shape); given: values on a batch of one."""
        held = dict(given)
        for call in self.calls:
            held[call.makes] = call.run(
                *(read if isinstance(read, Tensor) else held[read] for read in call.reads)
            )
        return held[value.name].reshape(value.shape)

    @staticmethod
    def _blank(read: Value | Tensor) -> Tensor:
        if isinstance(read, Tensor):
            return read.to("meta")
        return torch.empty(2, *read.inner, dtype=read.dtype, device="meta")


def _without_first(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *reads: run(*reads).squeeze(1)


def _with_first(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *reads: run(*reads).unsqueeze(1)
