"""What a policy sees at the end of a round, and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from morphogen.resize.edit import Edit

Memory = dict[str, Any]
"""A policy's state: JSON-ready, so that a checkpoint holds it."""


@dataclass(frozen=True)
class Look:
    """One look at a model in training.

    sizes: the widths that may change, name -> units. cost: of the model, its parameters unless the controller was given
    another. losses: validation loss of each example, shape (n,). attempt: losses and cost as they would be after some edits;
    the model is untouched afterwards. importance: strength of every unit of a width, shape (units,). expansion: by what factor
    a growth, started with the largest gradient, would raise the gain of a natural-gradient step.
    """

    round: int
    sizes: dict[str, int]
    cost: float
    losses: Tensor
    attempt: Callable[[Sequence[Edit]], tuple[Tensor, float]]
    importance: Callable[[str], Tensor]
    expansion: Callable[[Edit], float] = lambda edit: 1.0


@dataclass(frozen=True)
class Proposal:
    """An edit and why. start: how the values of new units start, a name of `controller.SEARCHES`, or "" for the usual."""

    edit: Edit
    reason: str
    start: str = ""


class Policy(Protocol):
    """Constant settings with two functions."""

    def start(self) -> Memory:
        """The memory before the first look."""
        ...

    def decide(self, look: Look, memory: Memory, draw: torch.Generator) -> tuple[list[Proposal], Memory, bool]:
        """What to change now, the new memory, and whether the structure is finished."""
        ...
