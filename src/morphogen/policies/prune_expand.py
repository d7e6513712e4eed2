"""Drop units that reach nothing, then add one chunk to a random width."""

from dataclasses import dataclass

import torch

from morphogen.edit.edit import Grow, Shrink
from morphogen.policies.look import Look, Memory, Proposal
from morphogen.policies.when import patience, penalised


@dataclass(frozen=True)
class PruneAndExpand:
    """Units weaker than `threshold` times their width's mean leave; then a random width gains `multiple`.

    Finished when the penalised loss has not fallen for `patience` looks.
    Source: Growing_neural_network, train_dynamic.py at HEAD (prune by outgoing L1, then unconditional expand).
    Differs: the threshold is relative, so it acts without weight decay; each width keeps at least one unit, so nothing can
    loop; expansion stops.
    """

    threshold: float = 0.05
    multiple: int = 4
    price: float = 0.02
    patience: int = 8
    gain: float = 0.002

    def start(self) -> Memory:
        return {}

    def decide(self, look: Look, memory: Memory, draw: torch.Generator) -> tuple[list[Proposal], Memory, bool]:
        memory = dict(memory)
        loss = float(look.losses.mean())
        proposals = []
        for width in look.sizes:
            strength = look.importance(width)
            weak = [int(i) for i in (strength < self.threshold * strength.mean()).nonzero().flatten()]
            if 0 < len(weak) < len(strength):
                proposals.append(Proposal(Shrink(width, weak), f"{len(weak)} units below {self.threshold:g} of the mean"))
        waited = patience(memory, penalised(loss, look.cost, self.price), self.gain)
        if waited < self.patience and look.sizes:
            width = list(look.sizes)[int(torch.randint(len(look.sizes), (1,), generator=draw))]
            proposals.append(Proposal(Grow(width, self.multiple), f"expanded at validation loss {loss:.4f}"))
        return proposals, memory, waited >= self.patience
