"""What can be read of ONNX: a row an operator in `OPERATORS`, with all that its file may say of it.

A row names the versions whose meaning the function has (the opset in which an operator got its
present form) and every attribute with the values that are understood. Anything else is refused by
name, never left out.

Source: the operator schemas of the ONNX standard. Values and batches: see `onnx_build`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from morphogen.activations import ACTIVATIONS, Onnx
from morphogen.errors import Unsupported
from morphogen.formats.onnx_build import Builder, Value

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Operator:
    """read(builder, attributes, *inputs) -> the first result. versions: the first and the last that
    mean this. attributes: by name, whether a value is understood.
    """

    read: Callable[..., Value]
    versions: tuple[int, int]
    attributes: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)


def _ints(value: Value | None, what: str) -> tuple[int, ...]:
    """Sizes or places, which must be known before anything is run."""
    if value is None or value.constant is None:
        raise Unsupported(f"{what} is computed; only constant ones can be read")
    return tuple(int(number) for number in value.constant.flatten().tolist())


def _constant(value: Value | None, what: str) -> Tensor | None:
    if value is not None and value.constant is None:
        raise Unsupported(f"{what} depends on the input; only constant ones can be read")
    return None if value is None else value.constant


def _image(value: Value, least: int = 3) -> int:
    """The number of spatial dimensions of (1, channels, ...)."""
    if not value.leads or len(value.shape) < least:
        raise Unsupported(
            f"it reads a value of shape {value.shape}; (1, channels, ...) can be read: export the "
            "network with a batch of one, or a free one"
        )
    return len(value.shape) - 2


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise Unsupported(f"axis {axis} of a value with {rank} dimensions")
    return axis % rank


def _float32(default: float | str) -> float | str:
    """What a file holds where it says nothing: numbers are float32, their defaults too."""
    return default if isinstance(default, str) else float(np.float32(default))


def unary(function: Callable[..., Tensor]) -> Callable[..., Value]:
    """A function of each entry."""
    return lambda b, a, x: b.call(function, x, front=not x.leads)


def activation(row: Onnx) -> Operator:
    """From the table of activations; its options are the attributes."""

    def read(b: Builder, a: Attributes, x: Value) -> Value:
        given = [a.get(name, _float32(default)) for name, default in row.options.items()]
        return b.call(lambda t: row.function(t, *given), x, front=not x.leads)

    known = {
        name: _is("none", "tanh") if isinstance(default, str) else _number
        for name, default in row.options.items()
    }
    return Operator(read, row.versions, known)


def elementwise(function: Callable[..., Tensor]) -> Callable[..., Value]:
    """Entry by entry of several values, sizes of 1 and missing dimensions stretched, as numpy
    does.
    """

    def read(b: Builder, a: Attributes, *values: Value) -> Value:
        rank = max(len(v.shape) for v in values)
        # a constant with several rows where the batch would be makes several of each example
        front = not all(
            v.leads if v.constant is None else len(v.shape) < rank or v.shape[0] == 1
            for v in values
        )
        run, reads = _aligned(function, values, rank, front)
        return b.call(run, *reads, front=front)

    return read


def _aligned(
    function: Callable[..., Tensor], values: Sequence[Value], rank: int, front: bool
) -> tuple[Callable[..., Tensor], Sequence[Value]]:
    """The function with dimensions of size 1 put in after the batch, where a value has fewer than
    `rank`.
    """
    missing = [
        0 if v.constant is not None else rank - len(v.shape) + int(front and v.leads)
        for v in values
    ]
    if not any(missing):
        return function, values

    def run(*tensors: Tensor) -> Tensor:
        return function(*map(_stretched, tensors, missing))

    return run, values


def _stretched(t: Tensor, count: int) -> Tensor:
    return t.reshape(len(t), *[1] * count, *t.shape[1:]) if count else t


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    """Whole numbers are divided towards zero."""
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


_add = elementwise(torch.add)


def add(b: Builder, a: Attributes, x: Value, y: Value) -> Value:
    """A sum; with the product before it a layer."""
    return b.with_bias(x, y) or b.with_bias(y, x) or _add(b, a, x, y)


def matmul(b: Builder, a: Attributes, x: Value, y: Value) -> Value:
    """A matrix product; with a constant matrix on either side a layer."""
    if x.constant is not None and y.constant is not None:
        return _held(x.constant @ y.constant)
    if y.constant is not None and len(y.shape) == 2:
        return b.call(F.linear, x, y.constant.T.contiguous(), front=not x.leads)
    if x.constant is not None and len(x.shape) == 2 and len(y.shape) == 1:
        return b.call(F.linear, y, x.constant, front=True)
    if x.constant is not None and len(x.shape) == len(y.shape) == 2 and y.shape[1] == 1:
        column = b.call(F.linear, b.reshape(y, y.shape[:1]), x.constant, front=True)
        return b.reshape(column, (*column.shape, 1))
    return _product(b, x, y)


def _product(b: Builder, x: Value, y: Value) -> Value:
    """Of any dimensions, the batch in front."""
    rank = max(len(x.shape), len(y.shape), 2)
    row = len(x.shape) == 1
    column = len(y.shape) == 1

    def full(t: Tensor, value: Value, as_row: bool) -> Tensor:
        shape = (
            value.shape
            if len(value.shape) > 1
            else (1, *value.shape)
            if as_row
            else (*value.shape, 1)
        )
        missing = [1] * (rank - len(shape))
        return (
            t.reshape(shape) if value.constant is not None else t.reshape(len(t), *missing, *shape)
        )

    def run(s: Tensor, t: Tensor) -> Tensor:
        product = full(s, x, True) @ full(t, y, False)
        product = product.squeeze(-2) if row else product
        return product.squeeze(-1) if column else product

    return b.call(run, x, y, front=True)


def gemm(b: Builder, a: Attributes, x: Value, y: Value, z: Value | None = None) -> Value:
    """alpha x' y' + beta z, x' and y' transposed where it is said."""
    if len(x.shape) != 2 or len(y.shape) != 2:
        raise Unsupported(f"of values of shapes {x.shape} and {y.shape}; two matrices can be read")
    x = transpose(b, {}, x) if a.get("transA", 0) else x
    y = transpose(b, {}, y) if a.get("transB", 0) else y
    y = _times(b, y, a.get("alpha", 1.0))
    product = matmul(b, {}, x, y)
    if z is None or a.get("beta", 1.0) == 0:
        return product
    if torch.broadcast_shapes(z.shape, product.shape) != product.shape:
        raise Unsupported(f"adds a value of shape {z.shape} to one of {product.shape}")
    return add(b, {}, product, _times(b, z, a.get("beta", 1.0)))


def _times(b: Builder, value: Value, factor: float) -> Value:
    if factor == 1:
        return value
    if value.constant is not None:
        return _held(value.constant * factor)
    return b.call(lambda t: t * factor, value, front=not value.leads)


def transpose(b: Builder, a: Attributes, x: Value) -> Value:
    """Dimensions in another order, reversed where none is said."""
    rank = len(x.shape)
    order = tuple(a.get("perm", range(rank)[::-1]))
    if sorted(order) != list(range(rank)):
        raise Unsupported(f"perm={order} of a value with {rank} dimensions")
    if x.constant is not None:
        return _held(x.constant.permute(order).contiguous())
    if x.leads and order[0] == 0:
        return b.call(lambda t: t.permute(order), x, front=False)
    front = b.in_front(x)
    return b.call(lambda t: front(t).permute(0, *(d + 1 for d in order)), x, front=True)


def flatten(b: Builder, a: Attributes, x: Value) -> Value:
    """A matrix: the dimensions before `axis`, and the others."""
    axis = a.get("axis", 1)
    rank = len(x.shape)
    if not -rank <= axis <= rank:
        raise Unsupported(f"axis={axis} of a value with {rank} dimensions")
    axis = axis + rank if axis < 0 else axis
    return b.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def reshape(b: Builder, a: Attributes, x: Value, shape: Value) -> Value:
    """To a constant shape; 0 keeps a size unless `allowzero`, -1 takes what is left."""
    sizes = list(_ints(shape, "its shape"))
    for d, size in enumerate(sizes):
        if size == 0 and not a.get("allowzero", 0):
            if d >= len(x.shape):
                raise Unsupported(f"to {tuple(sizes)} from {x.shape}: there is no size {d} to keep")
            sizes[d] = x.shape[d]
    count = math.prod(x.shape)
    if sizes.count(-1) == 1:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = count // known if known else 0
    if math.prod(sizes) != count or any(size < 0 for size in sizes):
        raise Unsupported(f"to {_ints(shape, 'its shape')} from {x.shape}: the sizes do not fit")
    return b.reshape(x, sizes)


def gather(b: Builder, a: Attributes, x: Value, indices: Value) -> Value:
    """The entries along `axis` at constant places, in the shape of these."""
    axis = _axis(a.get("axis", 0), len(x.shape))
    place = _constant(indices, "its indices")
    assert place is not None
    size = x.shape[axis]
    if place.numel() == 0 or int(place.min()) < -size or int(place.max()) >= size:
        raise Unsupported(f"indices of {size} entries along axis {axis}: {place.tolist()}")
    flat = place.flatten().long() % size
    if x.leads and axis > 0 and place.dim() == 1:
        return b.call(lambda t, i: t.index_select(axis, i), x, flat, front=False)
    whole = b.in_front(x)

    def run(t: Tensor, i: Tensor) -> Tensor:
        found = whole(t).index_select(axis + 1, i)
        return found.reshape(*found.shape[: axis + 1], *place.shape, *found.shape[axis + 2 :])

    return b.call(run, x, flat, front=True)


def concat(b: Builder, a: Attributes, *parts: Value) -> Value:
    """One after the other along `axis`. Constants are added where they stand, so that they need no
    batch.
    """
    axis = _axis(a["axis"], len(parts[0].shape))
    if len({part.shape[:axis] + part.shape[axis + 1 :] for part in parts}) > 1:
        raise Unsupported(f"of values of shapes {[part.shape for part in parts]}")
    front = axis == 0 or not all(part.leads for part in parts if part.constant is None)
    place = axis + 1 if front else axis
    inner = [part for part in parts if part.constant is None]
    rooms = _rooms([(part.constant is None, part.shape[axis]) for part in parts])

    def run(*tensors: Tensor) -> Tensor:
        whole = (
            [b.in_front(part)(t) for part, t in zip(inner, tensors, strict=True)]
            if front
            else tensors
        )
        padded = [_padded(t, place, room) for t, room in zip(whole, rooms, strict=True)]
        return torch.cat(padded, place) if len(padded) > 1 else padded[0]

    joined = b.call(run, *inner, front=front)
    if len(inner) == len(parts):
        return joined
    ends = list(accumulate(part.shape[axis] for part in parts))
    held = torch.zeros(
        *parts[0].shape[:axis], ends[-1], *parts[0].shape[axis + 1 :], dtype=joined.dtype
    )
    for part, end in zip(parts, ends, strict=True):
        if part.constant is not None:
            held.narrow(axis, end - part.shape[axis], part.shape[axis]).copy_(part.constant)
    return _add(b, {}, joined, _held(held))


def _padded(t: Tensor, place: int, room: tuple[int, int]) -> Tensor:
    return F.pad(t, (0, 0) * (t.dim() - 1 - place) + room) if any(room) else t


def _rooms(parts: Sequence[tuple[bool, int]]) -> list[tuple[int, int]]:
    """Of each part that is there, how much is left free for the others (before it, after it if it
    is the last).
    """
    pads: list[tuple[int, int]] = []
    waiting = 0
    for there, size in parts:
        if there:
            pads.append((waiting, 0))
            waiting = 0
        else:
            waiting += size
    pads[-1] = (pads[-1][0], waiting)
    return pads


def mean(b: Builder, a: Attributes, x: Value, axes: Value | None = None) -> Value:
    """Over some dimensions; over all where none are said, unless `noop_with_empty_axes`."""
    rank = len(x.shape)
    places = tuple(a["axes"]) if "axes" in a else () if axes is None else _ints(axes, "its axes")
    if not places and a.get("noop_with_empty_axes", 0):
        return x
    dims = sorted({_axis(place, rank) for place in places} or range(rank))
    keep = bool(a.get("keepdims", 1))
    if x.leads and 0 not in dims:
        return b.call(lambda t: t.mean(dims, keepdim=keep), x, front=False)
    front = b.in_front(x)
    after = [d + 1 for d in dims]
    return b.call(
        lambda t: front(t).mean(after, keepdim=keep) if after else front(t), x, front=True
    )


def norm(b: Builder, a: Attributes, x: Value, *given: Value) -> Value:
    """By the statistics in the file. One that takes the statistics of its batch is refused in the
    table.
    """
    _image(x, 2)
    names = ("its scale", "its bias", "its mean", "its variance")
    tensors = [_constant(value, name) for value, name in zip(given, names, strict=True)]
    scale, bias, centre, variance = (t.to(x.dtype) for t in tensors if t is not None)
    eps = a.get("epsilon", _float32(1e-5))
    return b.call(
        lambda t, m, v, s, c: F.batch_norm(t, m, v, s, c, False, 0.0, eps),
        x,
        centre,
        variance,
        scale,
        bias,
        front=False,
    )


@dataclass(frozen=True)
class _Windows:
    """Where a convolution or a pooling looks, a number a spatial dimension. before, after: what is
    added at the ends.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def ceil(self, a: Attributes, sizes: Sequence[int]) -> bool:
        """Whether the last windows reach beyond the end."""
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        ends = [n + low + high for n, low, high in zip(sizes, self.before, self.after, strict=True)]
        left = [(end - span) % s for end, span, s in zip(ends, spans, self.stride, strict=True)]
        return bool(a.get("ceil_mode", 0)) and any(left)

    @property
    def even(self) -> bool:
        """Whether as much is added at one end as at the other."""
        return self.before == self.after

    @property
    def pads(self) -> tuple[int, ...]:
        """As `F.pad` takes them: the last dimension first."""
        return tuple(
            end
            for d in reversed(range(len(self.kernel)))
            for end in (self.before[d], self.after[d])
        )


def _windows(a: Attributes, sizes: Sequence[int], kernel: Sequence[int]) -> _Windows:
    spatial = len(sizes)
    kernel = tuple(kernel)
    ones = (1,) * spatial
    stride = tuple(a.get("strides", ones))
    dilation = tuple(a.get("dilations", ones))
    pads = tuple(a.get("pads", (0,) * (2 * spatial)))
    if (len(kernel), len(stride), len(dilation), len(pads)) != (
        spatial,
        spatial,
        spatial,
        2 * spatial,
    ):
        raise Unsupported(
            f"kernel {kernel}, strides {stride}, dilations {dilation}, pads {pads} on {spatial} "
            "dimensions"
        )
    before = pads[:spatial]
    after = pads[spatial:]
    auto = a.get("auto_pad", "NOTSET")
    if auto == "VALID":
        before = after = (0,) * spatial
    elif auto != "NOTSET":  # as many results as there are strides
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        whole = [
            max((math.ceil(n / s) - 1) * s + span - n, 0)
            for n, s, span in zip(sizes, stride, spans, strict=True)
        ]
        less = tuple(t // 2 for t in whole)
        more = tuple(t - t // 2 for t in whole)
        before, after = (less, more) if auto == "SAME_UPPER" else (more, less)
    if min(*kernel, *stride, *dilation) < 1 or min(*before, *after) < 0:
        raise Unsupported(
            f"kernel {kernel}, strides {stride}, dilations {dilation}, pads {before + after}"
        )
    return _Windows(kernel, stride, dilation, before, after)


def conv(b: Builder, a: Attributes, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """In one to three dimensions."""
    spatial = _image(x)
    if spatial > 3:
        raise Unsupported(f"in {spatial} dimensions; one to three can be read")
    w = _constant(weight, "its weight")
    c = _constant(bias, "its bias")
    assert w is not None
    if tuple(a.get("kernel_shape", w.shape[2:])) != tuple(w.shape[2:]):
        raise Unsupported(
            f"kernel_shape={a['kernel_shape']} and a weight of shape {tuple(w.shape)}"
        )
    at = _windows(a, x.shape[2:], w.shape[2:])
    run: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    group = a.get("group", 1)
    if not at.even:
        x = b.call(lambda t: F.pad(t, at.pads), x, front=False)
    padding = at.before if at.even else 0
    if c is None:
        return b.call(
            lambda t, u: run(t, u, None, at.stride, padding, at.dilation, group), x, w, front=False
        )
    return b.call(
        lambda t, u, v: run(t, u, v, at.stride, padding, at.dilation, group), x, w, c, front=False
    )


def max_pool(b: Builder, a: Attributes, x: Value) -> Value:
    """The largest of each window; what is added at the ends is never the largest."""
    spatial = _image(x)
    if spatial > 3:
        raise Unsupported(f"in {spatial} dimensions; one to three can be read")
    at = _windows(a, x.shape[2:], a["kernel_shape"])
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[spatial - 1]
    ceil = at.ceil(a, x.shape[2:])
    # torch adds at most half a window, the same at both ends
    if at.even and all(
        2 * pad <= (k - 1) * d + 1
        for pad, k, d in zip(at.before, at.kernel, at.dilation, strict=True)
    ):
        return b.call(
            lambda t: pool(t, at.kernel, at.stride, at.before, at.dilation, ceil), x, front=False
        )
    if (
        set(at.dilation) != {1}
        or ceil
        or any(max(ends) >= k for *ends, k in zip(at.before, at.after, at.kernel, strict=True))
    ):
        raise Unsupported(
            f"pads {at.before + at.after} with kernel {at.kernel}, dilations {at.dilation}, "
            f"ceil_mode {int(ceil)}"
        )
    # every window that reaches beyond an end holds the entry at that end, which may stand there
    # once more
    places = [
        torch.arange(-low, size + high).clamp(0, size - 1)
        for low, high, size in zip(at.before, at.after, x.shape[2:], strict=True)
    ]
    for d, place in enumerate(places):
        x = b.call(lambda t, i, d=d: t.index_select(d + 2, i), x, place, front=False)
    return b.call(lambda t: pool(t, at.kernel, at.stride), x, front=False)


def average_pool(b: Builder, a: Attributes, x: Value) -> Value:
    """The mean of each window, of what is added at the ends too where `count_include_pad`."""
    spatial = _image(x)
    if spatial > 3:
        raise Unsupported(f"in {spatial} dimensions; one to three can be read")
    at = _windows(a, x.shape[2:], a["kernel_shape"])
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[spatial - 1]
    ceil = at.ceil(a, x.shape[2:])
    include = bool(a.get("count_include_pad", 0))
    plain = set(at.dilation) == {1}
    if plain and at.even and all(2 * pad <= k for pad, k in zip(at.before, at.kernel, strict=True)):
        return b.call(
            lambda t: pool(t, at.kernel, at.stride, at.before, ceil, include), x, front=False
        )
    if ceil:
        raise Unsupported(
            f"ceil_mode=1 with pads {at.before + at.after} and dilations {at.dilation}"
        )
    # a sum of each window's entries, over how many they are
    run: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    channels = x.shape[1]
    count = math.prod(at.kernel)
    ones = torch.ones(channels, 1, *at.kernel, dtype=x.dtype) / count
    inside = F.pad(
        torch.ones(1, 1, *x.shape[2:], dtype=torch.float64), at.pads, value=float(include)
    )
    share = (
        run(
            inside,
            torch.ones(1, 1, *at.kernel, dtype=torch.float64),
            None,
            at.stride,
            0,
            at.dilation,
        )
        / count
    )
    if bool((share == 0).any()):
        raise Unsupported(
            f"pads {at.before + at.after} with kernel {at.kernel}: a window holds nothing"
        )
    padded = b.call(lambda t: F.pad(t, at.pads), x, front=False)
    average = b.call(
        lambda t, w: run(t, w, None, at.stride, 0, at.dilation, channels), padded, ones, front=False
    )
    factor = share.reciprocal().to(x.dtype)
    return average if bool((share == 1).all()) else b.call(torch.mul, average, factor, front=False)


def global_mean(b: Builder, a: Attributes, x: Value) -> Value:
    """Of each channel."""
    dims = tuple(range(2, 2 + _image(x)))
    return b.call(lambda t: t.mean(dims, keepdim=True), x, front=False)


def prelu(b: Builder, a: Attributes, x: Value, slope: Value) -> Value:
    """A leaky ReLU whose slopes are constants."""
    slopes = _constant(slope, "its slope")
    assert slopes is not None
    if slopes.numel() == 1:
        factor = float(slopes)
        return b.call(lambda t: F.leaky_relu(t, factor), x, front=not x.leads)
    sizes = (*[1] * (len(x.shape) - slopes.dim()), *slopes.shape)
    if x.leads and sizes == (1, x.shape[1], *[1] * (len(x.shape) - 2)):  # one for each channel
        return b.call(F.prelu, x, slopes.flatten(), front=False)
    above = b.call(F.relu, x, front=not x.leads)
    below = elementwise(torch.mul)(b, {}, elementwise(torch.sub)(b, {}, x, above), slope)
    return _add(b, {}, above, below)


def clip(
    b: Builder, a: Attributes, x: Value, low: Value | None = None, high: Value | None = None
) -> Value:
    """Between two numbers, which were attributes once."""
    ends = [
        a.get(name) if value is None else _scalar(value, f"its {name}")
        for name, value in (("min", low), ("max", high))
    ]
    if ends == [None, None]:
        return x
    return b.call(lambda t: torch.clamp(t, *ends), x, front=not x.leads)


def _scalar(value: Value, what: str) -> float:
    number = _constant(value, what)
    assert number is not None
    if number.numel() != 1:
        raise Unsupported(f"{what} is of shape {tuple(number.shape)}; one number can be read")
    return float(number)


def softmax(function: Callable[..., Tensor]) -> Callable[..., Value]:
    """Along one dimension, the last by default."""

    def read(b: Builder, a: Attributes, x: Value) -> Value:
        axis = _axis(a.get("axis", -1), len(x.shape))
        if x.leads and axis:
            return b.call(lambda t: function(t, axis), x, front=False)
        front = b.in_front(x)
        return b.call(lambda t: function(front(t), axis + 1), x, front=True)

    return read


def dropout(
    b: Builder, a: Attributes, x: Value, ratio: Value | None = None, training: Value | None = None
) -> Value:
    """Nothing, unless it trains."""
    if training is not None and (training.constant is None or bool(training.constant.any())):
        raise Unsupported("training_mode is on, or computed; what it drops is left to chance")
    return x


def constant(b: Builder, a: Attributes) -> Value:
    """Numbers in the file."""
    if len(a) != 1:
        raise Unsupported(f"has the attributes {', '.join(a) or 'none'}; one value can be read")
    ((name, value),) = a.items()
    return numbers(np.asarray(value, _WRITTEN[name]) if name in _WRITTEN else value, "its value")


_WRITTEN = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def numbers(array: np.ndarray, what: str) -> Value:
    """A constant from an array. Raises `Unsupported` for what are no numbers, or of a type without
    arithmetic in torch.
    """
    if array.dtype.name not in _TYPES:
        raise Unsupported(f"{what} is of type {array.dtype}; {', '.join(_TYPES)} can be read")
    return _held(torch.from_numpy(np.array(array)))  # a copy, since files are read-only memory


def _held(t: Tensor) -> Value:
    return Value("", tuple(t.shape), t.dtype, t)


_TYPES = ("float16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def _anything(value: Any) -> bool:
    return True


def _number(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int)


def _wholes(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(part, int) for part in value)


def _flag(value: Any) -> bool:
    return value in (0, 1)


def _is(*wanted: Any) -> Callable[[Any], bool]:
    return lambda value: value in wanted


_AUTO = _is("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
_LOOKS: Mapping[str, Callable[[Any], bool]] = {
    "kernel_shape": _wholes,
    "strides": _wholes,
    "pads": _wholes,
    "auto_pad": _AUTO,
}

# versions of version 6 and earlier that stretched sizes only where `broadcast` said so have other
# meanings with that attribute
OPERATORS: Mapping[str, Operator] = {
    **{kind.onnx.operator: activation(kind.onnx) for kind in ACTIVATIONS.values() if kind.onnx},
    "PRelu": Operator(prelu, (7, 16)),
    "Clip": Operator(clip, (6, 13), {"min": _number, "max": _number}),
    "Softmax": Operator(softmax(torch.softmax), (13, 13), {"axis": _whole}),
    "LogSoftmax": Operator(softmax(torch.log_softmax), (13, 13), {"axis": _whole}),
    "Log": Operator(unary(torch.log), (6, 13)),
    "Greater": Operator(elementwise(torch.gt), (7, 13)),
    "Where": Operator(elementwise(torch.where), (9, 16)),
    "Gemm": Operator(
        gemm, (7, 13), {"alpha": _number, "beta": _number, "transA": _flag, "transB": _flag}
    ),
    "MatMul": Operator(matmul, (1, 13)),
    "Conv": Operator(conv, (1, 22), {**_LOOKS, "dilations": _wholes, "group": _whole}),
    "BatchNormalization": Operator(
        norm,
        (7, 15),
        {"epsilon": _number, "momentum": _anything, "spatial": _is(1), "training_mode": _is(0)},
    ),
    "MaxPool": Operator(
        max_pool,
        (1, 22),
        {**_LOOKS, "dilations": _wholes, "ceil_mode": _flag, "storage_order": _is(0)},
    ),
    "AveragePool": Operator(
        average_pool,
        (7, 22),
        {**_LOOKS, "dilations": _wholes, "ceil_mode": _flag, "count_include_pad": _flag},
    ),
    "GlobalAveragePool": Operator(global_mean, (1, 22)),
    "ReduceMean": Operator(
        mean, (1, 18), {"axes": _wholes, "keepdims": _flag, "noop_with_empty_axes": _flag}
    ),
    "Flatten": Operator(flatten, (1, 25), {"axis": _whole}),
    "Reshape": Operator(reshape, (5, 25), {"allowzero": _flag}),
    "Transpose": Operator(transpose, (1, 25), {"perm": _wholes}),
    "Gather": Operator(gather, (1, 13), {"axis": _whole}),
    "Concat": Operator(concat, (4, 13), {"axis": _whole}),
    "Add": Operator(add, (6, 14)),
    "Sub": Operator(elementwise(torch.sub), (6, 14)),
    "Mul": Operator(elementwise(torch.mul), (6, 14)),
    "Div": Operator(elementwise(_quotient), (6, 14)),
    "Neg": Operator(unary(torch.neg), (6, 13)),
    "Identity": Operator(lambda b, a, x: x, (1, 25)),
    "Dropout": Operator(dropout, (7, 22), {"ratio": _anything, "seed": _anything}),
    "Constant": Operator(
        constant, (1, 25), {"value": _anything, **dict.fromkeys(_WRITTEN, _anything)}
    ),
}
