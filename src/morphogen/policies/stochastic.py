"""Add or remove random units, and keep the change if the penalised loss does not rise: no training
in between.
"""

import math
from dataclasses import dataclass

import torch

from morphogen.edit.edit import Edit, Grow, Shrink
from morphogen.policies.policy import Memory, Observation, Proposal
from morphogen.policies.stopping import FLOOR, Stopping


@dataclass(frozen=True)
class Stochastic:
    """At each evaluation, `tries` times: a random width, and with probability 1/2 each
    `granularity` more of them or as many random ones fewer. The best of those that pass is kept:
    loss / now + penalty * log(cost / now), the penalty that of
    `stopping`, must fall.

    The loss is that of the validation examples before and after, example by example: its mean
    difference plus `confidence` times that mean's standard error counts, so that with 1.64 noise
    passes once in twenty. New units have random weights on both sides, outgoing ones of deviation
    0.01. A try that fails leaves no trace: weights, buffers, random state and optimizers are what
    they were. Finished as `stopping` says.

    Source: Growing_neural_network, update_features (one random feature, kept if loss + penalty *
    weights does not rise on a batch). Differs: validation examples instead of the test set's, a
    relative penalty, several units and tries, a bound; what changes nothing is not kept; incoming
    weights have He's deviation, since 0.01 starves the units behind them.
    """

    granularity: int = 1
    tries: int = 4
    confidence: float = 0.0
    stopping: Stopping = Stopping(patience=20)

    def start(self) -> Memory:
        return {}

    def decide(
        self, observation: Observation, memory: Memory, generator: torch.Generator
    ) -> tuple[list[Proposal], Memory, bool]:
        memory = dict(memory)
        loss = float(observation.losses.mean())
        if self.stopping.over(memory, observation) or not observation.sizes:
            return [], memory, True
        best = 0.0
        proposals = []
        for _ in range(self.tries):
            edit, seed = self._drawn(observation, generator)
            if edit is None:
                continue
            losses, cost = observation.attempt([edit], "random", seed)
            rise = losses - observation.losses
            bound = float(rise.mean()) + self.confidence * float(
                rise.std() if len(rise) > 1 else 0.0
            ) / math.sqrt(len(rise))
            worth = bound / (loss + FLOOR) + self.stopping.penalty * math.log(
                cost / observation.cost
            )
            if worth < best:
                reason = (
                    f"validation loss {float(rise.mean()):+.4f}, cost "
                    f"{100 * (cost / observation.cost - 1):+.1f} %"
                )
                best = worth
                proposals = [Proposal(edit, reason, "random", seed)]
        return proposals, memory, False

    def _drawn(
        self, observation: Observation, generator: torch.Generator
    ) -> tuple[Edit | None, int]:
        """A random edit, None where the width has too few units to lose some, and a seed for its
        new units.
        """
        number, add, seed = (
            int(torch.randint(high, (), generator=generator))
            for high in (len(observation.sizes), 2, 2**31)
        )
        width = list(observation.sizes)[number]
        if add:
            return Grow(width, self.granularity), seed
        order = torch.randperm(observation.sizes[width], generator=generator)[: self.granularity]
        return (
            Shrink(width, order.tolist()) if observation.sizes[width] > self.granularity else None
        ), seed
