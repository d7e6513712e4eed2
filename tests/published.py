"""Optimizers that keep more than momenta beside the weights, written from their papers'
formulas.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ScheduleFree(Optimizer):
    """Defazio et al. 2024 (arXiv 2405.15682), eqs. 3 to 5: y = (1 - beta) z + beta x, z' = z - lr
    g(y), x' = x + (z' - x) / t.

    The parameter is y; the state holds z.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "t": 0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            group["t"] += 1
            for p in (p for p in group["params"] if p.grad is not None):
                z = self.state[p].setdefault("z", p.clone())
                x = (p - (1 - group["beta"]) * z) / group["beta"]
                z.sub_(group["lr"] * p.grad)
                x += (z - x) / group["t"]
                p.copy_((1 - group["beta"]) * z + group["beta"] * x)


class Lookahead(Optimizer):
    """Zhang et al. 2019 (arXiv 1907.08610), algorithm 1: every k steps slow += (fast - slow) / 2,
    and fast = slow.
    """

    def __init__(self, inner: Optimizer, k: int = 1) -> None:
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.inner, self.k, self.steps = inner, k, 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        held = [p for group in self.param_groups for p in group["params"]]
        for p in held:
            self.state[p].setdefault("behind", p.clone())
        self.inner.step()
        self.steps += 1
        for p in held if self.steps % self.k == 0 else ():
            slow = self.state[p]["behind"]
            p.copy_(slow.add_((p - slow) / 2))


class DualAveraging(Optimizer):
    """The steps of D-Adaptation (Defazio & Mishchenko 2023, arXiv 2301.07733, algorithm 1) for a
    given distance d: s' = s + d g, p = x0 - gamma s', gamma = 1 / sqrt(G^2 + sum of |g|^2).
    """

    def __init__(self, params: Iterable[Tensor], d: float = 0.1, name: str = "x0") -> None:
        super().__init__(params, {"d": d})
        self.total, self.name = 1.0, name

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.total += sum(float(p.grad.square().sum()) for p in held)
        for p in held:
            state = self.state[p]
            first = state.setdefault(self.name, p.clone())
            p.copy_(
                first
                - state.setdefault("s", torch.zeros_like(p)).add_(0.1 * p.grad) / self.total**0.5
            )


class Shampoo(Optimizer):
    """Gupta et al. 2018 (arXiv 1802.09568), algorithm 1: L += G G', R += G' G, W -= lr L^(-1/4) G
    R^(-1/4); SGD for vectors.

    listed: whether both are in one list, as in SOAP, or under a name each.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.01, listed: bool = False) -> None:
        super().__init__(params, {"lr": lr})
        self.listed = listed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * (p.grad if p.dim() != 2 else self._turned(p)))

    def _turned(self, p: Tensor) -> Tensor:
        state, sides = self.state[p], [p.grad @ p.grad.T, p.grad.T @ p.grad]
        if not state:
            begun = [1e-2 * torch.eye(len(side)).to(p) for side in sides]
            state.update(
                {"both": begun} if self.listed else {"precond_0": begun[0], "precond_1": begun[1]}
            )
        held = state["both"] if self.listed else [state["precond_0"], state["precond_1"]]
        for kept, side in zip(held, sides, strict=True):
            kept += side
        left, right = (_power(kept, -0.25) for kept in held)
        return left @ p.grad @ right


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(1e-12) ** exponent @ vectors.T


COPIES: dict[str, tuple[Callable[[Any], Optimizer], str]] = {
    "schedule-free": (ScheduleFree, "z"),
    "lookahead": (lambda params: Lookahead(torch.optim.SGD(params, 0.1, momentum=0.9)), "behind"),
    "d-adaptation": (DualAveraging, "x0"),
    "d-adaptation, another name": (lambda params: DualAveraging(params, name="origin"), "origin"),
}
"""name -> (parameters -> optimizer, the entry that is a copy of the weights)"""
