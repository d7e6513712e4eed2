"""Random networks under random moves: the invariants of the resize engine, in float64.

MORPHOGEN_NETS says how many networks (default 40); bench/results/property.md has the figures of
500.
"""

import os
from random import Random

import pytest
import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen import Grow, Shrink, Split
from morphogen.edit.plan import live_size
from random_nets import RandomNet

NETS, MOVES, SHARES = int(os.environ.get("MORPHOGEN_NETS", "40")), 20, 8
OPTIMIZERS = (
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.SGD,
    torch.optim.Adafactor,
)
TOLERANCE = 1e-9


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of weights, buffers and the optimizer's state."""
    state = [
        v for p in model.parameters() for v in optimizer.state[p].values() if isinstance(v, Tensor)
    ]
    return [t.detach().clone() for t in (*model.state_dict().values(), *state)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model.train()(x).square().mean().backward()
    optimizer.step()


def check(seed: int) -> tuple[int, int, float]:
    """(moves, moves that keep the function, the largest change of those) on the network of one
    seed.
    """
    torch.manual_seed(seed)
    draw, x = Random(seed), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    model = RandomNet(seed).double()
    optimizer = OPTIMIZERS[seed % len(OPTIMIZERS)](model.parameters(), lr=1e-3)
    train(model, optimizer, x)
    found = mg.widths(mg.trace(model, x))
    ledger, keeping, largest = [], 0, 0.0
    for _ in range(MOVES):
        width = draw.choice([w for w in found.values() if not w.fixed])
        size = live_size(found, width.name, dict(model.named_parameters()))
        kind = draw.random()
        if size > 2 and kind < 0.5:
            edit = Shrink(width.name, draw.sample(range(size), draw.randint(1, size - 1)))
        elif kind > 0.75 and not width.not_preserved:
            edit = Split(width.name, [draw.randrange(size) for _ in range(draw.randint(1, 2))])
        else:
            edit = Grow(width.name, draw.randint(1, 3))
        before = everything(model, optimizer)
        applied = mg.apply_(model, mg.plan(model, found, [edit]), optimizers=[optimizer], example=x)
        assert mg.doctor(model, optimizers=[optimizer]) == []
        if applied.receipt.keeps:
            keeping, largest = keeping + 1, max(largest, applied.receipt.change or 0.0)
        if draw.random() < 0.5:
            applied.undo()
            assert same(before, everything(model, optimizer))
        else:
            ledger.append(edit)
            train(model, optimizer, x)
    fresh = mg.replay(RandomNet(seed).double(), ledger, x)
    assert {n: t.shape for n, t in fresh.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    return MOVES, keeping, largest


@pytest.mark.parametrize("share", range(SHARES))
def test_invariants_on_random_networks(share: int) -> None:
    for seed in range(share, NETS, SHARES):
        _, _, largest = check(seed)
        assert largest <= TOLERANCE
