"""Several networks as one: `Ensemble(members, probabilities)`."""

import math

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of what its members put out; with `probabilities` of the probabilities that their
    logits stand for, given as logits again.

    Input: whatever all members take. Output: as theirs, (batch, outputs).
    """

    def __init__(self, members: list[nn.Module], probabilities: bool = False) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.probabilities = probabilities

    def forward(self, x: Tensor) -> Tensor:
        out = torch.stack([member(x) for member in self.members])
        if not self.probabilities:
            return out.mean(0)
        # log((1/K) sum_k softmax(z_k))
        return out.log_softmax(-1).logsumexp(0) - math.log(len(self.members))
