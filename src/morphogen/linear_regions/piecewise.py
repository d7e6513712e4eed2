"""A piecewise linear network in one form: layers of (leaky) ReLUs, each reading the inputs and all
earlier layers.

`piecewise(model, box) -> Piecewise` is what `regions` and `shallow` read: residual adds,
concatenations, convolutions, poolings and norms are all sums of what came before, so there is
nothing else to know of a network. Inputs that the box fixes are folded into the biases; a maximum
of several values becomes ReLUs, max(a, b) = a + relu(b - a).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from morphogen.bounds.box import Box
from morphogen.bounds.jacobian import linear_step
from morphogen.bounds.maximum import windows
from morphogen.bounds.rules import MAXIMA, affine, rectifier
from morphogen.errors import ShapeError, Unsupported
from morphogen.tracing.program import Program, Step, program

_NOISE = 1e-13  # relative to the sum of the terms by their sizes
_LARGEST = 1 << 28  # entries of the widest table of coefficients: two gigabytes


@dataclass(frozen=True)
class HiddenLayer:
    """z = sum of weights[k] @ source k + bias, h = max(z, slope z); source 0 is the input, source l
    the h of layer l.

    weights: (units, size of the source) each, only those that are not zero. bias: (units,). slope:
    in [0, 1).
    """

    weights: Mapping[int, Tensor]
    bias: Tensor
    slope: float = 0.0

    @property
    def units(self) -> int:
        return len(self.bias)


@dataclass(frozen=True)
class Piecewise:
    """Layers in order, and the output, which is affine in all of them. Everything is float64.

    box: of the free inputs, (1, free). shape: of one output. origin, directions: what the network
    takes is origin + free inputs . directions, (*shape of an example) and (free, *shape of an
    example). plane: whether those were given, so that free inputs are coefficients; else they are
    entries of the example.
    """

    layers: tuple[HiddenLayer, ...]
    output: HiddenLayer
    box: Box
    shape: tuple[int, ...]
    origin: Tensor
    directions: Tensor
    plane: bool

    @property
    def inputs(self) -> int:
        return self.box.lower.shape[1]

    @property
    def units(self) -> int:
        """Of all layers."""
        return sum(layer.units for layer in self.layers)

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (batch, outputs) at free inputs x (batch, free)."""
        return self.run(x)[1]

    def run(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """(z of every layer, (batch, units) each; the outputs)."""
        sources = [x]
        before = []
        for layer in self.layers:
            before.append(summed(layer, sources))
            sources.append(torch.maximum(before[-1], layer.slope * before[-1]))
        return before, summed(self.output, sources)

    def pattern(self, x: Tensor) -> Tensor:
        """Which units are above 0 at x, by more than rounding, (batch, units)."""
        sources = [x]
        above = [torch.zeros(len(x), 0, dtype=torch.bool)]
        for layer in self.layers:
            z = summed(layer, sources)
            above.append(
                z
                > _NOISE
                * (summed(by_size(layer), [value.abs() for value in sources]) + layer.bias.abs())
            )
            sources.append(torch.maximum(z, layer.slope * z))
        return torch.cat(above, 1)

    def free_of(self, x: Tensor) -> Tensor:
        """The free inputs, of examples (batch, *shape); on a plane they are what is given."""
        x = x.to(torch.float64).flatten(1)
        return x if self.plane else x.index_select(1, torch.tensor(self.free, dtype=torch.long))

    def given(self, x: Tensor) -> Tensor:
        """What has the free inputs x, (batch, free): the reverse of `free_of`."""
        return x if self.plane else self.examples(x)

    def examples(self, x: Tensor) -> Tensor:
        """What the network itself takes where the free inputs are x: (batch, *shape)."""
        moved: Tensor = (x @ self.directions.flatten(1)).unflatten(1, self.origin.shape)
        return self.origin + moved

    @property
    def free(self) -> tuple[int, ...]:
        """The places of the free inputs among the flattened entries of what is given."""
        return (
            tuple(range(self.inputs))
            if self.plane
            else tuple(self.directions.flatten(1).argmax(1).tolist())
        )

    @property
    def entries(self) -> int:
        """Of what is given, flattened."""
        return self.inputs if self.plane else self.origin.numel()

    def steepest(self, pattern: Tensor, radius: Tensor) -> Tensor:
        """How steep each z could be where units have these signs if no two terms cancelled, inputs
        in units of their radius: (batch, units). Beside this a slope that is no more than rounding
        is none.
        """
        sources = [identity(self.inputs, len(pattern))]
        lengths = [radius[:, None].expand(-1, len(pattern))]
        reaches = [pattern.new_zeros(len(pattern), 0, dtype=torch.float64)]
        for layer, above in zip(self.layers, self.of_layers(pattern), strict=True):
            reaches.append(steepest(by_size(layer), lengths).T)
            sources.append(slopes(above, layer).T[..., None] * function(layer, sources))
            lengths.append((sources[-1][..., :-1] * radius).norm(dim=-1))
        return torch.cat(reaches, 1)

    def of_layers(self, units: Tensor) -> tuple[Tensor, ...]:
        """(..., units) by layer."""
        return tuple(units.split([layer.units for layer in self.layers], -1))

    def slopes(self, pattern: Tensor) -> tuple[Tensor, ...]:
        """What each unit multiplies z with, where its sign is given: (batch, units of a layer)
        each.
        """
        return tuple(
            slopes(part, layer)
            for part, layer in zip(self.of_layers(pattern), self.layers, strict=True)
        )

    def affine(self, pattern: Tensor) -> tuple[Tensor, Tensor]:
        """(every z, every output) as affine functions of the input where units have these signs:
        (batch, units or outputs, free + 1), the constant last. pattern: (batch, units).
        """
        sources = [identity(self.inputs, len(pattern))]
        before = [torch.zeros(0, len(pattern), self.inputs + 1, dtype=torch.float64)]
        for layer, above in zip(self.layers, self.of_layers(pattern), strict=True):
            before.append(function(layer, sources))
            sources.append(slopes(above, layer).T[..., None] * before[-1])
        return torch.cat(before).transpose(0, 1), function(self.output, sources).transpose(0, 1)


def slopes(above: Tensor, layer: HiddenLayer) -> Tensor:
    """What the units of a layer multiply z with, where these are above 0."""
    return above.double() + layer.slope * (~above).double()


def identity(inputs: int, batch: int) -> Tensor:
    """The input as a function of itself, (inputs, batch, inputs + 1)."""
    return torch.eye(inputs, inputs + 1, dtype=torch.float64)[:, None].expand(-1, batch, -1)


def by_size(layer: HiddenLayer) -> HiddenLayer:
    """With every weight by its size, and no bias."""
    return HiddenLayer(
        {source: weight.abs() for source, weight in layer.weights.items()},
        torch.zeros_like(layer.bias),
        layer.slope,
    )


def steepest(sizes: HiddenLayer, lengths: Sequence[Tensor]) -> Tensor:
    """How steep each z of a layer `by_size` could be, (units, batch), whose sources are so steep,
    (units, batch) each.
    """
    reach = lengths[0].new_zeros(sizes.units, lengths[0].shape[1])
    for source, size in sizes.weights.items():
        reach.addmm_(size, lengths[source])
    return reach


def function(layer: HiddenLayer, sources: Sequence[Tensor]) -> Tensor:
    """A layer's z as affine functions, (units, batch, inputs + 1), of those of its sources."""
    _, batch, columns = sources[0].shape
    z = torch.zeros(layer.units, batch, columns, dtype=torch.float64)
    z[..., -1] = layer.bias[:, None]
    for source, weight in layer.weights.items():
        if source == 0:
            z[..., :-1] += weight[:, None]
        else:
            z.view(layer.units, -1).addmm_(weight, sources[source].reshape(weight.shape[1], -1))
    return z


def normed(z: Tensor, length: Tensor, steepest: Tensor) -> Tensor:
    """Affine functions (..., inputs + 1), each divided by the length of its slope (...), so that
    values are distances; where that is no more than rounding of `steepest` (...), a constant: its
    sign.
    """
    flat = (length <= 1e-13 * steepest)[..., None]
    if not bool(flat.any()):
        return z / length[..., None]
    sign = torch.cat([torch.zeros_like(z[..., :-1]), z[..., -1:].sign()], -1)
    return torch.where(flat, sign, z / length[..., None].clamp_min(1e-300))


def summed(layer: HiddenLayer, sources: Sequence[Tensor]) -> Tensor:
    """A layer's z, (batch, units), of the values of its sources, (batch, units)."""
    z = layer.bias.expand(len(sources[0]), -1)
    for source, weight in layer.weights.items():
        z = z + sources[source] @ weight.T
    return z


def piecewise(model: nn.Module, box: Box, along: tuple[Tensor, Tensor] | None = None) -> Piecewise:
    """The network on a box of one example, (1, *shape).

    along: (an input (*shape), directions (d, *shape)): the network is restricted to the plane
    origin + t . directions, and the box is of t, (1, d). Raises `Unsupported` for an operation that
    is neither affine nor a (leaky) ReLU nor max-pooling.
    """
    if not box.is_box:
        raise ShapeError(f"piecewise: a {type(box).__name__} is no box; give Box(lower, upper)")
    if len(box.lower) != 1:
        raise ShapeError(
            f"piecewise: the box is of {len(box.lower)} examples; give one, (1, *shape)"
        )
    box = box.as_input(torch.float64)
    if along is None:
        free = (box.lower != box.upper).flatten().nonzero()[:, 0]
        origin = torch.where((box.lower == box.upper)[0], box.lower[0], 0.0)
        directions = torch.eye(origin.numel(), dtype=torch.float64)[free].unflatten(1, origin.shape)
        box = Box(box.lower.flatten(1)[:, free], box.upper.flatten(1)[:, free])
    else:
        origin = along[0].double()
        directions = along[1].double()
        if directions.shape[1:] != origin.shape or box.lower.shape[1:] != directions.shape[:1]:
            raise ShapeError(
                f"along: the origin is {tuple(origin.shape)}, the directions are "
                f"{tuple(directions.shape)} and the box of their coefficients "
                f"{tuple(box.lower.shape)}; give (*shape), (d, *shape) and (1, d)"
            )
    net = program(model, torch.zeros(2, *origin.shape))
    layers, output = _Reader(net, torch.cat([origin[None], directions])[None]).read()
    return Piecewise(
        tuple(layers), output, box, net.shapes[net.output], origin, directions, along is not None
    )


class _Reader:
    """Goes through the steps with every value as an affine function of inputs and units: (1, 1 +
    columns, *shape).
    """

    def __init__(self, net: Program, start: Tensor) -> None:
        self.net = net
        self.values = {net.input: start}
        self.layers = list[HiddenLayer]()
        self.sizes = [start.shape[1] - 1]

    def read(self) -> tuple[list[HiddenLayer], HiddenLayer]:
        for step in self.net.steps:
            slope = rectifier(step)
            if slope is not None:
                self.values[step.name] = self.rectified(self.values[step.reads[0]], slope)
            elif step.kind in MAXIMA:
                self.values[step.name] = self.largest(step)
            elif affine(step):
                self.values[step.name] = linear_step(
                    step, {name: self.wide(self.values[name]) for name in step.reads}
                )
            else:
                raise Unsupported(
                    f"piecewise: '{step.kind}' at node '{step.name}' is neither affine nor a ReLU, "
                    "a leaky ReLU with a slope in [0, 1) or a max-pooling; regions and shallow "
                    "forms are of piecewise linear networks"
                )
        return self.layers, self.layer(self.values[self.net.output], 1.0)

    def wide(self, value: Tensor) -> Tensor:
        """With a column for every unit so far."""
        lacking = 1 + sum(self.sizes) - value.shape[1]
        return (
            torch.cat([value, value.new_zeros(1, lacking, *value.shape[2:])], 1)
            if lacking
            else value
        )

    def layer(self, z: Tensor, slope: float) -> HiddenLayer:
        rows = self.wide(z).flatten(1).view(1 + sum(self.sizes), -1)
        if rows.numel() > _LARGEST:
            raise Unsupported(
                f"piecewise: {tuple(rows.shape)} coefficients do not fit in memory; give a smaller "
                "network"
            )
        parts = rows[1:].split(self.sizes)
        return HiddenLayer(
            {i: part.T.contiguous() for i, part in enumerate(parts) if bool(part.any())},
            rows[0],
            slope,
        )

    def rectified(self, z: Tensor, slope: float) -> Tensor:
        """New units, (1, 1 + columns, *shape)."""
        before = 1 + sum(self.sizes)
        count = z[0, 0].numel()
        self.layers.append(self.layer(z, slope))
        self.sizes.append(count)
        units = torch.cat([z.new_zeros(before, count), torch.eye(count, dtype=z.dtype)])
        return units.view(1, before + count, *z.shape[2:])

    def largest(self, step: Step) -> Tensor:
        """Pairs of a window's values, until one is left."""
        value = self.values[step.reads[0]]
        value = value.flatten(2)
        at = windows(step, self.net.shapes[step.reads[0]])
        inside = at < value[0, 0].numel()
        # twice the same changes no maximum
        at = torch.where(inside, at, at.gather(1, inside.byte().argmax(1, keepdim=True)))
        rest = list(value[:, :, at].unbind(3))
        while len(rest) > 1:
            pairs = list(zip(rest[::2], rest[1::2], strict=False))
            last = rest[len(rest) // 2 * 2 :]
            first, second = (torch.stack(side, 2) for side in zip(*pairs, strict=True))
            units = self.rectified(second - first, 0.0)
            rest = [self.wide(part) for part in last]
            rest = [*(self.wide(first) + units).unbind(2), *rest]
        largest: Tensor = rest[0].unflatten(2, step.shape)
        return largest
