"""Layers answer what the library asks by `layers.protocol`: every public one of ours, and one that
nobody but this file knows.
"""

import copy
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen import AddBlock, Controller, DropBlock, Grow, Shrink, adapt, freeze, penalty, resize
from morphogen.layers import protocol
from morphogen.layers.affine import AFFINE, gate_and_add, scale_columns, scale_rows
from morphogen.layers.units import unit_dim
from morphogen.measures.dead import dead_units
from morphogen.tracing.trace import trace
from morphogen.tracing.widths import widths

# one of each, that takes rows of four numbers
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Dag": lambda: mg.Dag(4, 6, 3),
    "DepthPosterior": lambda: mg.DepthPosterior(lambda i: nn.Linear(4, 4), lambda: nn.Linear(4, 2)),
    "LearnedDepth": lambda: mg.LearnedDepth(lambda i: nn.Linear(4, 4), w=1.5),
    "LearnedWidth": lambda: mg.LearnedWidth(4),
    **{name: getattr(mg, name) for name in mg.__all__ if re.fullmatch("LK[A-Z]\\w+", name)},
}
# what recognises each protocol, and which of our layers must offer it
OFFERED: dict[Any, tuple[Callable[[object], bool], set[str]]] = {
    protocol.Freezable: (
        protocol.is_freezable,
        {"Dag", "DepthPosterior", "LearnedDepth", "LKSine"},
    ),
    protocol.Foldable: (
        protocol.is_foldable,
        {"LearnedWidth", *LAYERS} - {"Dag", "DepthPosterior", "LearnedDepth", "LKSine"},
    ),
    protocol.Opaque: (protocol.is_opaque, {"Dag"}),
    protocol.Linkage: (protocol.is_linkage, {name for name in LAYERS if name.startswith("LK")}),
    protocol.LearnsSize: (
        protocol.learns_size,
        {"DepthPosterior", "LearnedDepth", "LearnedWidth"},
    ),
    protocol.HasBlocks: (protocol.has_blocks, {"DepthPosterior", "LearnedDepth"}),
    protocol.HasUnits: (protocol.has_units, {"LearnedWidth"}),
    protocol.Wired: (protocol.is_wired, {"Dag"}),
    protocol.KeepsSizes: (protocol.keeps_sizes, {"Dag"}),
}


def members(kind: Any) -> set[str]:
    """What a protocol asks for."""
    own = {name for name in vars(kind) if not name.startswith("_")}
    return own | set(getattr(kind, "__annotations__", {}))


def test_every_public_layer_has_a_case() -> None:
    stub = Path(mg.__file__).with_name("__init__.pyi").read_text()
    lines = re.findall(r"from \.(layers[\w.]*) import (\w+) as", stub)
    values = {
        name: getattr(importlib.import_module(f"morphogen.{where}"), name) for where, name in lines
    }
    public = {name for name, value in values.items() if isinstance(value, type)}
    assert public == set(LAYERS), "add a case for the new layer"


def test_every_protocol_is_walked() -> None:
    kinds = {
        value
        for value in vars(protocol).values()
        if isinstance(value, type) and getattr(value, "_is_protocol", False)
    }
    assert kinds - {protocol.Protocol, protocol.Rewiring} == set(OFFERED)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_offers_all_of_what_it_offers_a_part_of(name: str) -> None:
    layer = LAYERS[name]()
    for kind, (offers, offering) in OFFERED.items():
        assert offers(layer) == (name in offering), kind
        if name in offering:
            assert not [member for member in members(kind) if not hasattr(layer, member)], kind


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_says_what_becomes_of_it_when_it_is_frozen(name: str) -> None:
    layer = LAYERS[name]()
    model = nn.Sequential(nn.Linear(4, 4), layer)
    wide = model(torch.randn(3, 4)).shape[1]
    model.append(nn.Linear(wide, 2))
    x = torch.randn(5, 4)
    if name in ("LKSine", "DepthPosterior"):
        with pytest.raises(mg.Unsupported, match=name):
            freeze(model, x)
        return
    plain, certificate = freeze(model, x)
    assert certificate.max_error < 1e-5
    assert {type(m).__module__.partition(".")[0] for m in plain.modules()} == {"torch"}


@pytest.mark.parametrize("name", sorted(OFFERED[protocol.Linkage][1]))
def test_a_linkage_puts_out_its_unit_outputs(name: str) -> None:
    layer = LAYERS[name]()
    z = torch.randn(5, 4)
    torch.testing.assert_close(layer(z), torch.cat(layer.unit_outputs(z), 1))


@pytest.mark.parametrize("name", sorted(OFFERED[protocol.LearnsSize][1]))
def test_a_size_is_what_its_parameters_move(name: str) -> None:
    layer = LAYERS[name]()
    wanted = layer.size_parameters()
    assert {id(p) for p in wanted} <= {id(p) for p in layer.parameters()}
    moved = torch.autograd.grad(layer.w, wanted, allow_unused=True)
    assert any(gradient is not None and bool(gradient) for gradient in moved)
    assert [id(p) for p in protocol.size_parameters(nn.Sequential(layer))] == [
        id(p) for p in wanted
    ]


@pytest.mark.parametrize("name", sorted(OFFERED[protocol.Opaque][1]))
def test_what_is_opaque_unrolls(name: str) -> None:
    model = nn.Sequential(LAYERS[name](), nn.ReLU())
    x = torch.randn(5, 4)
    plain = protocol.without_opaque(model)
    torch.testing.assert_close(plain(x), model(x))
    assert not any(protocol.is_opaque(layer) for layer in plain.modules())
    assert protocol.without_opaque(plain) is plain


# A new layer
# --------------------------------------------------------------------------------------------------


class Gains(nn.Module):
    """A positive factor for each unit; it says how many units it wants."""

    scales_units = True

    def __init__(self, units: int) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.linspace(-1, 1, units))
        self.size = nn.Parameter(torch.tensor(float(units)))
        self.dim: int | None = None
        self.penalty: Callable[[Any], Tensor] | None = lambda layer: 3 * layer.w

    @property
    def w(self) -> Tensor:
        return self.size

    def forward(self, x: Tensor) -> Tensor:
        return x * self.log_gain.exp()

    def size_parameters(self) -> list[nn.Parameter]:
        return [self.size]

    def unit_tensor(self) -> str:
        return "log_gain"

    def wanted(self) -> int:
        return int(self.size)

    def reason(self) -> str:
        return f"gains for {self.wanted()}"

    def count_dim_from_end(self, shape: Any) -> None:
        self.dim = unit_dim(shape, self.dim, "Gains") - len(shape)

    def fold_into_producer(self, producer: nn.Module) -> None:
        assert isinstance(producer, AFFINE)
        scale_rows(producer, self.log_gain.exp())

    def fold_into_consumer(self, consumer: nn.Module) -> None:
        assert isinstance(consumer, AFFINE)
        scale_columns(consumer, self.log_gain.exp())


class Ramps(nn.Module):
    """[relu(z), relu(z - 1), relu(-z - 2)] of every sum z."""

    dim = None

    def unit_outputs(self, z: Tensor) -> tuple[Tensor, ...]:
        return z.relu(), (z - 1).relu(), (-z - 2).relu()

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat(self.unit_outputs(z), -1)


class Chain(nn.Module):
    """x + f_i(x) for each block f_i, one after the other."""

    def __init__(self, units: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(units, units) for _ in range(count))
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x

    def new_block(self) -> nn.Module:
        block = copy.deepcopy(self.blocks[-1])
        for parameter in block.parameters():
            nn.init.zeros_(parameter)
        return block

    def new_block_is_silent(self) -> bool:
        return True

    def wanted(self) -> int:
        return self.count

    def reason(self) -> str:
        return f"a chain of {self.count}"

    def to_plain(self, fold: protocol.Fold) -> nn.Module:
        plain = nn.Sequential(*map(fold, self.blocks))
        for layer in plain:
            assert isinstance(layer, AFFINE)
            gate_and_add(layer, 1.0, 1.0)
        return plain


def with_gains() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Gains(6), nn.Linear(6, 2)), torch.randn(5, 4)


def frozen_is_the_same(model: nn.Module, x: Tensor) -> nn.Module:
    plain, certificate = freeze(model, x)
    assert certificate.max_error < 1e-5
    assert {type(m).__module__.partition(".")[0] for m in plain.modules()} == {"torch"}
    return plain


def test_a_new_layer_is_folded_forwards_and_back() -> None:
    model, x = with_gains()
    assert [type(layer) for layer in frozen_is_the_same(model, x)] == [
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]
    model[1] = nn.Tanh()  # nothing can be moved before it
    frozen_is_the_same(model, x)
    with pytest.raises(mg.Unsupported, match="a Gains after 1 stands last"):
        freeze(model[:3], x)


def test_a_new_layer_gets_the_units_that_it_wants() -> None:
    model, x = with_gains()
    before = model(x)
    model[2].size.data.fill_(9.0)
    with pytest.raises(mg.PlanError, match="'2' is a Gains: give example="):
        adapt(model)
    assert adapt(model, example=x) == [Grow("0", 3)]
    torch.testing.assert_close(model(x), before)
    assert (model[0].out_features, len(model[2].log_gain)) == (9, 9)
    frozen_is_the_same(model, x)
    model[2].size.data.fill_(5.0)
    controller = Controller(model, None, lambda m: m(x)[:, 0], x)
    assert controller.sizes() == {}  # a learned width decides for itself
    (change,) = controller.step(0, 0.0, torch.Generator())
    assert (change.before, change.after, change.reason) == (9, 5, "gains for 5")
    assert controller.ledger == [Shrink("0", (5, 6, 7, 8))]


def test_a_new_layer_has_a_penalty_and_parameters_of_its_size() -> None:
    model, _ = with_gains()
    assert penalty(model).item() == 18.0
    assert protocol.size_parameters(model) == [model[2].size]


def test_units_of_a_new_activation_are_dead_where_all_that_they_put_out_is_flat() -> None:
    model = nn.Sequential(nn.Linear(1, 3), Ramps())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.0], [0.0]]))
        # the first moves, the second stays between the ramps, the third is on one of them
        model[0].bias.copy_(torch.tensor([0.0, -1.0, -3.0]))
    x = torch.linspace(-1, 1, 7)[:, None]
    assert dead_units(model, x) == {"1": pytest.approx(1 / 3)}


def test_a_new_stack_of_blocks_grows_shrinks_and_freezes() -> None:
    torch.manual_seed(0)
    chain = Chain(4, 2)
    model = nn.Sequential(nn.Linear(4, 4), chain, nn.Linear(4, 2))
    x = torch.randn(5, 4)
    before = model(x)
    applied = resize(model, [AddBlock("1")], example=x)
    assert applied.receipt.keeps
    assert applied.receipt.change == 0.0
    torch.testing.assert_close(model(x), before)
    chain.count = 4
    assert adapt(model) == [AddBlock("1")]
    chain.count = 1
    controller = Controller(model, None, lambda m: m(x)[:, 0], x)
    (change,) = controller.step(0, 0.0, torch.Generator())
    assert (change.before, change.after, change.reason) == (4, 3, "a chain of 1")
    assert adapt(model) == [DropBlock("1"), DropBlock("1")]
    plain = frozen_is_the_same(model, x)
    assert [type(layer) for layer in plain] == [nn.Linear] * 3


def test_blocks_that_are_one_module_freeze() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    depth = mg.LearnedDepth(lambda i: shared, w=2.6)
    frozen_is_the_same(nn.Sequential(nn.Linear(4, 4), depth, nn.Linear(4, 2)), torch.randn(5, 4))


def test_methods_of_common_names_are_no_answers() -> None:
    """A module that happens to have a `freeze` or a `parts` is treated as any other."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.new_block = nn.Linear(4, 4)  # a part, not a method

        def freeze(self) -> None:
            raise AssertionError

        def forward(self, x: Tensor) -> Tensor:
            return self.new_block(x)

    model = Own()
    x = torch.randn(5, 4)
    assert not any(offers(model) for offers, _ in OFFERED.values())
    freeze(model, x)
    assert list(widths(trace(model, x)))
