"""Grow every width by a share now and then, with the new units that the loss has the most use
for.
"""

from dataclasses import dataclass

import torch

from morphogen.edit.edit import Grow
from morphogen.policies.policy import Memory, Observation, Proposal
from morphogen.policies.stopping import Stopping


@dataclass(frozen=True)
class GradMax:
    """Every `every` evaluations each width grows by the share `rate`, in steps of `granularity`,
    started by `inits.gradmax`.

    Finished as `stopping` says. Nothing leaves.
    Source: Evci et al. 2022 (arXiv 2201.05125), growth at fixed intervals. Differs: no final size
    is given; growth stops when it no longer pays.
    """

    rate: float = 0.25
    every: int = 2
    granularity: int = 4
    stopping: Stopping = Stopping()

    def start(self) -> Memory:
        return {}

    def decide(
        self, observation: Observation, memory: Memory, generator: torch.Generator
    ) -> tuple[list[Proposal], Memory, bool]:
        memory = dict(memory)
        loss = float(observation.losses.mean())
        over = self.stopping.over(memory, observation)
        if over or observation.round % self.every:
            return [], memory, over
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
