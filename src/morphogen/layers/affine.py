"""What `freeze` does to a linear or convolution layer so that it takes in what stands beside it.
All of it changes the layer in place.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.errors import Unsupported

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
AFFINE = (nn.Linear, *CONVOLUTIONS)
Affine = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def along_features(layer: Affine, dim: int | None) -> bool:
    """Whether `dim`, counted from the end, is the dimension of the features that a layer makes and
    reads.
    """
    return dim in (None, -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.dim())


def in_groups(layer: Affine) -> bool:
    return not isinstance(layer, nn.Linear) and layer.groups > 1


@torch.no_grad()
def scale_rows(layer: Affine, factors: Tensor) -> None:
    """y -> factors * y."""
    factors = factors.to(layer.weight.dtype)
    layer.weight = nn.Parameter(layer.weight * _stretched(factors[:, None], layer.weight))
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias * factors)


@torch.no_grad()
def scale_columns(layer: Affine, factors: Tensor) -> None:
    """x -> factors * x, for a layer without groups."""
    factors = factors.to(layer.weight.dtype)
    layer.weight = nn.Parameter(layer.weight * _stretched(factors[None], layer.weight))


def _stretched(factors: Tensor, weight: Tensor) -> Tensor:
    """(rows, columns), over the taps of a kernel."""
    return factors.view(*factors.shape, *[1] * (weight.dim() - 2))


@torch.no_grad()
def mirror_rows(layer: Affine) -> None:
    """y -> [y, -y], for a layer without groups."""
    layer.weight = nn.Parameter(torch.cat([layer.weight, -layer.weight]))
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.cat([layer.bias, -layer.bias]))
    if isinstance(layer, nn.Linear):
        layer.out_features = len(layer.weight)
    else:
        layer.out_channels = len(layer.weight)


@torch.no_grad()
def gate_and_add(layer: Affine, gate: float, kept: float) -> None:
    """y -> gate * y + kept * x. Raises `Unsupported` where x has another size than y."""
    # W' = gate W + kept I
    weight = gate * layer.weight
    if isinstance(layer, nn.Linear):
        weight += kept * torch.eye(len(weight)).to(weight)
    else:
        _require_same_size(layer)
        weight += kept * nn.init.dirac_(torch.empty_like(weight), layer.groups)
    layer.weight = nn.Parameter(weight)
    if layer.bias is not None:
        layer.bias = nn.Parameter(gate * layer.bias)


def _require_same_size(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
    taps: Iterable[tuple[Any, int, int]]
    taps = zip(layer.padding, layer.dilation, layer.kernel_size, strict=False)
    same = layer.padding == "same" or all(2 * p == d * (k - 1) for p, d, k in taps)
    if not same or any(s != 1 for s in layer.stride) or any(k % 2 == 0 for k in layer.kernel_size):
        raise Unsupported(
            f"freeze: {layer} changes the map's size, so an identity cannot be added to it"
        )
