"""The two ways in which Growing_neural_network changes a chain of layers, one feature at a time:
`stochastic` and `expand`.

Source: Growing_neural_network, train_dynamic_stochastic.py and train_dynamic.py of March 2023.
Differs: a pruning that removes nothing ends instead of going round for ever; weak features leave
down to the first size of their own layer; a proposal that changes nothing is counted as that, not
as accepted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.edit.apply import Applied, apply_
from morphogen.edit.edit import Edit, Grow, Shrink
from morphogen.edit.inits.constant import INITS, normal
from morphogen.edit.plan import plan
from morphogen.tracing.widths import Width
from morphogen.training.train import Batches, State


@dataclass(frozen=True)
class Chain:
    """What the strategies know. layers: names in order, the last one gives the classes. first: the
    sizes that all the others keep at least. judged: what decides. std: of new weights on both
    sides. threshold: of the L1 norm of outgoing weights, below which a feature leaves.
    new_state_fraction: see `optim.checked_fraction`. counts: what was done.
    """

    layers: tuple[str, ...]
    widths: dict[str, Width]
    first: dict[str, int]
    judged: Batches
    draw: torch.Generator
    std: float
    threshold: float
    new_state_fraction: float
    counts: Counter[str] = field(default_factory=Counter)


def weight(model: nn.Module, layer: str) -> Tensor:
    return model.get_parameter(f"{layer}.weight").detach()


def sizes(model: nn.Module, layers: Sequence[str]) -> tuple[int, ...]:
    """Units of each."""
    return tuple(len(weight(model, layer)) for layer in layers)


def stochastic(chain: Chain, state: State) -> None:
    """One random feature more or less, kept if the loss of one batch does not rise by it; then
    prune.
    """
    layer = _layer(chain)
    size = len(weight(state.model, layer))
    more = _random(chain, 2) == 0
    if more or size > chain.first[layer]:
        before = _loss(chain, state)
        applied = _change(
            chain, state, Grow(layer, 1) if more else Shrink(layer, [_random(chain, size)])
        )
        if refused := _loss(chain, state) > before:
            applied.undo()
        chain.counts[f"{'refused' if refused else 'kept'} {'more' if more else 'less'}"] += 1
    else:
        chain.counts["at its smallest"] += 1
    prune(chain, state)


def expand(chain: Chain, state: State) -> None:
    """Prune; then one feature more, unasked."""
    prune(chain, state)
    _change(chain, state, Grow(_layer(chain), 1))
    chain.counts["added"] += 1


def prune(chain: Chain, state: State) -> None:
    """The features that hardly anything reads leave, the weakest of each layer first."""
    for layer, reader in zip(chain.layers[:-1], chain.layers[1:], strict=True):
        size = len(weight(state.model, layer))
        read = weight(state.model, reader)
        norms = read.reshape(len(read), size, -1).abs().sum((0, 2))
        spare = norms.argsort()[: size - chain.first[layer]]
        if weak := [int(unit) for unit in spare if norms[unit] < chain.threshold]:
            _change(chain, state, Shrink(layer, weak))
            chain.counts["pruned"] += len(weak)


def _layer(chain: Chain) -> str:
    return chain.layers[_random(chain, len(chain.layers) - 1)]


def _random(chain: Chain, size: int) -> int:
    return int(torch.randint(size, (1,), generator=chain.draw))


def _change(chain: Chain, state: State, edit: Edit) -> Applied:
    inits = INITS | dict.fromkeys(("out", "in", "bias"), normal(chain.std))
    planned = plan(state.model, chain.widths, [edit])
    options = {
        "inits": inits,
        "generator": chain.draw,
        "new_state_fraction": chain.new_state_fraction,
    }
    return apply_(state.model, planned, optimizers=[state.optimizer], **options)  # type: ignore[arg-type]


@torch.no_grad()
def _loss(chain: Chain, state: State) -> float:
    """Of one batch, the same one until the next round."""
    ((x, y),) = chain.judged.range(state.round, state.round + 1)
    state.model.eval()
    return float(F.cross_entropy(state.model(x), y))
