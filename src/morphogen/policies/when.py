"""When to stop changing the structure: once the penalised loss has not fallen for some looks."""

import math

from morphogen.policies.look import Memory


def penalised(loss: float, parameters: int, price: float) -> float:
    """log(loss) + price * log(parameters): a change pays if it lowers the loss by a larger fraction than it costs.

    With price 0.02, twice the parameters must lower the loss by 1.4 %. Free of units, so one price serves every data set.
    """
    return math.log(max(loss, 1e-12)) + price * math.log(max(parameters, 1))


def patience(memory: Memory, value: float, least: float) -> int:
    """Looks since `value` last fell by at least `least`; `memory` keeps "best" and "waited"."""
    if value < memory.get("best", math.inf) - least:
        memory["best"], memory["waited"] = value, 0
    else:
        memory["waited"] = memory.get("waited", 0) + 1
    return int(memory["waited"])
