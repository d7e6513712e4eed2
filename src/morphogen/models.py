"""Networks to start from, each a function that returns ordinary modules, and what a person sees of
one: `shape_of`.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

from torch import nn

from morphogen.errors import ShapeError
from morphogen.layers.dag.module import Dag
from morphogen.layers.depth import LearnedDepth
from morphogen.layers.feature_selection import FeatureSelection
from morphogen.record import Depth, Layer


def mlp(
    features: int,
    outputs: int,
    width: int = 8,
    dropout: float = 0.0,
    max_blocks: int = 6,
    select: bool = False,
) -> nn.Sequential:
    """One linear layer into the hidden width, a learned number of blocks that keep it, one linear
    layer out.

    width: 0 for that last layer alone. select: begin with a `FeatureSelection`, so that features
    can leave. Input (batch, features), output (batch, outputs).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if select:
        layers["features"] = FeatureSelection(features)
    if width == 0:
        layers["output"] = nn.Linear(features, outputs)
        return nn.Sequential(layers)
    layers["hidden"] = nn.Linear(features, width, bias=False)
    layers["norm"] = nn.BatchNorm1d(width)
    layers["relu"] = nn.ReLU()
    layers["depth"] = LearnedDepth(partial(_dense_block, width), max_blocks=max_blocks)
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["output"] = nn.Linear(width, outputs)
    return nn.Sequential(layers)


def _dense_block(width: int, number: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(linear=nn.Linear(width, width, bias=False), norm=nn.BatchNorm1d(width))
    )


def convnet(
    shape: tuple[int, int, int],
    outputs: int,
    width: int = 8,
    dropout: float = 0.0,
    max_blocks: int = 4,
) -> nn.Sequential:
    """Stages until the map is at most 4x4, then one linear layer.

    shape: (channels, height, width) of an image. outputs: size of the result. width: channels of
    every stage at the start. Input (batch, *shape), output (batch, outputs).
    """
    channels, height, breadth = shape
    if min(height, breadth) < 4:
        raise ShapeError(
            f"convnet: an image of {height}x{breadth}; images need at least 4x4, use mlp for less"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    stage = 0
    while stage == 0 or min(height, breadth) > 4:
        stage += 1
        layers[f"conv{stage}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers[f"norm{stage}"] = nn.BatchNorm2d(width)
        # the same function as pooling after the ReLU, on a quarter of the values
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
        layers[f"relu{stage}"] = nn.ReLU()
        height = height // 2
        breadth = breadth // 2
        channels = width
        block = partial(_conv_block, channels)
        layers[f"depth{stage}"] = LearnedDepth(block, max_blocks=max_blocks)
    layers["flatten"] = nn.Flatten()
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["output"] = nn.Linear(channels * height * breadth, outputs)
    return nn.Sequential(layers)


def _conv_block(channels: int, number: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(channels),
        )
    )


def dagnet(features: int, outputs: int, nodes: int = 8, **options: Any) -> nn.Sequential:
    """A `Dag` over all numbers of an example, read out linearly.

    features: how many numbers an example has, whatever its shape. nodes, options: of `Dag`. Its
    width, "dag", grows and shrinks by `resize`, a policy or `fit(..., wiring="dag")`. Input (batch,
    ...), output (batch, outputs).
    """
    return nn.Sequential(
        OrderedDict(flatten=nn.Flatten(), dag=Dag(features, nodes, outputs, **options))
    )


def shape_of(model: nn.Module) -> tuple[Layer, ...]:
    """Linear and convolution layers and DAGs in order, with their sizes; of a learned depth, the
    active blocks only.

    The last one is the output. Blocks are named after the layer before their stage: "conv1",
    "conv1.1", "conv1.2".
    """
    layers: list[Layer] = []
    _collect(model, "", layers, [])
    return (*layers[:-1], Layer(layers[-1].name, "output", layers[-1].units)) if layers else ()


def depths_of(model: nn.Module) -> tuple[Depth, ...]:
    """The learned depths in order, named as in `shape_of`."""
    depths: list[Depth] = []
    _collect(model, "", [], depths)
    return tuple(depths)


def _collect(module: nn.Module, name: str, layers: list[Layer], depths: list[Depth]) -> None:
    match module:
        case nn.Linear():
            layers.append(Layer(name, "linear", module.weight.shape[0]))
        case nn.modules.conv._ConvNd():
            layers.append(Layer(name, "conv", module.weight.shape[0]))
        case Dag():
            layers.append(Layer(name, "dag", module.nodes))
            if module.readout is not None:
                layers.append(Layer(f"{name}.readout", "linear", module.readout.weight.shape[0]))
        case LearnedDepth():
            stem = layers[-1].name if layers else name
            depths.append(
                Depth(stem, module.depth, tuple(module.gates()[: module.active_blocks].tolist()))
            )
            for number, block in enumerate(list(module.blocks)[: module.active_blocks], start=1):
                inner: list[Layer] = []
                _collect(block, "", inner, depths)
                layers.extend(Layer(f"{stem}.{number}", layer.kind, layer.units) for layer in inner)
        case _:
            for child, submodule in module.named_children():
                _collect(submodule, f"{name}.{child}" if name else child, layers, depths)
