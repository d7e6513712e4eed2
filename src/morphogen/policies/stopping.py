"""When to stop changing the structure: once the penalised loss has not fallen for some
evaluations.
"""

import math
from dataclasses import dataclass

from morphogen.policies.policy import Memory, Observation

# nats, or variances of the target: what lies below is as good as nothing, however large its ratios
# are
FLOOR = 1e-3


def log_loss(loss: float) -> float:
    """log(loss + FLOOR). Without the floor a problem that is solved looks as if it improved for
    ever, and grows for ever.
    """
    return math.log(max(loss, 0.0) + FLOOR)


@dataclass(frozen=True)
class Stopping:
    """Over once log(loss) + penalty * log(cost) has not fallen by `min_delta` for `patience`
    evaluations.

    A change pays if it lowers the loss by a larger fraction than it costs: with a penalty of 0.02,
    twice the cost must lower the loss by 1.4 %. Free of units, so one penalty serves every data
    set.
    """

    penalty: float = 0.02
    patience: int = 6
    min_delta: float = 0.002

    def over(self, memory: Memory, observation: Observation) -> bool:
        """Whether this evaluation is the last; `memory` keeps "best" and "waited"."""
        loss = log_loss(float(observation.losses.mean()))
        value = loss + self.penalty * math.log(max(observation.cost, 1))
        if value < memory.get("best", math.inf) - self.min_delta:
            memory["best"] = value
            memory["waited"] = 0
        else:
            memory["waited"] = memory.get("waited", 0) + 1
        return int(memory["waited"]) >= self.patience
