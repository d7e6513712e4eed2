"""The preparation of a table of numbers as a plain module: `encoder(preparation)`."""

from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from morphogen.data.preparation import Preparation


class _Encoder(nn.Module):
    """Columns as given (batch, columns) -> standardised values and bins, (batch, names): what
    `apply_preparation.number` makes of each, side by side.
    """

    column: Tensor
    low: Tensor
    width: Tensor
    least: Tensor
    most: Tensor

    def __init__(self, preparation: Preparation) -> None:
        super().__init__()
        rows = []
        for place, number in enumerate(preparation.numbers):
            rows.append((place, number.mean, number.scale, -number.clip, number.clip))
            rows += [(place, low, high - low, 0.0, 1.0) for low, high in pairwise(number.edges)]
        columns, *constants = zip(*rows, strict=True)
        self.register_buffer("column", torch.tensor(columns))
        for name, values in zip(("low", "width", "least", "most"), constants, strict=True):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        share = (x.index_select(1, self.column) - self.low) / self.width
        return torch.minimum(torch.maximum(share, self.least), self.most)


def encoder(preparation: Preparation) -> nn.Module:
    """In float64, traced, so that nothing of morphogen is in it. preparation: of numbers without
    gaps alone.
    """
    return fx.symbolic_trace(_Encoder(preparation)).eval()


def far_from_zero(preparation: Preparation, most: float) -> bool:
    """Whether some column's mean is more than so many spreads from 0."""
    return any(abs(number.mean) > most * number.scale for number in preparation.numbers)
