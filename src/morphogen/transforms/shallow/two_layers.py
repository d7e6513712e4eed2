"""A network whose last hidden layer is gone, as a difference of two maxima of networks that share
all layers before: `split`.

    f = c + max over S of sum_{j in S} a_j z_j  -  max over T of sum_{j in T} |a_j| z_j,   a_j > 0
    in S, a_j < 0 in T,

z the last layer before its ReLU. With two hidden layers every term has one. Formally there are 2^P
+ 2^N terms, P and N the numbers of positive and negative weights; on a box only the subsets that
occur are needed.

Source: the two-layer case behind An et al. 2017 (arXiv 1703.10355): a (z)+ = max over s in {0, 1}
of a s z for a >= 0.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from morphogen.errors import Unsupported
from morphogen.formats.modules import linear
from morphogen.linear_regions.piecewise import HiddenLayer, Piecewise, slopes
from morphogen.linear_regions.regions import Regions
from morphogen.transforms.shallow.form import (
    Form,
    base,
    distinct,
    largest_of,
    one_hidden,
    over_base,
    shaped,
)


@dataclass(frozen=True)
class Split(Form):
    """patterns: of the last layer, by output: those of its units with positive weights, and with
    negative ones, (subsets, units) each, False for the others.
    """

    patterns: tuple[tuple[Tensor, Tensor], ...]

    @property
    def n_terms(self) -> int:
        return max(len(up) + len(down) for up, down in self.patterns)

    @property
    def n_units(self) -> int:
        return self.net.layers[0].units

    @property
    def log2_formal(self) -> float:
        weights = self._weights
        counts = torch.stack([(weights > 0).sum(1), (weights < 0).sum(1)]).double()
        return float(torch.logaddexp2(counts[0], counts[1]).max())

    @property
    def _weights(self) -> Tensor:
        """Of the last layer in the output, (outputs, units)."""
        none = torch.zeros(
            len(self.net.output.bias), self.net.layers[-1].units, dtype=torch.float64
        )
        return self.net.output.weights.get(2, none)

    @cached_property
    def _rows(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """By output the terms of either maximum, as functions of `base`. The rest of the output is
        in the first.
        """
        last = self.net.layers[-1]
        size = self.net.inputs + self.n_units
        columns = {0: slice(0, self.net.inputs), 1: slice(self.net.inputs, size)}

        def over(layer: HiddenLayer) -> Tensor:
            """A layer's sums, of the input and the first layer alone."""
            rows = torch.zeros(layer.units, size + 1, dtype=torch.float64)
            rows[:, -1] = layer.bias
            for source in columns.keys() & layer.weights.keys():
                rows[:, columns[source]] += layer.weights[source]
            return rows

        z = over(last)
        rest = over(self.net.output)
        rows = []
        for k, (up, down) in enumerate(self.patterns):
            a = self._weights[k]
            above = slopes(up, last) * a.clamp_min(0)
            below = slopes(down, last) * (-a).clamp_min(0)
            rows.append((above @ z + rest[k], below @ z))
        return tuple(rows)

    def _sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Either maximum over its listed terms, (batch, outputs)."""
        ahead = base(self.net, x)
        both = [[(ahead @ rows.T).amax(1) for rows in pair] for pair in self._rows]
        up, down = (torch.stack(side, 1) for side in zip(*both, strict=True))
        return up, down

    def _whole(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Either maximum over all subsets, which is what the layer itself gives."""
        before, out = self.net.run(x)
        h = torch.maximum(before[-1], self.net.layers[-1].slope * before[-1])
        down = h @ (-self._weights).clamp_min(0).T
        return out + down, down

    def _value(self, x: Tensor) -> Tensor:
        up, down = self._sides(x)
        return up - down

    def _lower(self, x: Tensor) -> Tensor:
        return self._sides(x)[0] - self._whole(x)[1]

    def _upper(self, x: Tensor) -> Tensor:
        return self._whole(x)[0] - self._sides(x)[1]

    def prune(self) -> "Split":
        """Without subsets whose functions are those of another."""
        kept = []
        for pair, rows in zip(self.patterns, self._rows, strict=True):
            up, down = (listed[distinct(own)[2]] for listed, own in zip(pair, rows, strict=True))
            kept.append((up, down))
        return replace(self, patterns=tuple(kept))

    def to_torch(self) -> nn.Sequential:
        return difference_of_maxima(self.net, self._rows)


def difference_of_maxima(net: Piecewise, rows: tuple[tuple[Tensor, Tensor], ...]) -> nn.Sequential:
    """As modules. rows: by output, functions of `base`, (terms, columns) of either maximum."""
    size = max(len(own) for pair in rows for own in pair)
    padded = [
        torch.cat([own, own[:1].expand(size - len(own), -1)]) for pair in rows for own in pair
    ]
    outputs = len(rows)
    sign = torch.kron(
        torch.eye(outputs, dtype=torch.float64), torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    )
    return nn.Sequential(
        *one_hidden(net, *over_base(net, torch.cat(padded))),
        *largest_of(2 * outputs, size),
        linear(sign, sign.new_zeros(outputs)),
        *shaped(net),
    )


def split(net: Piecewise, cells: Regions, limit: float) -> Split:
    """Of the subsets that occur on the cells. Raises `Unsupported` unless there are two hidden
    layers.
    """
    if len(net.layers) != 2:
        raise Unsupported(
            f"shallow: form='split' is of two hidden layers, this network has {len(net.layers)}; "
            "give form='maximum'"
        )
    last = cells.patterns[:, net.layers[0].units :]
    none = torch.zeros(len(net.output.bias), last.shape[1], dtype=torch.float64)
    patterns = []
    for a in net.output.weights.get(2, none):
        up = (last & (a > 0)).unique(dim=0)
        down = (last & (a < 0)).unique(dim=0)
        patterns.append((up, down))
    return Split(net, tuple(patterns))
