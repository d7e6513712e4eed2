"""What a policy sees at the end of a round, and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from morphogen.edit.edit import Edit

Init = Literal["", "random", "gradmax", "firefly"]

Memory = dict[str, Any]
"""A policy's state: JSON-ready, so that a checkpoint holds it."""


@dataclass(frozen=True)
class Observation:
    """One evaluation at a model in training.

    sizes: the widths that may change, name -> units. cost: of the model, its parameters unless the
    controller was given another. losses: validation loss of each example, shape (n,). attempt:
    (edits, init, seed) -> losses and cost as they would be after them; the model is untouched
    afterwards. importance: strength of every unit of a width, shape (units,). expansion: by what
    factor a growth, started with the largest gradient, would raise the gain of a natural-gradient
    step. gains: (n) -> by width, how much a split of each of its units and each of n new ones would
    lower the training loss, shapes (units,) and (n,); no entries for splits where twins would
    change the function.
    """

    round: int
    sizes: dict[str, int]
    cost: float
    losses: Tensor
    attempt: "Attempt"
    importance: Callable[[str], Tensor]
    expansion: Callable[[Edit], float] = lambda edit: 1.0
    gains: Callable[[int], dict[str, tuple[Tensor, Tensor]]] = lambda new: {}


class Attempt(Protocol):
    """Losses of each example and the cost, as they would be after some edits."""

    def __call__(
        self, edits: Sequence[Edit], init: Init = "", seed: int = 0, /
    ) -> tuple[Tensor, float]: ...


@dataclass(frozen=True)
class Proposal:
    """An edit and why. init: how the values of new units start, see `controller.SEARCHES`; "" for
    the usual. seed: of their draws; the one that was attempted does what the attempt did.
    """

    edit: Edit
    reason: str
    init: Init = ""
    seed: int | None = None


class Policy(Protocol):
    """Constant settings, a frozen dataclass, with two functions."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def start(self) -> Memory:
        """The memory before the first evaluation."""
        ...

    def decide(
        self, observation: Observation, memory: Memory, generator: torch.Generator
    ) -> tuple[list[Proposal], Memory, bool]:
        """What to change now, the new memory, and whether the structure is finished."""
        ...


def with_settings(policy: type[Policy], **settings: Any) -> Policy:
    """A policy with those of some settings that it, or the value in its field `stopping`, has a
    field for.
    """
    known = {field.name: field.default for field in fields(policy)}
    own = {name: value for name, value in settings.items() if name in known}
    if "stopping" in known:
        inner: Any = known["stopping"]
        theirs = {field.name for field in fields(inner)} & settings.keys() - own.keys()
        own["stopping"] = replace(inner, **{name: settings[name] for name in theirs})
    return policy(**own)
