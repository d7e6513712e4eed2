"""How a network is trained on the way: the phases of the learning rate, the optimizer, and new
weights for the last phase.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from morphogen.fitting.recipe import Recipe
from morphogen.layers.protocol import is_wired, size_parameters
from morphogen.layers.stack import reinitialised
from morphogen.random_state import own_draws


@dataclass
class Phase:
    """Where the schedule is. Growth has an open end; once `anneal_start` is set the rate falls over
    `anneal_steps`.
    """

    anneal_start: int | None = None
    anneal_steps: int = 0

    @property
    def name(self) -> Literal["grow", "anneal"]:
        return "grow" if self.anneal_start is None else "anneal"

    def rate(self, step: int, recipe: Recipe) -> float:
        warm = min(1.0, (step + 1) / recipe.warm_up)
        if self.anneal_start is None:
            return recipe.rate * warm
        return recipe.rate * warm * max(0.0, 1 - (step - self.anneal_start) / self.anneal_steps)

    def smoothing(self, step: int, recipe: Recipe) -> float:
        """Of the labels: once no more trials are judged by the loss, and only in the first half of
        the annealing phase, so that the network ends as sure as it should be.

        Measured on held-out rows of digits over four seeds, log loss and accuracy: to the end .171
        and 98.6 %, never .051 and 98.2 %, to three quarters .052 and 99.0 %, to the half .040 and
        99.0 %.
        """
        if self.anneal_start is None or step >= self.anneal_start + self.anneal_steps / 2:
            return 0.0
        return recipe.smoothing


def optimizer_for(model: nn.Module, recipe: Recipe) -> Optimizer:
    """AdamW in three groups: matrices and kernels (decayed), vectors, and learned depths (their own
    rate).
    """
    depths = size_parameters(model)
    # a matrix without its zeros
    flat = {id(m.weight) for m in model.modules() if is_wired(m)}
    others = [p for p in model.parameters() if not any(p is w for w in depths)]
    groups = [
        {
            "params": [p for p in others if p.dim() > 1 or id(p) in flat],
            "weight_decay": recipe.decay,
        },
        {"params": [p for p in others if p.dim() <= 1 and id(p) not in flat], "weight_decay": 0.0},
        {"params": depths, "weight_decay": 0.0, "scale": recipe.depth_scale},
    ]
    return AdamW(groups, lr=recipe.rate, betas=(0.9, 0.99), fused=True)


@torch.no_grad()
def shrink_and_perturb(model: nn.Module, share: float, seed: int) -> None:
    """Every weight goes part of the way to a freshly drawn one; learned depths stay.

    A network that was grown ends behind the same shape trained from scratch: it starts its long
    training from where short training of a smaller network led, with units that are dead. Source:
    Ash & Adams 2020, "On warm-starting neural network training", shrink and perturb. Measured on
    held-out rows of Fashion-MNIST, share 0.5: +0.32 and +0.25 points on two seeds, and fewer dead
    units; a share of 1 loses 0.58.
    """
    with own_draws(seed, model):
        fresh = reinitialised(copy.deepcopy(model))
    depths = {id(parameter) for parameter in size_parameters(model)}
    for old, new in zip(model.parameters(), fresh.parameters(), strict=True):
        if id(old) not in depths:
            old.lerp_(new, share)
