"""What a network costs, for the policies: `parameters`, or parameters weighed against floating
point operations.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from morphogen.edit.apply import count_parameters
from morphogen.tracing.trace import eval_mode

Cost = Callable[[nn.Module], float]


def weighed(example: Tensor, share: float) -> Cost:
    """parameters^(1 - share) * operations^share, the operations of one forward pass on `example`.

    Relative changes then weigh in proportion: with a share of 1/2, units that double the operations
    cost as much as units that double the parameters. Channels of an early convolution have few
    parameters and take most of the time.
    """

    def cost(model: nn.Module) -> float:
        if not share:
            return count_parameters(model)
        with eval_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(example)
        return float(
            count_parameters(model) ** (1 - share) * max(1, counter.get_total_flops()) ** share
        )

    return cost
