"""The learned depth against its closed forms."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import morphogen as mg
from morphogen import AddBlock, LearnedDepth, ShapeError
from morphogen.layers.depth import gate
from morphogen.layers.gate import Sharp, exponential, hard_step, soft_step
from morphogen.layers.merge import convex, product, residual, root_product
from morphogen.layers.penalty import flops, penalty, priced, quadratic, scale_penalty
from morphogen.models import convnet, depths_of, shape_of


def test_gates_are_the_published_values() -> None:
    for w, expected in {
        1.0: [0.632],
        2.0: [0.865, 0.632],
        4.406: [0.988, 0.967, 0.910, 0.755, 0.334],
    }.items():
        torch.testing.assert_close(
            gate(torch.tensor(w), len(expected)), torch.tensor(expected), rtol=0, atol=1e-3
        )


def test_the_gradient_is_the_formula_and_zero_at_the_kink() -> None:
    for w in (0.3, 1.0, 2.0, 2.5):
        value = torch.tensor(w, dtype=torch.float64, requires_grad=True)
        gate(value, 4).sum().backward()
        assert float(value.grad) == pytest.approx(
            sum(math.exp(i - w) for i in range(4) if i < w), abs=1e-12
        )


def test_far_blocks_have_finite_gradients() -> None:
    value = torch.tensor(1.0, requires_grad=True)
    gate(value, 200).sum().backward()
    assert torch.isfinite(value.grad)
    assert torch.isfinite(gate(torch.tensor(1.0, dtype=torch.float16), 50)).all()


def deep(w: float, built: int) -> LearnedDepth:
    layer = LearnedDepth(lambda i: nn.Linear(5, 5), w=w).double()
    while len(layer.blocks) < built:
        layer.blocks.append(nn.Linear(5, 5).double())
    return layer


@pytest.mark.parametrize("w", [-0.5, 0.0, 0.4, 1.0, 1.6, 3.0])
def test_running_only_active_blocks_equals_running_all(w: float) -> None:
    layer, x = deep(w, 5), torch.randn(7, 5, dtype=torch.float64)
    everything = x
    for i, g in enumerate(layer.gates()):
        everything = layer.h(everything + g * layer.blocks[i](everything))
    everything.square().sum().backward()
    expected = {
        n: p.grad.clone()
        for n, p in layer.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    layer.zero_grad()
    out = layer(x)
    assert layer.active_blocks == max(0, math.ceil(w))
    torch.testing.assert_close(out, everything, rtol=0, atol=0)
    if out.requires_grad:
        out.square().sum().backward()
    seen = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None and p.grad.any()}
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value, rtol=0, atol=0)


def test_inactive_blocks_are_never_executed() -> None:
    layer = deep(1.5, 4)
    calls = []
    for i, block in enumerate(layer.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    layer(torch.randn(2, 5, dtype=torch.float64))
    assert calls == [0, 1]


@pytest.mark.parametrize(
    ("w", "built", "wanted"),
    [(1.0, 1, 1), (1.01, 1, 2), (1.9, 2, 2), (0.9, 2, 2), (0.7, 2, 1), (-3, 1, 1)],
)
def test_blocks_are_wanted_with_hysteresis(w: float, built: int, wanted: int) -> None:
    assert deep(w, built).wanted() == wanted


def test_the_function_is_continuous_where_a_block_opens() -> None:
    layer, x = deep(2.0, 3), torch.randn(7, 5, dtype=torch.float64)
    before = layer(x)
    layer.w.data += 1e-9
    assert layer.active_blocks == 3
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-6)


def test_a_depth_that_is_no_number_is_refused() -> None:
    with pytest.raises(ShapeError, match="w=nan; give a finite number"):
        LearnedDepth(lambda i: nn.Linear(2, 2), w=math.nan)


def normed(i: int = 0) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))


def layer(w: float = 1.0, block=normed, **options) -> LearnedDepth:
    torch.manual_seed(0)
    return LearnedDepth(block, w=w, **options).double()


# Gates and merges
# ----------------------------------------------------------------------------------


def test_a_sharp_gate_trains_its_sharpness() -> None:
    deep = layer(2.5, gate=Sharp(2.0))
    expected = [1 - math.exp(2.0 * (i - 2.5)) for i in range(3)]
    torch.testing.assert_close(
        deep.gates(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6
    )
    deep(torch.randn(7, 5, dtype=torch.float64)).square().sum().backward()
    assert deep.gate.log_a.grad.abs() > 0
    with pytest.raises(ShapeError, match=r"Sharp: a=-1.0; give a positive number"):
        Sharp(-1.0)


def test_steps_are_flat_at_zero_and_one_beyond() -> None:
    gates = torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64, requires_grad=True)
    assert hard_step(gates).tolist() == [0, 1, 1]
    soft_step(gates).sum().backward()
    assert gates.grad[0] == 0
    torch.testing.assert_close(
        soft_step(gates).detach(), torch.tensor([0.0, 1, 1], dtype=torch.float64), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("merge", [residual, convex, product, root_product])
def test_a_merge_is_the_identity_at_a_closed_gate(merge) -> None:
    g, f, closed = torch.randn(4), torch.rand(4) + 0.1, torch.tensor(0.0)
    torch.testing.assert_close(merge(g, f, closed), g, rtol=0, atol=0)
    assert not torch.equal(merge(g, f, torch.tensor(0.5)), g)


@pytest.mark.parametrize("w", [0.4, 1.0, 1.8])
def test_a_convex_merge_freezes_and_a_product_is_refused(w: float) -> None:
    model, x = (
        nn.Sequential(layer(w, merge=convex), nn.Linear(5, 2).double()),
        torch.randn(7, 5, dtype=torch.float64),
    )
    model(x)
    plain, certificate = mg.freeze(model, x)
    assert certificate.max_error <= 1e-12
    torch.testing.assert_close(plain(x), model.eval()(x), rtol=0, atol=1e-12)
    with pytest.raises(mg.Unsupported, match="the merge 'product' is not affine"):
        mg.freeze(nn.Sequential(layer(1.0, merge=product)), x)


# Penalties
# ----------------------------------------------------------------------------------


def test_penalties_and_their_gradients_are_the_closed_forms() -> None:
    deep = layer(2.3)
    for block in deep.blocks:
        nn.init.normal_(block[1].weight)
    w, norms = 2.3, [float(block[1].weight.square().sum()) for block in deep.blocks]
    value = quadratic(deep, 1e-2) + scale_penalty(deep, 1e-3)
    value.backward()
    gates = [1 - math.exp(i - w) for i in range(3)]
    expected = 1e-2 * w**2 + 1e-3 * sum(g * n for g, n in zip(gates, norms, strict=True))
    assert float(value) == pytest.approx(expected, rel=1e-6)
    slope = 2e-2 * w + 1e-3 * sum(math.exp(i - w) * n for i, n in enumerate(norms))
    assert float(deep.w.grad) == pytest.approx(slope, rel=1e-6)
    assert float(deep.blocks[1][1].weight.grad[0]) == pytest.approx(
        2e-3 * gates[1] * float(deep.blocks[1][1].weight[0]), rel=1e-6
    )
    assert float(scale_penalty(deep, 1.0, free=1e6)) == 0
    assert float(scale_penalty(deep, 1.0, step=hard_step)) == pytest.approx(sum(norms), rel=1e-6)


def test_a_closed_block_costs_nothing_and_the_penalties_of_a_model_add_up() -> None:
    first, second = (
        layer(0.5, penalty=partial(quadratic, factor=2.0)),
        layer(1.5, penalty=partial(scale_penalty, factor=1.0)),
    )
    second.blocks[1][1].weight.data.zero_()
    second.blocks.append(normed().double())
    expected = 2 * 0.25 + (1 - math.exp(-1.5)) * 5
    assert float(penalty(nn.ModuleList([first, second]))) == pytest.approx(expected, rel=1e-6)
    assert penalty(nn.Linear(2, 2)) == 0


def test_a_depth_is_priced_by_what_its_blocks_cost() -> None:
    deep = layer(1.5)
    gates = (1 - math.exp(-1.5)) + (1 - math.exp(-0.5))
    assert float(priced(deep, 1e-3)) == pytest.approx(1e-3 * 40 * gates, rel=1e-6)
    counted = flops(torch.randn(2, 5, dtype=torch.float64))
    assert float(priced(deep, 1.0, counted)) == pytest.approx(2 * 2 * 5 * 5 * gates, rel=1e-6)


# Collapse and growth
# ----------------------------------------------------------------------------------


def test_zero_is_absorbing_without_a_floor_and_not_with_one() -> None:
    x = torch.randn(7, 5, dtype=torch.float64)
    for floor, active in ((None, 0), (0.1, 1)):
        deep = layer(-0.5, floor=floor)
        out = deep(x)
        assert deep.active_blocks == active
        if floor is None:
            assert deep.w.grad is None
            assert not out.requires_grad
            continue
        out.square().sum().backward()
        assert deep.w.grad.abs() > 0
        assert deep.depth == 0.1
        torch.testing.assert_close(
            float(deep.gates()[0].detach()), 1 - math.exp(-0.1), rtol=1e-6, atol=0
        )
    with pytest.raises(ShapeError, match="floor=0; give a positive number"):
        layer(floor=0)


@pytest.mark.parametrize("w", [-0.5, 1.0, 1.6])
def test_looking_ahead_changes_no_value_and_tells_w_what_the_next_block_would_do(w: float) -> None:
    x, plain, deep = torch.randn(7, 5, dtype=torch.float64), layer(w), layer(w, lookahead=True)
    assert len(deep.blocks) == len(plain.blocks) + 1
    closed = deep.blocks[deep.active_blocks]
    expected, out = plain(x), deep(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    direction = torch.randn_like(out)
    (out * direction).sum().backward()
    own = 0.0
    if expected.requires_grad:
        (expected * direction).sum().backward()
        own = float(plain.w.grad)
    with torch.no_grad():
        signal = float((copy.deepcopy(closed)(out) * direction).sum())
    assert float(deep.w.grad) == pytest.approx(own + signal, rel=1e-9)
    assert all(p.grad is None for p in closed.parameters())
    assert closed[1].num_batches_tracked == 1  # its batch norm sees data before it opens
    assert torch.equal(deep.eval()(x), plain.eval()(x)) or w > 0


def test_a_collapsed_depth_reopens_by_looking_ahead() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    target = torch.relu(x + x.roll(1, 1))
    deep = LearnedDepth(lambda i: nn.Linear(5, 5), w=-0.1, lookahead=True)
    with torch.no_grad():
        deep.blocks[0].weight.copy_(torch.eye(5).roll(-1, 1))
    optimizer = torch.optim.Adam(deep.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        (deep(x) - target).square().mean().backward()
        optimizer.step()
    assert deep.depth > 0.5


def test_a_quiet_newborn_changes_nothing_however_far_the_depth_has_gone() -> None:
    x = torch.randn(7, 5, dtype=torch.float64)
    for zero_init in (True, False):
        deep = layer(1.0, zero_init=zero_init)
        model = nn.Sequential(deep)
        deep.w.data.fill_(1.7)
        before = model.eval()(x)
        mg.resize(model, [AddBlock("0")], example=x)
        assert torch.equal(model.eval()(x), before) == zero_init


def test_blocks_of_several_kinds_alternate() -> None:
    deep = layer(2.0, block=lambda i: nn.Linear(5, 5) if i % 2 else normed())
    model, x = (
        nn.Sequential(nn.Linear(3, 5), deep, nn.Linear(5, 2)).double(),
        torch.randn(7, 3, dtype=torch.float64),
    )
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    mg.resize(model, [mg.Grow("0", 2)], example=x, optimizers=[optimizer])
    for kind in (nn.Sequential, nn.Linear):
        mg.resize(model, [AddBlock("1")], example=x, optimizers=[optimizer])
        assert type(deep.blocks[-1]) is kind
    assert mg.doctor(model, optimizers=[optimizer]) == []
    deep.w.data.fill_(4.0)
    assert model(x).shape == (7, 2)


def test_adapt_gives_every_depth_its_blocks_and_the_optimizer_the_live_parameters() -> None:
    inner = lambda i: nn.Sequential(nn.Linear(5, 5), LearnedDepth(lambda j: nn.Linear(5, 5)))  # noqa: E731
    model = nn.Sequential(LearnedDepth(inner, w=2.0)).double()
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(7, 5, dtype=torch.float64)
    model(x).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state[model[0].blocks[0][0].weight])
    model[0].w.data.fill_(3.4)
    model[0].blocks[0][1].w.data.fill_(2.2)
    edits = mg.adapt(model, optimizers=[optimizer])
    assert sorted(map(str, edits))[-1] == "add a block to 0.blocks.0.1"
    assert (len(model[0].blocks), len(model[0].blocks[0][1].blocks)) == (4, 3)
    assert mg.doctor(model, optimizers=[optimizer]) == []
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            optimizer.state[model[0].blocks[0][0].weight].values(), state.values(), strict=True
        )
    )
    model[0].w.data.fill_(0.5)
    mg.adapt(model, optimizers=[optimizer])
    assert len(model[0].blocks) == 1
    assert mg.doctor(model, optimizers=[optimizer]) == []
    assert mg.adapt(model, optimizers=[optimizer]) == []


def test_hovering_at_an_integer_does_not_flip_the_structure() -> None:
    deep = layer(1.9)
    flips = 0
    for step in range(2000):
        deep.w.data.fill_(2.0 + 0.02 * math.sin(step))  # crosses 2 hundreds of times
        flips += len(mg.adapt(deep))
    assert flips == 1


# Company
# ----------------------------------------------------------------------------------


FIXED = [(1.05, 1.0), (1.2, 1.2), (3.02, 3.0), (0.4, 0.4), (0.02, 0.02), (2.0, 2.0)]


@pytest.mark.parametrize(("w", "fixed"), FIXED)
def test_a_fixed_depth_stays_and_closes_a_block_that_is_hardly_open(w: float, fixed: float) -> None:
    layer = LearnedDepth(lambda _: nn.Linear(3, 3), w=w, lookahead=True)
    x = torch.randn(4, 3)
    before = layer(x)
    layer.fix_depth()
    assert layer.depth == pytest.approx(fixed)
    assert layer.active_blocks == max(0, math.ceil(fixed))
    assert not layer.w.requires_grad
    layer(x).sum().backward()
    assert all(
        (p.grad is not None) == (i < layer.active_blocks)
        for i, b in enumerate(layer.blocks)
        for p in b.parameters()
    )
    if fixed == w:
        torch.testing.assert_close(layer(x), before)


def test_copies_and_pickles_are_the_same_function() -> None:
    deep, x = layer(1.5), torch.randn(7, 5, dtype=torch.float64)
    copied = copy.deepcopy(deep)
    assert torch.equal(copied(x), deep(x))
    assert copied._build is not None
    flat = pickle.loads(pickle.dumps(deep))
    assert torch.equal(flat.eval()(x), deep.eval()(x))
    assert type(flat.new_block()) is nn.Sequential


def test_low_precision_keeps_the_gates_in_full_precision() -> None:
    deep, x = LearnedDepth(lambda i: nn.Linear(5, 5), w=2.5), torch.randn(7, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = deep(x)
    out.float().square().sum().backward()
    assert deep.w.grad.isfinite()
    assert deep.gates().dtype == torch.float32
    half = copy.deepcopy(deep).to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert half.gates().dtype == torch.float32


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    grads = []
    for run in (lambda deep: deep(x), lambda deep: checkpoint(deep, x, use_reentrant=False)):
        deep = layer(2.5, block=lambda i: nn.Linear(5, 5))
        run(deep).square().sum().backward()
        grads.append([p.grad for p in deep.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_compiled_depth_follows_w_with_one_graph_a_number() -> None:
    torch._dynamo.reset()
    graphs = []

    def counter(graph, inputs):
        graphs.append(graph)
        return graph.forward

    deep = layer(3.0, block=lambda i: nn.Linear(5, 5))
    run, x = mg.compiled(deep, backend=counter), torch.randn(7, 5, dtype=torch.float64)
    for w in (2.5, 0.5, 1.5, 2.9, 0.1, 1.1, 2.0, 3.0):
        deep.w.data.fill_(w)
        torch.testing.assert_close(run(x), deep(x), rtol=0, atol=1e-12)
    assert len(graphs) == 3


def test_the_exponential_gate_is_the_default() -> None:
    assert layer().gate is exponential
    assert layer().merge is residual


def test_a_report_names_depths_as_it_names_layers() -> None:
    model = convnet((1, 16, 16), 3, 4, 0.0)
    names = [layer.name for layer in shape_of(model)]
    depths = depths_of(model)
    assert depths
    for depth, layer in zip(
        depths, (m for m in model.modules() if isinstance(m, LearnedDepth)), strict=True
    ):
        assert depth.name in names
        assert depth.w == layer.depth
        assert list(depth.gates) == layer.gates()[: layer.active_blocks].tolist()


@pytest.mark.parametrize("w", [math.inf, -math.inf, math.nan])
def test_a_depth_that_is_no_number_asks_for_nothing(w: float) -> None:
    deep = LearnedDepth(lambda i: nn.Linear(2, 2), w=1.5)
    deep.w.data.fill_(w)
    assert mg.adapt(deep) == []
    assert len(deep.blocks) == 2


@pytest.mark.parametrize(
    "tail",
    [
        lambda: nn.BatchNorm1d(5),
        lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.0), nn.Identity()),
        lambda: nn.LayerNorm(5),
        lambda: nn.GroupNorm(1, 5, affine=False),
        lambda: nn.utils.parametrizations.weight_norm(nn.LayerNorm(5)),
        nn.Tanh,
    ],
)
def test_a_gate_inside_the_last_norm_is_the_gate_outside(tail) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5, dtype=torch.float64)
    inside = LearnedDepth(lambda i: nn.Sequential(nn.Linear(5, 5), tail()), w=1.6).double().train()
    outside = copy.deepcopy(inside)
    outside.merge = lambda g, f, share: g + share * f
    results = []
    for deep in (inside, outside):
        names = [name for name, _ in deep.named_parameters()]
        out = deep(x)
        out.square().sum().backward()
        assert [name for name, _ in deep.named_parameters()] == names
        assert all(isinstance(p, nn.Parameter) for p in deep.parameters())
        results.append([out, *(p.grad for p in deep.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_block_that_fails_leaves_its_norm_as_it_was() -> None:
    deep = LearnedDepth(lambda i: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(5))).train()
    before = dict(deep.named_parameters())
    with pytest.raises(RuntimeError):
        deep(torch.randn(2, 3))
    after = dict(deep.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
