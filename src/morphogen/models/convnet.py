"""A small convolutional classifier: stages of convolution, pooling and a learned depth."""

from collections import OrderedDict

from torch import nn

from morphogen.errors import ShapeError
from morphogen.layers.depth import LearnedDepth


def convnet(
    shape: tuple[int, int, int], outputs: int, width: int = 8, dropout: float = 0.0, max_blocks: int = 4
) -> nn.Sequential:
    """Stages until the map is at most 4x4, then one linear layer.

    shape: (channels, height, width) of an image. outputs: size of the result. width: channels of every stage at the start.
    Input (batch, *shape), output (batch, outputs).
    """
    channels, height, breadth = shape
    if min(height, breadth) < 4:
        raise ShapeError(f"convnet: an image of {height}x{breadth}; images need at least 4x4, use mlp for less")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    stage = 0
    while stage == 0 or min(height, breadth) > 4:
        stage += 1
        layers[f"conv{stage}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers[f"norm{stage}"] = nn.BatchNorm2d(width)
        # the same function as pooling after the ReLU, on a quarter of the values
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
        layers[f"relu{stage}"] = nn.ReLU()
        height, breadth, channels = height // 2, breadth // 2, width
        layers[f"depth{stage}"] = LearnedDepth(lambda _, c=channels: _block(c), max_blocks=max_blocks)  # type: ignore[misc]
    layers["flatten"] = nn.Flatten()
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["output"] = nn.Linear(channels * height * breadth, outputs)
    return nn.Sequential(layers)


def _block(channels: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(conv=nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm=nn.BatchNorm2d(channels))
    )
