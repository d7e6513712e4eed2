"""Sizes in attributes of a user's own: refused with a hint, and followed once they are declared."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen import Grow, PlanError, Shrink


class Attention(nn.Module):
    """As transformers are written: heads by attributes."""

    def __init__(self, dim: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dim = heads, 4, dim
        self.qkv, self.out = (
            nn.Linear(dim, 3 * heads * self.head_dim),
            nn.Linear(heads * self.head_dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            self.qkv(x).view(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        )
        h = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).reshape(b, n, -1)).view(b, n, self.dim)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attn, self.head = nn.Linear(3, 12), Attention(), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.head(h + self.attn(h))


def net() -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    return Net().double(), torch.randn(2, 5, 3, dtype=torch.float64)


def test_the_refusal_names_the_attribute_and_the_way() -> None:
    model, x = net()
    with pytest.raises(
        PlanError, match=r"attn.head_dim = 4; try morphogen.follow\(model, 'head_dim'\)"
    ):
        mg.resize(model, [Grow("attn.qkv", 2)], example=x)
    with pytest.raises(PlanError, match=r"attn.dim = 12; try morphogen.follow\(model, 'dim'\)"):
        mg.resize(model, [Grow("embed", 2)], example=x)
    assert (model.attn.head_dim, model.attn.dim) == (4, 12)


def test_declared_attributes_follow_and_come_back() -> None:
    model, x = net()
    expected = model(x)
    mg.follow(model, "head_dim", "dim")
    average = copy.deepcopy(model)
    found = mg.widths(mg.trace(model, x))
    change = mg.plan(model, found, [Grow("attn.qkv", 2), Grow("embed", 3)])
    assert str(change).splitlines()[-2:] == ["attn.head_dim = 6", "attn.dim = 15"]
    applied = mg.apply_(model, change, example=x, ema=[average])
    assert (model.attn.head_dim, model.attn.dim, model.attn.heads) == (6, 15, 2)
    assert (average.attn.head_dim, average.attn.dim) == (6, 15)
    assert model(x).shape == average(x).shape == (2, 5, 2)
    applied.undo()
    assert (model.attn.head_dim, average.attn.dim) == (4, 12)
    assert torch.equal(model(x), expected)
    mg.resize(model, [Grow("embed", 3)], example=x)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


def test_declared_attributes_are_saved_and_replayed(tmp_path: Path) -> None:
    def build() -> Net:
        model, _ = net()
        mg.follow(model, "head_dim", "dim")
        return model

    model, x = build(), net()[1]
    ledger = (Grow("attn.qkv", 2), Shrink("embed", [0, 5]))
    for edit in ledger:
        mg.resize(model, [edit], example=x)
    replayed = mg.replay(build(), ledger, x)
    assert (replayed.attn.head_dim, replayed.attn.dim) == (6, 10)
    loaded, _ = mg.load(mg.save(model, tmp_path / "run", ledger=ledger), lambda: net()[0])
    assert torch.equal(loaded(x), model(x))


def test_an_unknown_attribute_is_refused() -> None:
    model, _ = net()
    with pytest.raises(
        PlanError, match="follow: no module of Net has a whole number called 'head_size'"
    ):
        mg.follow(model, "head_size")
