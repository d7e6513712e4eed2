"""Grow every width by a share now and then, with the new units that the loss has the most use
for.
"""

from dataclasses import dataclass

import torch

from morphogen.edit.edit import Grow
from morphogen.policies.policy import Memory, Observation, Proposal
from morphogen.policies.when import patience, penalised


@dataclass(frozen=True)
class GradMax:
    """Every `every` evaluations each width grows by the share `rate`, in steps of `granularity`,
    started by `inits.gradmax`.

    Finished when the penalised loss has not fallen for `patience` evaluations. Nothing leaves.
    Source: Evci et al. 2022 (arXiv 2201.05125), growth at fixed intervals. Differs: no final size
    is given; growth stops when it no longer pays.
    """

    rate: float = 0.25
    every: int = 2
    granularity: int = 4
    penalty: float = 0.02
    patience: int = 6
    min_delta: float = 0.002

    def start(self) -> Memory:
        return {}

    def decide(
        self, observation: Observation, memory: Memory, generator: torch.Generator
    ) -> tuple[list[Proposal], Memory, bool]:
        memory = dict(memory)
        loss = float(observation.losses.mean())
        waited = patience(memory, penalised(loss, observation.cost, self.penalty), self.min_delta)
        if waited >= self.patience or observation.round % self.every:
            return [], memory, waited >= self.patience
        reason = f"units with the largest gradient at validation loss {loss:.4f}"
        steps = {
            name: max(1, round(self.rate * size / self.granularity))
            for name, size in observation.sizes.items()
        }
        return (
            [
                Proposal(Grow(name, n * self.granularity), reason, "gradmax")
                for name, n in steps.items()
            ],
            memory,
            False,
        )
