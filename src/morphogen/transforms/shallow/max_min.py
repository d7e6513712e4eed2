"""A network over its first hidden layer as max over patterns s, min over patterns t, of one affine
function each: `max_min`.

Two passes from the same first layer, coupled by the signs of weights: one stays above the network
if s is the true pattern, one below if t is,

    Z+ = W+ H+ - W- H- + b,   Z- = W+ H- - W- H+ + b,   H+ <- s Z+,   H- <- t Z-,   g(s, t) = a+ H+
    - a- H- + c,

so the true pattern in both places is a saddle point, and it is enough to take patterns that occur
on the box.

Source: ours; it makes the difference of maxima of An et al. 2017 (arXiv 1703.10355) as small as the
box allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

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
    refused,
    shaped,
)


@dataclass(frozen=True)
class MaxMin(Form):
    """f = max over `upper_patterns` of min over `lower_patterns`, of the layers after the first,
    (patterns, units) each.
    """

    upper_patterns: Tensor
    lower_patterns: Tensor

    @property
    def n_terms(self) -> int:
        return len(self.upper_patterns) * len(self.lower_patterns)

    @property
    def n_units(self) -> int:
        return self.net.layers[0].units if self.net.layers else 0

    @property
    def log2_formal(self) -> float:
        return 2.0 * (self.net.units - self.n_units)

    @cached_property
    def _rows(self) -> Tensor:
        """(patterns above, patterns below, outputs, base + 1): functions of `base`, the constant
        last.
        """
        size = self.net.inputs + self.n_units
        start = torch.eye(size, size + 1, dtype=torch.float64)
        # every pattern above with every pattern below
        ups = len(self.upper_patterns)
        downs = len(self.lower_patterns)
        above = self.upper_patterns.repeat_interleave(downs, 0)
        below = self.lower_patterns.repeat(ups, 1)
        sources = list(start.split([self.net.inputs, self.n_units]))
        rows, _ = _coupled(self.net, sources, above, below)
        return rows.view(ups, downs, *rows.shape[1:])

    def _value(self, x: Tensor) -> Tensor:
        # max over s, min over t of g(s, t)
        values = base(self.net, x) @ self._rows.flatten(0, 2).T
        values = values.view(len(x), *self._rows.shape[:3])
        return values.amin(2).amax(1)

    def _lower(self, x: Tensor) -> Tensor:
        """With the true pattern below, every pattern above gives a lower bound."""
        return self._saddle(x, self.upper_patterns, True).amax(1)

    def _upper(self, x: Tensor) -> Tensor:
        return self._saddle(x, self.lower_patterns, False).amin(1)

    def _saddle(self, x: Tensor, patterns: Tensor, above: bool) -> Tensor:
        """g at x with the true pattern on one side, (batch, patterns, outputs)."""
        true = self.net.pattern(x)[:, self.n_units :].repeat_interleave(len(patterns), 0)
        listed = patterns.repeat(len(x), 1)
        ahead = base(self.net, x)[:, :-1].repeat_interleave(len(patterns), 0)
        sources = [part[..., None] for part in ahead.split([self.net.inputs, self.n_units], 1)]
        # functions of nothing: constants
        sources = [torch.cat([torch.zeros_like(part), part], 2) for part in sources]
        ups, downs = (listed, true) if above else (true, listed)
        g, _ = _coupled(self.net, sources, ups, downs)
        return g[..., -1].view(len(x), len(patterns), g.shape[1])

    def prune(self) -> "MaxMin":
        """Without patterns whose functions are all those of another."""
        rows = self._rows
        keep = [distinct(rows.transpose(0, side).flatten(1))[2] for side in (0, 1)]
        return replace(
            self,
            upper_patterns=self.upper_patterns[keep[0]],
            lower_patterns=self.lower_patterns[keep[1]],
        )

    def to_torch(self) -> nn.Sequential:
        rows = self._rows.permute(2, 0, 1, 3)  # outputs, then patterns above, then those below
        outputs, ups, downs, _ = rows.shape
        hidden, outer, straight = over_base(self.net, -rows.flatten(0, 2))
        eye = torch.eye(outputs * ups, dtype=torch.float64)
        return nn.Sequential(
            *one_hidden(self.net, hidden, outer, straight),
            *largest_of(outputs * ups, downs),
            linear(-eye, eye.new_zeros(len(eye))),
            *largest_of(outputs, ups),
            *shaped(self.net),
        )


def max_min(net: Piecewise, cells: Regions, limit: float) -> MaxMin:
    """Of the patterns that the layers after the first take on the cells."""
    first = net.layers[0].units if net.layers else 0
    later = cells.patterns[:, first:]
    patterns = later.unique(dim=0) if later.shape[1] else later[:1]
    refused("max-min", 2 * torch.tensor(float(len(patterns))).log2().item(), limit)
    return MaxMin(net, patterns, patterns)


def _coupled(
    net: Piecewise, sources: Sequence[Tensor], above: Tensor, below: Tensor
) -> tuple[Tensor, Tensor]:
    """g and its opposite, which is at most the network where the first is at least it: (rows,
    outputs, columns). sources: the input and the first layer's values, (units, columns) or (rows,
    units, columns); above, below: (rows, units).
    """
    high: list[Tensor] = list(sources)
    low: list[Tensor] = list(sources)
    sizes = [layer.units for layer in net.layers[1:]]
    later = zip(net.layers[1:], above.split(sizes, 1), below.split(sizes, 1), strict=True)
    for layer, s, t in later:
        # H+ <- s Z+,   H- <- t Z-
        up, down = _pair(layer, high, low, len(above))
        high.append(slopes(s, layer)[..., None] * up)
        low.append(slopes(t, layer)[..., None] * down)
    return _pair(net.output, high, low, len(above))


def _pair(
    layer: HiddenLayer, high: Sequence[Tensor], low: Sequence[Tensor], rows: int
) -> tuple[Tensor, Tensor]:
    # Z+ = W+ H+ - W- H- + b,   Z- = W+ H- - W- H+ + b
    columns = high[0].shape[-1]
    up = torch.zeros(rows, layer.units, columns, dtype=torch.float64)
    up[..., -1] = layer.bias
    down = up.clone()
    for source, weight in layer.weights.items():
        positive = weight.clamp_min(0)
        negative = weight.clamp_max(0)
        up += positive @ high[source] + negative @ low[source]
        down += positive @ low[source] + negative @ high[source]
    return up, down
