"""A network for tasks that come one after the other: shared hidden layers, a head for each task, a
time stamp on each unit.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from morphogen.errors import PlanError, ShapeError, Unsupported


class Units(nn.Module):
    """One hidden layer of rectified units. born: (units,), the task at which each was added; 0 is
    the first task.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units)
        self.born: Tensor
        self.register_buffer("born", torch.zeros(units))

    def forward(self, x: Tensor, task: int | None) -> Tensor:
        """(batch, inputs) -> (batch, units). Units that came after `task` are silent; None: all
        speak.
        """
        x = self.linear(x).relu()
        return x if task is None else x * (self.born <= task)


class Lifelong(nn.Module):
    """A perceptron that tasks share, and a linear head for each task.

    features: of an input row. hidden: units of each hidden layer before the first task. Raises
    `ShapeError` where one is not positive, `Unsupported` where there is no hidden layer: then
    nothing is shared.
    """

    def __init__(self, features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        if not hidden:
            raise Unsupported(
                "hidden=() leaves no layer that tasks share; give at least one size, such as (312, "
                "128)"
            )
        if min(features, *hidden) < 1:
            raise ShapeError(
                f"features={features}, hidden={tuple(hidden)}: every size must be at least 1"
            )
        sizes = [features, *hidden]
        self.hidden = nn.ModuleList(Units(*pair) for pair in pairwise(sizes))
        self.heads = nn.ModuleList()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Every task's logits, each by the units of its time: (batch, features) -> ((batch,
        outputs), ...).
        """
        return tuple(self.logits(x, task) for task in range(len(self.heads)))

    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """What heads read: (batch, features) -> (batch, units of the last hidden layer)."""
        for layer in self.hidden:
            x = layer(x, task)
        return x

    def logits(self, x: Tensor, task: int, stamped: bool = True) -> Tensor:
        """One task's answer before the sigmoid, (batch, outputs). stamped=False: units of later
        tasks take part.

        Raises `PlanError` for a task that was not learned, `ShapeError` for rows of another size.
        """
        head = self.head(task)
        wanted = self.layers[0].linear.in_features
        if x.dim() != 2 or x.shape[1] != wanted:
            raise ShapeError(
                f"x has shape {tuple(x.shape)}; this is a perceptron: give rows, (n, {wanted}), "
                "flattened if images"
            )
        return head(self.features(x, task if stamped else None))  # type: ignore[no-any-return]

    @torch.no_grad()
    def predict(self, x: Tensor, task: int, stamped: bool = True) -> Tensor:
        """Probabilities, (n, outputs); arguments and errors as of `logits`."""
        return torch.cat([self.logits(part, task, stamped) for part in x.split(4096)]).sigmoid()

    def add_head(self, rates: Tensor) -> int:
        """The number of a new task and its head. rates: (outputs,), how often each answer is yes:
        what the head says first.
        """
        like = self.layers[-1].linear.weight
        odds = rates.clamp(1e-3, 1 - 1e-3).logit()
        head = nn.Linear(like.shape[0], len(rates), device=like.device, dtype=like.dtype)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.copy_(odds)
        self.heads.append(head)
        return len(self.heads) - 1

    @property
    def layers(self) -> list[Units]:
        return [layer for layer in self.hidden if isinstance(layer, Units)]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return tuple(layer.linear.out_features for layer in self.layers)

    def head(self, task: int) -> nn.Linear:
        """Raises `PlanError` for a task that was not learned."""
        if not 0 <= task < len(self.heads):
            raise PlanError(
                f"task={task} is unknown: {len(self.heads)} were learned, numbered from 0 in their "
                "order"
            )
        head = self.heads[task]
        assert isinstance(head, nn.Linear)
        return head

    def reads(self, task: int) -> list[Tensor]:
        """Masks (units,) of the hidden units that a task's head depends on."""
        return reachable([*(layer.linear.weight for layer in self.layers), self.head(task).weight])


def reachable(weights: Sequence[Tensor]) -> list[Tensor]:
    """Which units an output depends on, through weights that are not zero.

    weights: (units, units below) of each layer from the first to the head. Returns, for each hidden
    layer, a mask (units,). Source: Yoon et al., algorithm 2, a breadth-first search from the head;
    from all of its outputs.
    """
    masks: list[Tensor] = []
    kept = torch.ones(len(weights[-1]), dtype=torch.bool, device=weights[-1].device)
    for weight in reversed(weights[1:]):
        kept = (weight[kept] != 0).any(0)
        masks.insert(0, kept)
    return masks


def used(net: nn.Module) -> int:
    """Capacity: the number of parameters that are not zero."""
    return sum(int(p.count_nonzero()) for p in net.parameters())
