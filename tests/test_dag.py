"""DAG networks: every way to evaluate one gives the loop's values and gradients; starts, wirings
and what a compiler sees.
"""

import copy
import math
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen import Grow, PlanError, ShapeError, Shrink, Split, resize
from morphogen.edit.checkpoint import load_ledger
from morphogen.edit.dag import add_stage, full_gradient, grow_nodes, prune_weights, rewire
from morphogen.edit.doctor import doctor
from morphogen.edit.inits.firefly import firefly
from morphogen.formats.onnx import export_onnx
from morphogen.layers.dag.cascade import Cascade
from morphogen.layers.dag.dense import Layout, dag
from morphogen.layers.dag.module import Dag, places
from morphogen.layers.dag.networkx import from_networkx, to_networkx
from morphogen.layers.dag.sparse import levels, sparse_dag, wiring
from morphogen.layers.dag.unrolled import by_levels
from morphogen.layers.linked_op import KINDS
from morphogen.layers.protocol import without_opaque
from morphogen.measures.importance import unit_importance
from morphogen.tracing.trace import trace
from morphogen.tracing.widths import widths
from morphogen.transforms.freeze import freeze

VARIANTS = [(kind, linked) for kind in KINDS for linked in (False, True)]


def close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= (1e-12 if dtype == torch.float64 else 3e-6) * b.abs().max()


def evaluated(out: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weight = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    return (out.detach(), *torch.autograd.grad((out * weight).sum(), inputs))


def given(layout: Layout, dtype: torch.dtype, batch: int = 70) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = ((batch, layout.inputs), (layout.weights,), (layout.nodes,))
    x, weight, bias = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return x.requires_grad_(), (weight / 6).requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize(("kind", "linked"), VARIANTS)
@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_solver_is_the_loop(kind: str, linked: bool, inner: bool, dtype: torch.dtype) -> None:
    layout = Layout(13, (20, 20, 7), inner, kind, linked)
    x, weight, bias = inputs = given(layout, dtype)
    expected = evaluated(dag(x, weight, bias, layout, "loop"), inputs)
    for solver in ("jacobi", "auto"):
        close(evaluated(dag(x, weight, bias, layout, solver), inputs), expected, dtype)


@pytest.mark.parametrize("how", [{"block_size": 30}, {"wiring": "random", "fan_in": 9}])
def test_batches_of_several_tiles_and_inputs_without_gradient(how: dict) -> None:
    torch.manual_seed(0)
    model, x = Dag(5, 61, **how).double(), torch.randn(600, 5, dtype=torch.float64)
    out = model(x)
    torch.testing.assert_close(
        torch.cat([model(rows) for rows in x.split(7)]), out, rtol=0, atol=1e-12
    )
    weights = tuple(model.parameters())
    expected = evaluated(model(x.clone().requires_grad_()), weights)
    close(evaluated(out, weights), expected, torch.float64)
    parts = [
        torch.autograd.grad(model(rows), weights, torch.ones(len(rows), 61, dtype=x.dtype))
        for rows in x.split(7)
    ]
    whole = torch.autograd.grad(model(x), weights, torch.ones_like(out))
    close(tuple(map(sum, zip(*parts, strict=True))), whole, torch.float64)


def by_hand(model: Dag, x: Tensor) -> Tensor:
    """Node after node, from the matrix."""
    matrix, g, values = model.matrix(), KINDS[model.activation].value, list(x.T)
    bias = torch.zeros(model.nodes) if model.bias is None else model.bias.detach()
    for node in range(model.nodes):
        z = bias[node] + matrix[node, : len(values)] @ torch.stack(values)
        values += [g(z), g(-z)] if model.linked else [g(z)]
    return torch.stack(values)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"wiring": "random", "fan_in": 2},
        {"wiring": "random", "fan_in": 20},
        {"wiring": "block", "block_size": 7},
        {"block_size": 5, "bias": False},
    ],
)
def test_values_are_those_of_the_matrix(how: dict, linked: bool) -> None:
    torch.manual_seed(0)
    model, x = Dag(6, 41, 3, linked=linked, **how).double(), torch.randn(4, 6).double()
    expected = by_hand(model, x)
    torch.testing.assert_close(model.values(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(x), model.readout(expected.T), rtol=0, atol=1e-12)
    assert torch.equal(model(x.view(2, 2, 6)), model(x).view(2, 2, 3))
    assert model.weight.numel() == int(model.matrix().count_nonzero())


@pytest.mark.parametrize(("kind", "linked"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("fan_in", [1, 5, 12])
def test_sparse_is_dense_with_zeros(
    kind: str, linked: bool, dtype: torch.dtype, fan_in: int
) -> None:
    torch.manual_seed(0)
    model = Dag(9, 50, wiring="random", fan_in=fan_in, activation=kind, linked=linked)
    layout, indices, indptr = model.layout, model.indices, model.indptr
    x, _, bias = given(layout, dtype)
    weight = (torch.randn(len(indices), dtype=dtype) / 3).requires_grad_()
    flat = torch.zeros(layout.weights, dtype=dtype).index_copy(
        0, places(layout, indices, indptr), weight
    )
    expected = evaluated(dag(x, flat, bias, layout, "loop"), (x, weight, bias))
    wired = wiring(indices, indptr, 9, layout.width)
    for solver in ("auto", "levels"):
        found = sparse_dag(x, weight, bias, wired, kind, linked, solver)
        close(evaluated(found, (x, weight, bias)), expected, dtype)


def test_special_cases_are_ordinary_networks() -> None:
    torch.manual_seed(0)
    model, x = Dag(5, 12, wiring="block", block_size=4).double(), torch.randn(3, 5).double()
    first, second, third = (part.panel.detach() for part in model.layout.parts(model.weight))
    h = torch.relu(x @ first.T)
    h = torch.cat([x, h, torch.relu(torch.cat([x, h], 1) @ second.T)], 1)
    dense = torch.cat([h, torch.relu(h @ third.T)], 1)
    torch.testing.assert_close(model(x), dense[:, 5:], rtol=0, atol=1e-12)
    with torch.no_grad():
        for part in model.layout.parts(model.weight)[1:]:
            part.panel[:, : part.before - 4] = 0  # what is not of the block before
    layered = torch.relu(torch.relu(torch.relu(x @ first.T) @ second[:, 5:].T) @ third[:, 9:].T)
    torch.testing.assert_close(model(x)[:, 8:], layered, rtol=0, atol=1e-12)


def test_nothing_but_weights_that_exist_is_stored() -> None:
    assert Dag(7, 30, block_size=8).weight.numel() == 7 * 30 + 30 * 29 // 2
    assert Dag(7, 30, block_size=8, linked=True).weight.numel() == 7 * 30 + 2 * 30 * 29 // 2
    assert Dag(7, 30, wiring="random", fan_in=4).weight.numel() == 4 * 30
    model = Dag(7, 30, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(8, 7)).square().sum().backward()
        optimizer.step()
    assert torch.equal(model.matrix().triu(7), torch.zeros(30, 37))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"wiring": "random", "fan_in": 64},
        {"linked": True},
        {"linked": True, "activation": "silu"},
    ],
)
def test_energy_is_kept_and_gradients_fall_as_a_power(how: dict) -> None:
    """The closed forms: E h^2 is constant and the energy of gradients is (d + n) / (d + i)."""
    d, n, batch = 64, 512, 512
    forward, backward = [], []
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        model, x = Dag(d, n, 10, generator=draw, **how), torch.randn(batch, d, generator=draw)
        values = model.values(x)
        h = values.detach()[d:].unflatten(0, (n, -1)).square().sum(1).mean(1)
        forward.append(h[-64:].mean() / h[:64].mean())
        nn.init.normal_(model.readout.weight)
        gradient = torch.autograd.grad(model.readout(values.T).square().sum(), model.bias)[0]
        del gradient
        backward.append(_profile(model, x))
    assert 0.75 < torch.stack(forward).median() < 1.35
    if not how.get("linked"):
        profile = torch.stack(backward).mean(0)
        expected = (d + n) / (d + torch.arange(n) + 0.5)
        ratio = (
            (profile / profile[-100:].mean() / (expected / expected[-100:].mean()))
            .view(8, -1)
            .mean(1)
        )
        assert ratio.min() > 0.6
        assert ratio.max() < 1.6


def _profile(model: Dag, x: Tensor) -> Tensor:
    """Energy of the gradient of every node's value, under a random linear function of all nodes."""
    values = model.values(x)
    matrix = model.matrix()[:, model.in_features :].double()
    flowing = torch.randn(
        model.nodes, len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(9)
    )
    active = values[model.in_features :].double() > 0
    width = model.layout.width
    if width == 1:
        for node in reversed(range(model.nodes)):
            flowing[:node] += matrix[node, :node, None] * (flowing[node] * active[node])
    return flowing.square().mean(1)


def test_a_compiler_and_a_map_see_one_operation() -> None:
    torch.manual_seed(0)
    model, x = Dag(5, 20, 3).double(), torch.randn(4, 6, 5).double()
    mapped = torch.vmap(model)(x)
    torch.testing.assert_close(mapped, model(x))
    weights = {
        name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in model.named_parameters()
    }
    both = torch.func.vmap(lambda w: torch.func.functional_call(model, w, (x[0],)))(weights)
    torch.testing.assert_close(both[0], model(x[0]))
    exported = torch.export.export(model, (x[0],))
    assert [str(n.target) for n in exported.graph.nodes if "morphogen" in str(n.target)] == [
        "morphogen.dag.default"
    ]
    torch.testing.assert_close(exported.module()(x[0]), model(x[0]))
    torch.library.opcheck(
        torch.ops.morphogen.dag.default,
        (
            x[0],
            model.weight.detach().requires_grad_(),
            model.bias.detach(),
            None,
            5,
            [20],
            True,
            "relu",
            False,
            "auto",
        ),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"wiring": "random", "fan_in": 3},
        {"wiring": "random", "fan_in": 30},
        {"wiring": "random", "fan_in": 3, "linked": True},
    ],
)
def test_copies_and_state(how: dict) -> None:
    model, x = Dag(5, 40, 2, **how), torch.randn(3, 5)
    other = Dag(5, 40, 2, generator=torch.Generator().manual_seed(3), **how)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    one, same = (Dag(5, 40, 2, generator=torch.Generator().manual_seed(3), **how) for _ in range(2))
    assert torch.equal(one(x), same(x))


def test_memory_for_the_backward_pass_is_that_of_the_values() -> None:
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // t.element_size()
        return t

    model, x = Dag(16, 300), torch.randn(32, 16)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(x)
    assert sum(kept.values()) <= model.weight.numel() + 316 * 32 + x.numel()


def test_levels_are_longest_ways() -> None:
    indices, indptr = torch.tensor([0, 1, 2, 0, 3, 4]), torch.tensor([0, 1, 2, 4, 6])
    # two inputs; node 0 reads input 0, node 1 input 1, node 2 node 0 and input 0 (unsorted), node 3
    # nodes 1 and 2
    assert levels(indices, indptr, 2).tolist() == [1, 1, 2, 3]


@pytest.mark.parametrize(("n", "d", "hops"), [(1024, 784, 1.84), (512, 64, None)])
def test_the_mean_path_has_its_closed_form(n: int, d: int, hops: float | None) -> None:
    full, random = (Dag(d, n, **how).stats() for how in ({}, {"wiring": "random", "fan_in": 32}))
    expected = 1 + math.log(1 + n / d)
    assert full.path == pytest.approx(expected, rel=0.01)
    assert full.energy_path == pytest.approx(expected, rel=0.05)
    assert random.path == pytest.approx(expected, rel=0.3)  # of one node
    assert hops is None or full.path == pytest.approx(hops, abs=0.01)
    assert (full.levels, full.sinks, full.hops, full.mean_hops) == (n, 0.0, (n - 1,), 1.0)


def test_a_random_wiring_has_the_sinks_and_hops_of_the_closed_forms() -> None:
    """With one input, the pool is of nodes: half of them within two hops for a fan-in of sqrt(n), 1
    / (N + 1) unread.
    """
    found = [
        Dag(
            1, 1024, wiring="random", fan_in=32, generator=torch.Generator().manual_seed(seed)
        ).stats()
        for seed in range(4)
    ]
    mean = lambda values: sum(values) / len(found)  # noqa: E731
    assert mean([s.within(2) for s in found]) == pytest.approx(0.5, abs=0.05)
    assert mean([s.mean_hops for s in found]) == pytest.approx(2.45, abs=0.1)
    assert mean([s.within(3) for s in found]) == pytest.approx(0.85, abs=0.07)
    assert mean([s.sinks for s in found]) == pytest.approx(1 / 33, abs=0.012)
    assert all(s.reach == sum(s.hops) / 1023 for s in found)
    assert all(32 < s.levels < 400 for s in found)


def test_stats_of_a_block_wiring() -> None:
    found = Dag(3, 20, wiring="block", block_size=6).stats()
    assert found.levels == 4
    assert found.hops == (18,)
    assert found.sinks == pytest.approx(1 / 19)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"nodes": 0}, "nodes=0; give at least 1"),
        ({"wiring": "rnd"}, "wiring='rnd'; choose one of full, random, block"),
        ({"wiring": "random"}, "fan_in=None, wiring='random'"),
        ({"fan_in": 3}, 'with wiring="random" alone'),
        ({"wiring": "block"}, "block_size=None"),
        ({"activation": "tan"}, "activation='tan'; choose one of relu"),
    ],
)
def test_what_cannot_be_is_refused(how: dict, reason: str) -> None:
    with pytest.raises(ShapeError, match=reason):
        Dag(**({"in_features": 3, "nodes": 5} | how))
    with pytest.raises(ShapeError, match="in_features=3"):
        Dag(3, 5)(torch.randn(2, 4))


def test_mean_field_moment() -> None:
    assert math.isclose(Dag(3, 5)._scale()[0][0] ** 2, 1 / 3, rel_tol=1e-6)


HOWS = [
    {},
    {"block_size": 6, "bias": False},
    {"wiring": "block", "block_size": 7},
    {"wiring": "random", "fan_in": 3},
    {"linked": True},
    {"wiring": "random", "fan_in": 3, "linked": True},
    {"wiring": "random", "fan_in": 30},
]


def trained(how: dict) -> tuple[Dag, torch.optim.Optimizer, Tensor]:
    torch.manual_seed(0)
    model, x = Dag(5, 20, 3, **how).double(), torch.randn(16, 5).double()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(3):
        step(model, optimizer, x)
    return model, optimizer, x


def step(model: Dag, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def state_of(model: Dag, optimizer: torch.optim.Optimizer, key: str = "exp_avg") -> Tensor:
    """The optimizer's state of the weights, as a matrix."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.weight.copy_(optimizer.state[model.weight][key])
    return twin.matrix()


@pytest.mark.parametrize("how", HOWS)
def test_nodes_join_and_undo_takes_it_back(how: dict) -> None:
    model, optimizer, x = trained(how)
    before, old, momenta = model(x), copy.deepcopy(model.state_dict()), state_of(model, optimizer)
    matrix, identities = model.matrix(), [id(p) for p in model.parameters()]
    applied = grow_nodes(model, 9, optimizers=[optimizer])
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    assert (model.nodes, model.readout.in_features, applied.receipt.sizes) == (
        29,
        5 + 29 * model.layout.width,
        {"nodes": (20, 29)},
    )
    assert torch.equal(model.matrix()[:20, : matrix.shape[1]], matrix)
    assert torch.equal(state_of(model, optimizer)[:20, : matrix.shape[1]], momenta)
    assert (model.matrix()[20:] != 0).any(1).all()
    assert [id(p) for p in model.parameters()] == identities
    assert not doctor(model, optimizers=[optimizer])
    twin = copy.deepcopy(model)
    torch.testing.assert_close(by_hand(twin, x), twin.values(x), rtol=0, atol=1e-12)
    applied.undo()
    assert torch.equal(model(x), before)
    assert all(torch.equal(old[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state_of(model, optimizer), momenta)
    grow_nodes(model, 2, optimizers=[optimizer])
    for _ in range(3):
        step(model, optimizer, x)
    assert (model.readout.weight[:, -1] != 0).all()


def inside_a_network(how: dict, out: int | None) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    after = [] if out else [nn.Linear(20 * (2 if how.get("linked") else 1), 3)]
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Dag(5, 20, out, **how), *after).double()
    return model, torch.randn(16, 4).double()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("out", [3, None])
def test_nodes_are_a_width_like_any_other(how: dict, out: int | None, tmp_path: Path) -> None:
    model, x = inside_a_network(how, out)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(3):
        step(model, optimizer, x)
    before, dag = model(x), model[2]
    # without a readout the inputs are cut off at a fixed place
    more = [Grow("0", 2)] if out else []
    drop, width = [3, 5, 22], dag.layout.width
    matrix, momentum = dag.matrix(), state_of(dag, optimizer)
    grown = resize(model, [Grow("2", 9), *more], optimizers=[optimizer], example=x)
    assert grown.receipt.keeps
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    inputs, added = dag.in_features, dag.in_features - 5
    old_columns = [*range(5), *range(inputs, inputs + 20 * width)]
    assert torch.equal(dag.matrix()[:20][:, old_columns], matrix)
    assert torch.equal(state_of(dag, optimizer)[:20][:, old_columns], momentum)
    assert not dag.matrix()[:20, 5 : 5 + added].any()
    assert (dag.matrix()[20:] != 0).any(1).all()
    assert not doctor(model, optimizers=[optimizer])
    for _ in range(2):
        step(model, optimizer, x)
    matrix, momentum = dag.matrix(), state_of(dag, optimizer)
    shrunk = resize(model, [Shrink("2", drop)], optimizers=[optimizer], example=x)
    kept = [i for i in range(29) if i not in drop]
    columns = [*range(inputs), *(inputs + width * i + half for i in kept for half in range(width))]
    assert torch.equal(dag.matrix(), matrix[kept][:, columns])
    assert torch.equal(state_of(dag, optimizer), momentum[kept][:, columns])
    torch.testing.assert_close(
        by_hand(dag, model[:2](x)), dag.values(model[:2](x)), rtol=0, atol=1e-12
    )
    mg.save(
        model,
        tmp_path / "net",
        optimizers=[optimizer],
        ledger=[Grow("2", 9), *more, Shrink("2", drop)],
    )

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        base = inside_a_network(how, out)[0]
        return base, torch.optim.AdamW(base.parameters(), 0.01)

    loaded, (other,) = mg.load(tmp_path / "net", build)
    assert torch.equal(loaded(x), model(x))
    step(loaded, other, x)
    base = mg.replay(inside_a_network(how, out)[0], load_ledger(tmp_path / "net"), x)
    # indices are drawn edit by edit; those of the checkpoint count
    if how.get("wiring") != "random":
        assert {k: v.shape for k, v in base.state_dict().items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }
    shrunk.undo()
    assert torch.equal(dag.matrix(), matrix)
    model, x = inside_a_network(how, out)
    before = model(x)
    applied = [
        resize(model, [edit], example=x) for edit in (Grow("2", 9), Shrink("2", drop), Grow("2", 1))
    ]
    for one in reversed(applied):
        one.undo()
    assert torch.equal(model(x), before)


def test_what_a_node_weighs_and_what_cannot_be_done_to_it() -> None:
    model, x = inside_a_network({}, 3)
    found = widths(trace(model, x))
    with torch.no_grad():
        model[2].readout.weight[:, 5 + 7] = 0
        model[2].weight[model[2].entries()[1] == 5 + 7] = 0
    importance = unit_importance(model, found, "2")
    assert importance.argmin() == 7
    assert importance[7] == 0
    assert importance.count_nonzero() == 19
    assert resize(model, [Grow("2", 1)], example=x, ema=[copy.deepcopy(model)]).receipt.keeps
    with pytest.raises(PlanError, match="twins would change the function here"):
        resize(model, [Split("2", [0])], example=x)


def test_copies_and_loaded_ones_get_the_same_new_sources(tmp_path: Path) -> None:
    model, x = inside_a_network({"wiring": "random", "fan_in": 3}, 3)
    other = copy.deepcopy(model)
    mg.save(model, tmp_path / "net")
    resize(model, [Grow("2", 5)], example=x, ema=[other])
    assert torch.equal(model[2].indices, other[2].indices)
    assert model[2].indices is not other[2].indices
    assert torch.equal(model(x), other(x))

    def build() -> nn.Module:
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Dag(5, 20, 3, "random", fan_in=3)).double()

    loaded, _ = mg.load(tmp_path / "net", build)
    resize(loaded, [Grow("2", 5)], example=x)
    assert torch.equal(loaded[2].indices, model[2].indices)


def test_a_plan_for_another_wiring_is_refused() -> None:
    model, x = inside_a_network({"wiring": "random", "fan_in": 3}, 3)
    planned = mg.plan(model, widths(trace(model, x)), [Grow("2", 5)])
    assert planned == mg.plan(model, widths(trace(model, x)), [Grow("2", 5)])
    before = model(x)
    rewire(model[2], 0.3).undo()
    mg.apply_(model, planned).undo()
    assert torch.equal(model(x), before)
    rewire(model[2], 0.3)
    with pytest.raises(PlanError, match="'2' was wired otherwise when this was planned"):
        mg.apply_(model, planned)


def test_all_nodes_may_be_replaced_at_once() -> None:
    model, x = inside_a_network({}, 3)
    resize(model, [Grow("2", 4), Shrink("2", range(20))], example=x)
    assert model[2].nodes == 4
    torch.testing.assert_close(
        by_hand(model[2], model[:2](x)), model[2].values(model[:2](x)), rtol=0, atol=1e-12
    )


def test_blocks_that_shrank_freeze_and_fireflies_find_what_they_promise() -> None:
    model, x = inside_a_network({"wiring": "block", "block_size": 7}, 3)
    resize(model, [Shrink("2", range(9, 12))], example=x)
    assert model[2].blocks == (7, 4, 6)
    assert freeze(model, x)[1].max_error <= 1e-12
    twice = nn.Sequential(model[2], nn.Linear(3, 5).double(), model[2])
    assert not any(isinstance(m, Dag) for m in without_opaque(twice).modules())
    model, x = inside_a_network({}, 3)
    y = torch.randn(16, 3).double()
    loss = lambda m: (m(x) - y).square().mean()  # noqa: E731
    planned = mg.plan(model, widths(trace(model, x)), [Grow("2", 2)])
    found = firefly(model, planned, loss, torch.Generator().manual_seed(0))
    before = float(loss(model).detach())
    mg.apply_(model, planned, values=found.values)
    assert before - float(loss(model).detach()) == pytest.approx(
        float(found.gains["2"].sum()), rel=0.1
    )


@pytest.mark.parametrize("how", HOWS)
def test_the_smallest_weights_leave(how: dict) -> None:
    model, optimizer, x = trained(how)
    before, matrix, momenta, count = (
        model(x),
        model.matrix(),
        state_of(model, optimizer),
        model.weight.numel(),
    )
    applied = prune_weights(model, 0.4, optimizers=[optimizer])
    assert model.sparse
    assert (
        model.weight.numel() == round(count * 0.6) == len(optimizer.state[model.weight]["exp_avg"])
    )
    border = matrix.abs().flatten()[matrix.flatten() != 0].sort().values[count - round(count * 0.6)]
    kept = matrix.abs() >= border
    assert torch.equal(model.matrix(), matrix * kept)
    assert torch.equal(state_of(model, optimizer), momenta * kept)
    torch.testing.assert_close(by_hand(model, x), model.values(x), rtol=0, atol=1e-12)
    applied.undo()
    assert torch.equal(model(x), before)
    assert torch.equal(state_of(model, optimizer), momenta)


@pytest.mark.parametrize("linked", [False, True])
def test_weights_move_to_where_the_gradient_is(linked: bool) -> None:
    model, optimizer, x = trained({"wiring": "random", "fan_in": 4, "linked": linked})
    loss = lambda out: out.square().sum()  # noqa: E731
    model.zero_grad()
    loss(model(x)).backward()
    gradient = full_gradient(model, x, loss)
    torch.testing.assert_close(
        gradient[places(model.layout, model.indices, model.indptr)], model.weight.grad
    )
    matrix, count, before = model.matrix(), model.weight.numel(), model(x)
    applied = rewire(model, 0.25, gradient, optimizers=[optimizer])
    moved = round(0.25 * count)
    assert model.weight.numel() == count
    assert int((model.weight == 0).sum()) == moved
    kept = model.matrix() != 0
    assert torch.equal(model.matrix(), matrix * kept)
    assert int(kept.sum()) == count - moved
    size = Dag(5, 20, linked=linked).double()
    with torch.no_grad():
        size.weight.copy_(gradient.abs())
    new = torch.zeros_like(matrix, dtype=torch.bool)
    new[model.entries()] = True
    new &= ~kept
    free = size.matrix() * (matrix == 0)
    assert free[new].min() >= free[~new].max()
    assert not doctor(model, optimizers=[optimizer])
    step(model, optimizer, x)
    with pytest.raises(PlanError, match="changed since"):
        applied.undo()
    model, optimizer, x = trained({"wiring": "random", "fan_in": 4, "linked": linked})
    rewire(model, 0.5, optimizers=[optimizer]).undo()
    assert torch.equal(model(x), before)


def test_changes_that_cannot_be_are_refused() -> None:
    model = Dag(3, 10)
    for change, reason in [
        (lambda: grow_nodes(model, 0), "count=0"),
        (lambda: prune_weights(model, 1.0), "share=1.0"),
        (lambda: rewire(model, 0.1), "has every weight"),
        (lambda: grow_nodes(model, 1, new_state_fraction=-1), "new_state_fraction=-1"),
    ]:
        with pytest.raises(PlanError, match=reason):
            change()
    sparse = Dag(3, 10, wiring="random", fan_in=8)
    with pytest.raises(PlanError, match="fewer places are free"):
        rewire(sparse, 0.9)
    with pytest.raises(PlanError, match="give full_gradient's"):
        rewire(sparse, 0.1, torch.ones(3))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("out", [3, None])
def test_frozen_it_is_plain_layers(how: dict, out: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = (
        Dag(5, 12, out, **(how | ({"fan_in": 7} if how.get("fan_in") == 30 else {}))).double(),
        torch.randn(6, 5).double(),
    )
    plain, certificate = freeze(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), model).double(), x)
    assert certificate.max_error <= 1e-12
    assert {type(m).__module__.partition(".")[0] for m in plain.modules()} == {"torch"}
    assert not any(
        "morphogen" in str(n.target) for n in torch.export.export(plain, (x,)).graph.nodes
    )
    alone = by_levels(model)
    torch.testing.assert_close(alone(x), model(x), rtol=0, atol=1e-12)
    if out and not how:
        assert export_onnx(alone.float(), x.float(), tmp_path / "dag.onnx").max_error < 1e-5


@pytest.mark.parametrize("how", HOWS)
def test_there_and_back_by_networkx(how: dict) -> None:
    torch.manual_seed(0)
    model, x = Dag(5, 20, **how).double(), torch.randn(6, 5).double()
    graph = to_networkx(model)
    assert nx.is_directed_acyclic_graph(graph)
    other, order = from_networkx(
        graph, [("x", i) for i in range(5)], linked=how.get("linked", False)
    )
    other = other.double()
    place = [order.index(("h", i)) for i in range(20)]
    expected, found = model(x), other(x)
    if how.get("linked"):
        place += [20 + i for i in place]
    # biases and weights went through float32
    torch.testing.assert_close(found[:, place], expected, rtol=1e-6, atol=1e-6)
    random, _ = from_networkx(
        nx.gn_graph(30, seed=1),
        [node for node in range(30) if not nx.gn_graph(30, seed=1).in_degree(node)],
        2,
    )
    assert random(torch.randn(4, random.in_features)).shape == (4, 2)


def test_graphs_that_are_none_are_refused() -> None:
    for graph, inputs, reason in [
        (nx.DiGraph([(0, 1), (1, 0)]), [0], "a cycle"),
        (nx.DiGraph([(0, 1)]), [1], "edges lead to the inputs"),
        (nx.DiGraph([(0, 1)]), [7], "are no nodes"),
        (nx.DiGraph([(0, 1)]), [], "at least one of each"),
    ]:
        with pytest.raises(ShapeError, match=reason):
            from_networkx(graph, inputs)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.Adam, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1)],
)
def test_a_cascade_keeps_its_function_and_what_it_has_learned(linked: bool, optimizer: Any) -> None:
    torch.manual_seed(0)
    model, x = Cascade(4, 6, 3, linked=linked).double(), torch.randn(9, 4, dtype=torch.float64)
    trainer = optimizer(model.parameters())

    def step() -> None:
        trainer.zero_grad()
        model(x).square().mean().backward()
        trainer.step()

    step()
    before, state, parts = (
        model(x),
        copy.deepcopy(trainer.state_dict()),
        copy.deepcopy(model.state_dict()),
    )
    applied = add_stage(model, 5, optimizers=[trainer])
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    learning = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in learning} == {
        id(p) for group in trainer.param_groups for p in group["params"]
    }
    assert {id(p) for p in trainer.state} <= {id(p) for p in learning}
    first = [p.detach().clone() for p in model.stages[0].parameters()]
    second = model.stages[1].weight.detach().clone()
    step()
    step()  # the readout's weights on the new nodes are no longer zero
    assert all(torch.equal(a, b) for a, b in zip(first, model.stages[0].parameters(), strict=True))
    assert not torch.equal(second, model.stages[1].weight)
    with pytest.raises(PlanError, match="was changed since"):
        applied.undo()
    again = Cascade(4, 6, 3, linked=linked).double()
    again.load_state_dict(parts)
    trainer = optimizer(again.parameters())
    trainer.load_state_dict(state)
    add_stage(again, 5, optimizers=[trainer]).undo()
    assert all(torch.equal(value, parts[name]) for name, value in again.state_dict().items())
    assert all(p.requires_grad for p in again.parameters())
    restored = trainer.state_dict()
    assert restored["param_groups"] == state["param_groups"]
    for number, entries in state["state"].items():
        assert str(restored["state"][number]) == str(entries)


def test_a_cascade_becomes_plain_layers() -> None:
    model, x = Cascade(4, 6, 3), torch.randn(5, 4)
    add_stage(model, 5)
    torch.nn.init.normal_(model.readout.weight)
    plain, certificate = freeze(model, x)
    assert not any(isinstance(module, Dag) for module in plain.modules())
    assert certificate.max_error <= 1e-5
    with pytest.raises(PlanError, match="count=0"):
        add_stage(model, 0)
    with pytest.raises(ShapeError, match="in_features=4"):
        model(torch.ones(2, 3))
