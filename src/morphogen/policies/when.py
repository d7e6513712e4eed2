"""When to stop changing the structure: once the penalised loss has not fallen for some
evaluations.
"""

import math

from morphogen.policies.policy import Memory

# nats, or variances of the target: what lies below is as good as nothing, however large its ratios
# are
FLOOR = 1e-3


def log_loss(loss: float) -> float:
    """log(loss + FLOOR). Without the floor a problem that is solved looks as if it improved for
    ever, and grows for ever.
    """
    return math.log(max(loss, 0.0) + FLOOR)


def penalised(loss: float, cost: float, penalty: float) -> float:
    """log(loss) + penalty * log(cost): a change pays if it lowers the loss by a larger fraction
    than it costs.

    With penalty 0.02, twice the cost must lower the loss by 1.4 %. Free of units, so one penalty
    serves every data set.
    """
    return log_loss(loss) + penalty * math.log(max(cost, 1))


def patience(memory: Memory, value: float, least: float) -> int:
    """Looks since `value` last fell by at least `least`; `memory` keeps "best" and "waited"."""
    if value < memory.get("best", math.inf) - least:
        memory["best"], memory["waited"] = value, 0
    else:
        memory["waited"] = memory.get("waited", 0) + 1
    return int(memory["waited"])
