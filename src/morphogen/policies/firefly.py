"""Grow now and then where a split or a new unit lowers the loss the most."""

from dataclasses import dataclass

import torch

from morphogen.edit.edit import Grow, Split
from morphogen.policies.policy import Memory, Observation, Proposal
from morphogen.policies.stopping import Stopping


@dataclass(frozen=True)
class Firefly:
    """Every `every` evaluations the network gains the share `rate` of its units, in chunks of
    `granularity`: all units are tried as splits, and as many new ones beside them in every width,
    by `inits.firefly`; the chunks that lower the training loss the most are kept, wherever they
    are.

    Finished as `stopping` says. Nothing leaves.
    Source: Wu et al. 2020 (arXiv 2102.08574), algorithm 1. Differs: chunks; no final size is given;
    the directions of the chosen units are searched once more without the others.
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
        over = self.stopping.over(memory, observation)
        if over or observation.round % self.every:
            return [], memory, over
        chunks = max(1, round(self.rate * sum(observation.sizes.values()) / self.granularity))
        gains_of = observation.gains(self.granularity)
        candidates = [
            chunk
            for width, gains in gains_of.items()
            for chunk in self._chunks(width, observation.sizes[width], *gains)
        ]
        best = sorted(candidates, key=lambda chunk: -chunk[1])[:chunks]
        chosen: dict[str, list[int]] = {}
        gained: dict[str, float] = {}
        for width, gain, units in best:
            chosen[width] = chosen.get(width, []) + units
            gained[width] = gained.get(width, 0.0) + gain
        proposals = []
        for width, units in chosen.items():
            reason = f"training loss {-gained[width]:+.4f} by {len(units)} splits and new units"
            splits = [unit for unit in units if unit < observation.sizes[width]]
            if splits:
                proposals.append(Proposal(Split(width, splits), reason, "firefly"))
            if grown := len(units) - len(splits):
                proposals.append(Proposal(Grow(width, grown), reason, "firefly"))
        return proposals, memory, False

    def _chunks(
        self, width: str, size: int, splits: torch.Tensor, new: torch.Tensor
    ) -> list[tuple[str, float, list[int]]]:
        """A width's candidates, the best ones together; new units are numbered after the old."""
        gains = torch.cat([splits, new])
        order = gains.argsort(descending=True)
        whole = len(order) // self.granularity * self.granularity
        parts = [(float(gains[part].sum()), part) for part in order[:whole].split(self.granularity)]
        return [
            (width, gain, [int(unit) + size - len(splits) for unit in part])
            for gain, part in parts
            if gain > 0
        ]
