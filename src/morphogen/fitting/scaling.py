"""How numbers to predict are standardised, and how a network gives them in their own unit again."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from morphogen.data.dataset import Dataset
from morphogen.layers.ensemble import Ensemble


@dataclass(frozen=True)
class Scaling:
    """mean, scale: (targets,), in float64. Of classes nothing is standardised."""

    mean: np.ndarray
    scale: np.ndarray

    @staticmethod
    def of(dataset: Dataset) -> "Scaling":
        """From the training rows."""
        if dataset.task != "regression":
            return Scaling(np.zeros(1), np.ones(1))
        y = np.asarray(dataset.y_train, np.float64).reshape(len(dataset.y_train), -1)
        spread = y.std(0)
        return Scaling(y.mean(0), np.where(spread > 0, spread, 1.0))

    def standardised(self, y: np.ndarray) -> np.ndarray:
        """(n,) or (n, targets) numbers -> (n, targets) in float32."""
        wide = np.asarray(y, np.float64).reshape(len(y), -1)
        return np.asarray((wide - self.mean) / self.scale, np.float32)

    def inverse(self) -> "Scaling":
        """From the unit back to spreads."""
        return Scaling(-self.mean / self.scale, 1 / self.scale)


@torch.no_grad()
def to_unit(plain: nn.Sequential, scaling: Scaling) -> None:
    """Fold the target's standardisation into the last layer, computed in float64 whatever its own
    type; of an ensemble, into each member's.
    """
    last = plain[-1]
    if isinstance(last, Ensemble):
        for member in last.members:
            assert isinstance(member, nn.Sequential)
            to_unit(member, scaling)
        return
    assert isinstance(last, nn.Linear)
    scale = torch.as_tensor(scaling.scale).to(last.weight.device)
    mean = torch.as_tensor(scaling.mean).to(last.weight.device)
    last.weight.copy_(last.weight.double() * scale[:, None])
    last.bias.copy_(last.bias.double() * scale + mean)
