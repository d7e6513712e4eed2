"""Grow where a natural-gradient step would gain the most, and only while it would gain enough
more.
"""

from dataclasses import dataclass

import torch

from morphogen.edit.edit import Grow
from morphogen.policies.policy import Memory, Observation, Proposal


@dataclass(frozen=True)
class Natural:
    """At each evaluation every width is asked by what factor `granularity` more units, started by
    `inits.gradmax`, would raise the gain of a natural-gradient step. The best one grows if that
    factor, divided by (units after / before) ** `penalty`, exceeds `threshold`.

    Finished when none did for `patience` evaluations. Source: Mitchell et al. 2023 (arXiv
    2307.04526), when and where to expand. Differs: chunks of units; width only, since depth is
    learned by `LearnedDepth`; a penalty; the incoming weights are those of the largest gradient
    instead of the largest score.
    """

    threshold: float = 1.05
    granularity: int = 4
    penalty: float = 0.02
    patience: int = 4

    def start(self) -> Memory:
        return {"waited": 0}

    def decide(
        self, observation: Observation, memory: Memory, generator: torch.Generator
    ) -> tuple[list[Proposal], Memory, bool]:
        edits = [Grow(name, self.granularity) for name in observation.sizes]
        worth = {
            edit: observation.expansion(edit)
            / (1 + edit.units / observation.sizes[edit.width]) ** self.penalty
            for edit in edits
        }
        best = max(worth, key=worth.__getitem__, default=None)
        if best is None or not worth[best] > self.threshold:
            waited = memory["waited"] + 1
            return [], {"waited": waited}, waited >= self.patience
        reason = (
            f"the gain of a natural-gradient step {100 * (worth[best] - 1):+.0f} % with "
            f"{self.granularity} more"
        )
        return [Proposal(best, reason, "gradmax")], {"waited": 0}, False
