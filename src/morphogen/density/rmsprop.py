"""RMSprop, centred and with momentum: `RMSprop`.

    n <- a n + (1 - a) g^2,  m <- a m + (1 - a) g
    d <- b d + g / (sqrt(n - m^2) + eps),  w <- w - lr d

Source: Graves 2013 (arXiv 1308.0850), eqs. 38 to 45. Differs: eps stands outside of the root. It is
torch's `RMSprop(centered=True)` but for the root: where a gradient hardly changes, n - m^2 is below
0 by rounding, and torch's weights become NaN.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class RMSprop(torch.optim.Optimizer):
    """State of a parameter, each of its shape: "square_avg", "grad_avg", "momentum_buffer"."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2.5e-4,
        alpha: float = 0.95,
        momentum: float = 0.9,
        eps: float = 1e-4,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "momentum": momentum,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; a closure is called first, with gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        weights = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return
        grads: Any = [p.grad for p in weights]
        if group["weight_decay"]:
            grads = torch._foreach_add(grads, weights, alpha=group["weight_decay"])
        squares, means, moves = (
            [self._kept(p, name) for p in weights]
            for name in ("square_avg", "grad_avg", "momentum_buffer")
        )
        alpha = group["alpha"]
        torch._foreach_mul_(squares, alpha)
        torch._foreach_addcmul_(squares, grads, grads, 1 - alpha)
        torch._foreach_lerp_(means, grads, 1 - alpha)
        spread = torch._foreach_addcmul(squares, means, means, -1)
        torch._foreach_clamp_min_(spread, 0.0)
        torch._foreach_sqrt_(spread)
        torch._foreach_add_(spread, group["eps"])
        torch._foreach_mul_(moves, group["momentum"])
        torch._foreach_addcdiv_(moves, grads, spread)
        torch._foreach_add_(weights, moves, alpha=-group["lr"])

    def _kept(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        kept: Tensor = state[name]
        return kept
