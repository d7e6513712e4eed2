"""Drop units that reach nothing, then add one chunk to a random width."""

from dataclasses import dataclass

import torch

from morphogen.edit.edit import Grow, Shrink
from morphogen.policies.policy import Memory, Observation, Proposal
from morphogen.policies.stopping import Stopping


@dataclass(frozen=True)
class PruneAndExpand:
    """Units weaker than `threshold` times their width's mean leave; then a random width gains
    `granularity`.

    Finished as `stopping` says. Source:
    Growing_neural_network, train_dynamic.py at HEAD (prune by outgoing L1, then unconditional
    expand). Differs: the threshold is relative, so it acts without weight decay; each width keeps
    at least one unit, so nothing can loop; expansion stops.
    """

    threshold: float = 0.05
    granularity: int = 4
    stopping: Stopping = Stopping(patience=8)

    def start(self) -> Memory:
        return {}

    def decide(
        self, observation: Observation, memory: Memory, generator: torch.Generator
    ) -> tuple[list[Proposal], Memory, bool]:
        memory = dict(memory)
        loss = float(observation.losses.mean())
        proposals = []
        for width in observation.sizes:
            strength = observation.importance(width)
            weak = [
                int(i) for i in (strength < self.threshold * strength.mean()).nonzero().flatten()
            ]
            if 0 < len(weak) < len(strength):
                proposals.append(
                    Proposal(
                        Shrink(width, weak),
                        f"{len(weak)} units below {self.threshold:g} of the mean",
                    )
                )
        over = self.stopping.over(memory, observation)
        if not over and observation.sizes:
            width = list(observation.sizes)[
                int(torch.randint(len(observation.sizes), (1,), generator=generator))
            ]
            proposals.append(
                Proposal(Grow(width, self.granularity), f"expanded at validation loss {loss:.4f}")
            )
        return proposals, memory, over
