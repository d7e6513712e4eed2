"""The shape a person sees: one bar a layer that computes."""

from torch import nn

from morphogen.layers.dag import Dag
from morphogen.layers.depth import LearnedDepth
from morphogen.record import Depth, Layer


def shape_of(model: nn.Module) -> tuple[Layer, ...]:
    """Linear and convolution layers and DAGs in order, with their sizes; of a learned depth, the active blocks only.

    The last one is the output. Blocks are named after the layer before their stage: "conv1", "conv1.1", "conv1.2".
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
            depths.append(Depth(stem, module.depth, tuple(module.gates()[: module.active_blocks].tolist())))
            for number, block in enumerate(list(module.blocks)[: module.active_blocks], start=1):
                inner: list[Layer] = []
                _collect(block, "", inner, depths)
                layers.extend(Layer(f"{stem}.{number}", layer.kind, layer.units) for layer in inner)
        case _:
            for child, submodule in module.named_children():
                _collect(submodule, f"{name}.{child}" if name else child, layers, depths)
