"""Add or remove random units, and keep the change if the penalised loss does not rise: no training in between."""

import math
from dataclasses import dataclass

import torch

from morphogen.edit.edit import Edit, Grow, Shrink
from morphogen.policies.look import Look, Memory, Proposal
from morphogen.policies.when import FLOOR, patience, penalised


@dataclass(frozen=True)
class Stochastic:
    """At each look, `tries` times: a random width, and with probability 1/2 each `multiple` more of them or as many
    random ones fewer. The best of those that pass is kept: loss / now + `price` * log(cost / now) must fall.

    The loss is that of the validation examples before and after, example by example: its mean difference plus `confidence`
    times that mean's standard error counts, so that with 1.64 noise passes once in twenty. New units have random weights on
    both sides, outgoing ones of deviation 0.01. A try that fails leaves no trace: weights, buffers, random state and
    optimizers are what they were. Finished when the penalised loss has not fallen for `patience` looks.

    Source: Growing_neural_network, update_features (one random feature, kept if loss + penalty * weights does not rise on a
    batch). Differs: validation examples instead of the test set's, a relative penalty, several units and tries, a bound; what
    changes nothing is not kept; incoming weights have He's deviation, since 0.01 starves the units behind them.
    """

    multiple: int = 1
    tries: int = 4
    price: float = 0.02
    confidence: float = 0.0
    patience: int = 20
    gain: float = 0.002

    def start(self) -> Memory:
        return {}

    def decide(self, look: Look, memory: Memory, draw: torch.Generator) -> tuple[list[Proposal], Memory, bool]:
        memory = dict(memory)
        loss = float(look.losses.mean())
        if patience(memory, penalised(loss, look.cost, self.price), self.gain) >= self.patience or not look.sizes:
            return [], memory, True
        best, found = 0.0, []
        for _ in range(self.tries):
            edit, seed = self._drawn(look, draw)
            if edit is None:
                continue
            losses, cost = look.attempt([edit], "random", seed)
            rise = losses - look.losses
            bound = float(rise.mean()) + self.confidence * float(rise.std() if len(rise) > 1 else 0.0) / math.sqrt(len(rise))
            worth = bound / (loss + FLOOR) + self.price * math.log(cost / look.cost)
            if worth < best:
                reason = f"validation loss {float(rise.mean()):+.4f}, cost {100 * (cost / look.cost - 1):+.1f} %"
                best, found = worth, [Proposal(edit, reason, "random", seed)]
        return found, memory, False

    def _drawn(self, look: Look, draw: torch.Generator) -> tuple[Edit | None, int]:
        """A random edit, None where the width has too few units to lose some, and a seed for its new units."""
        number, add, seed = (int(torch.randint(high, (), generator=draw)) for high in (len(look.sizes), 2, 2**31))
        width = list(look.sizes)[number]
        if add:
            return Grow(width, self.multiple), seed
        order = torch.randperm(look.sizes[width], generator=draw)[: self.multiple]
        return (Shrink(width, order.tolist()) if look.sizes[width] > self.multiple else None), seed
