"""Blocks of a learned depth: gates are folded only where that is the same, and new blocks are what
the builder builds.
"""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._composable import checkpoint

import morphogen as mg
from morphogen import AddBlock, Grow, LearnedDepth, PlanError, Shrink
from morphogen.layers.posterior import DepthPosterior
from morphogen.layers.stack import last_norm, reinitialised, without_reset

# Gates
# ----------------------------------------------------------------------------------


class Observed(nn.BatchNorm1d):
    """A norm of the user's own, which is not linear in its scale."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * self.weight.square()


class Own(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class Holding(nn.Module):
    """Uses a norm that it does not own."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.held = [norm]

    def forward(self, x: Tensor) -> Tensor:
        return self.held[0](x).sin()


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))


def twice(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 5), norm, nn.ReLU(), nn.Linear(5, 5), norm)


def held() -> nn.Sequential:
    norm = nn.GroupNorm(1, 5)
    return nn.Sequential(Holding(norm), nn.Linear(5, 5), norm)


def observed(hook: str) -> nn.Sequential:
    block = plain()
    getattr(block[1], hook)(
        lambda module, *given: given[-1].tanh() if hook == "register_forward_hook" else None
    )
    return block


def doubled(block: nn.Module, part: nn.Module) -> nn.Module:
    forward = type(part).forward
    part.forward = lambda x: forward(part, x).tanh()
    return block


def checkpointed(block: nn.Module, part: Callable[[nn.Module], nn.Module]) -> nn.Module:
    checkpoint(part(block))
    return block


# a block -> whether its gate goes into its norm
BLOCKS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "plain": (plain, True),
    "nested": (
        lambda: nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.LayerNorm(5), nn.Dropout(0.0))),
        True,
    ),
    "norm alone": (lambda: nn.LayerNorm(5), True),
    "norm twice": (lambda: twice(nn.GroupNorm(1, 5)), True),
    "batch norm twice": (lambda: twice(nn.BatchNorm1d(5)), True),
    "norm held elsewhere": (held, True),
    "checkpoint of a part before": (lambda: checkpointed(plain(), lambda b: b[0]), True),
    "checkpoint of the block": (lambda: checkpointed(plain(), lambda b: b), False),
    "checkpoint of the norm": (lambda: checkpointed(plain(), lambda b: b[1]), False),
    "a norm of another kind": (lambda: nn.Sequential(nn.Linear(5, 5), Observed(5)), False),
    "no norm": (lambda: nn.Sequential(nn.Linear(5, 5), nn.Tanh()), False),
    "nothing": (nn.Sequential, False),
    "hook on the norm": (lambda: observed("register_forward_hook"), False),
    "hook before the norm": (lambda: observed("register_forward_pre_hook"), False),
    "hook on its gradient": (lambda: observed("register_full_backward_hook"), False),
    "a forward of the block's own": (lambda: doubled(block := plain(), block), False),
    "a forward of the norm's own": (lambda: doubled(block := plain(), block[1]), False),
    "a subclass of Sequential": (lambda: Own(*plain()), False),
    "a weight that is computed": (
        lambda: nn.utils.parametrizations.weight_norm(nn.LayerNorm(5)),
        False,
    ),
    "no weight": (lambda: nn.GroupNorm(1, 5, affine=False), False),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_folded_gate_is_a_gate(name: str) -> None:
    build, folded = BLOCKS[name]
    torch.manual_seed(0)
    x = torch.randn(7, 5, dtype=torch.float64)
    results = []
    for merge in (None, lambda g, f, gate: g + gate * f):
        torch.manual_seed(1)
        layer = LearnedDepth(lambda i: build(), w=1.6).double()
        assert all((last_norm(block) is not None) == folded for block in layer.blocks)
        if merge:
            layer.merge = merge
        before = dict(layer.named_parameters())
        out = layer(x)
        out.square().sum().backward()
        assert all(dict(layer.named_parameters())[n] is p for n, p in before.items())
        results.append([out, *(p.grad for p in layer.parameters()), *layer.buffers()])
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_training_and_evaluation_agree_where_no_statistics_differ() -> None:
    torch.manual_seed(0)
    layer, x = (
        LearnedDepth(lambda i: twice(nn.GroupNorm(1, 5)), w=0.6).double(),
        torch.randn(7, 5, dtype=torch.float64),
    )
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), rtol=0, atol=1e-12)


def test_a_hook_on_all_modules_ends_the_folding() -> None:
    block = plain()
    assert last_norm(block)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert last_norm(block) is None
    finally:
        handle.remove()
    block[1].compile(backend="eager")
    assert last_norm(block) is None


# New blocks
# ----------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.inner, self.scale = (
            nn.MultiheadAttention(size, 2, batch_first=True),
            nn.Parameter(torch.full((size,), 0.1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inner(x, x, x)[0]


def small(i: int) -> nn.Module:
    layer = nn.Linear(4, 4)
    nn.init.constant_(layer.weight, 0.01 * (i + 1))
    nn.init.constant_(layer.bias, 0.5)
    return layer


def normed(i: int) -> nn.Module:
    block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    nn.init.constant_(block[1].weight, 0.2)
    return block


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "attention": lambda i: Attention(),
    "own scales": small,
    "a norm's own scale": normed,
    "its own depth": lambda i: nn.Sequential(nn.Linear(4, 4), LearnedDepth(small, w=1.0)),
    "by number": lambda i: nn.Linear(4, 4) if i % 2 else normed(i),
}


def trained(builder: Callable[[int], nn.Module], w: float = 1.0, **how) -> LearnedDepth:
    """As far from its start as training may take it."""
    layer = LearnedDepth(builder, w=w, **how)
    for tensor in (*layer.blocks.parameters(), *layer.blocks.buffers()):
        tensor.data = torch.full_like(tensor, 7)
    return layer


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return str(one) == str(other) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("how", ["new_block", "adapt", "AddBlock", "of a copy"])
def test_a_new_block_is_what_the_builder_builds(name: str, how: str) -> None:
    layer = trained(BUILDERS[name])
    model, draw = nn.Sequential(layer), torch.Generator().manual_seed(5)
    seed = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(5)))
    match how:
        case "new_block":
            torch.manual_seed(seed)
            block = layer.new_block()
        case "of a copy":
            torch.manual_seed(seed)
            block = copy.deepcopy(layer).new_block()
        case "adapt":
            layer.w.data.fill_(1.5)
            mg.adapt(model, generator=draw)
            block = layer.blocks[1]
        case "AddBlock":
            x = torch.randn(2, 3, 4) if name == "attention" else torch.randn(3, 4)
            mg.resize(model, [AddBlock("0")], example=x, generator=draw)
            block = layer.blocks[1]
    torch.manual_seed(seed)
    assert same(block, BUILDERS[name](1))


def test_a_depth_posterior_gets_what_its_builders_build() -> None:
    layer = DepthPosterior(small, lambda: small(4), mean=2.0)
    number = len(layer.blocks)
    for parameter in layer.blocks.parameters():
        parameter.data.fill_(7.0)
    block = layer.new_block()
    assert same(block["block"], small(number))
    assert same(block["readout"], small(4))
    again = pickle.loads(pickle.dumps(DepthPosterior(small, partial(small, 4))))
    assert same(again.new_block()["block"], small(len(again.blocks)))


def test_precision_memory_and_mode_are_those_of_the_blocks() -> None:
    build = lambda i: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))  # noqa: E731
    layer = LearnedDepth(build).double().to(memory_format=torch.channels_last).eval()
    block = layer.new_block()
    assert {t.dtype for t in block.state_dict().values()} == {torch.float64, torch.int64}
    assert block[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not block[1].training
    assert layer.train().new_block()[1].training
    mixed = LearnedDepth(build).bfloat16()
    for each in mixed.blocks:
        each[1].float()
    assert [mixed.new_block()[n].weight.dtype for n in (0, 1)] == [torch.bfloat16, torch.float32]
    frozen = LearnedDepth(build)
    frozen.blocks.requires_grad_(False)
    assert all(p.requires_grad for p in frozen.new_block().parameters())


class Wide(nn.Module):
    """Blocks on a stream whose width can change."""

    def __init__(self, builder: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.deep, self.last = nn.Linear(3, 4), LearnedDepth(builder), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.deep(self.first(x)))


@pytest.mark.parametrize("delta", [3, 9, -1])
def test_where_sizes_changed_the_scales_are_still_the_builders(delta: int) -> None:
    torch.manual_seed(0)
    model, x = Wide(normed), torch.randn(5, 3)
    edit = Grow("first", delta) if delta > 0 else Shrink("first", [0])
    mg.resize(model, [edit], example=x)
    for tensor in (*model.deep.blocks.parameters(), *model.deep.blocks.buffers()):
        tensor.data.fill_(7)
    size = 4 + delta
    torch.manual_seed(3)
    block = model.deep.new_block()
    torch.manual_seed(3)
    built = normed(1)
    kept = min(4, size)
    assert block[0].weight.shape == (size, size)
    assert block[0].in_features == block[1].num_features == size
    assert torch.equal(block[0].weight[:kept, :kept], built[0].weight[:kept, :kept])
    assert torch.equal(block[1].weight, torch.full((size,), 0.2))
    assert torch.equal(block[1].running_var, torch.ones(size))
    assert block[1].num_batches_tracked == 0
    assert block[0].weight.unique().numel() == size * size  # no two are the same, none is zero
    assert block[0].weight.abs().max() <= 0.5
    mg.resize(model, [AddBlock("deep")], example=x)
    assert model(x).shape == (5, 2)


def test_an_attention_that_grew_keeps_nothing_of_what_was_trained() -> None:
    build = lambda i: Attention()  # noqa: E731
    model, x = Wide(build), torch.randn(5, 6, 3)
    mg.resize(model, [Grow("first", 2)], example=x)
    for parameter in model.deep.blocks.parameters():
        parameter.data.fill_(7.0)
    block = model.deep.new_block()
    assert block.inner.embed_dim == 8  # two heads, two features each
    assert all((p != 7).all() for p in block.parameters())
    assert torch.equal(block.scale, torch.full((8,), 0.1))
    assert block(torch.randn(2, 3, 8)).shape == (2, 3, 8)


def test_a_builder_that_reads_the_size_is_taken_at_its_word() -> None:
    model = Wide(lambda i: nn.Linear(4, 4))

    def build(i: int) -> nn.Module:
        layer = nn.Linear(model.first.out_features, model.first.out_features)
        nn.init.eye_(layer.weight)
        return layer

    model.deep._build = build
    mg.resize(model, [Grow("first", 2)], example=torch.randn(5, 3))
    assert torch.equal(model.deep.new_block().weight, torch.eye(6))


def test_parts_that_blocks_share_stay_shared_and_are_trained_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(
        LearnedDepth(lambda i: nn.Sequential(shared, nn.BatchNorm1d(4)), w=1.0)
    ).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model[0].w.data.fill_(1.5)
    mg.adapt(model, optimizers=[optimizer])
    assert model[0].blocks[1][0] is shared
    assert shared.weight.dtype == torch.float64
    assert mg.doctor(model, optimizers=[optimizer]) == []
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held})
    model(x).sum().backward()
    model[0].w.data.fill_(0.5)
    mg.adapt(model, optimizers=[optimizer])
    assert any(p is shared.weight for group in optimizer.param_groups for p in group["params"])
    # a copy would get its new blocks' parts from the network that it was copied from
    twin, before = copy.deepcopy(model), shared.weight.clone()
    with pytest.raises(
        PlanError, match="gives parts that it did not build, and this layer is a copy"
    ):
        twin[0].new_block()
    mg.resize(model, [AddBlock("0")], example=x)  # proved on shapes of a copy first
    assert torch.equal(shared.weight, before)
    model[0].zero_init = True
    model[0]._build = lambda i: shared
    with pytest.raises(PlanError, match="which other blocks share"):
        model[0].new_block()


# Without a builder
# ----------------------------------------------------------------------------------


def test_a_pickle_keeps_a_builder_that_has_a_name() -> None:
    for builder in (small, partial(_sized, 4), partial(_of, size=4), partial(_called, small)):
        layer = pickle.loads(pickle.dumps(LearnedDepth(builder)))
        assert layer._build is not None
        assert layer.new_block().weight.shape == (4, 4)
    again = pickle.loads(pickle.dumps(trained(small)))
    assert same(again.new_block(), small(1))


def _sized(size: int, i: int) -> nn.Module:
    return nn.Linear(size, size)


def _called(build: Callable[[int], nn.Module], i: int) -> nn.Module:
    return build(i)


def _of(i: int, size: int) -> nn.Module:
    return nn.Linear(size, size)


def test_a_lost_builder_is_said_and_nothing_trained_is_copied() -> None:
    flat = pickle.loads(pickle.dumps(trained(lambda i: nn.Linear(4, 4))))
    with pytest.warns(UserWarning, match="its builder was not pickled"):
        block = flat.new_block()
    assert block.weight.abs().max() <= 0.5
    flat = pickle.loads(pickle.dumps(trained(lambda i: Attention())))
    with pytest.raises(PlanError, match="would keep the trained 'scale'"):
        flat.new_block()


def test_an_attention_is_reset_as_it_is_built() -> None:
    layer = nn.MultiheadAttention(4, 2)
    for parameter in layer.parameters():
        parameter.data.fill_(7.0)
    torch.manual_seed(0)
    reinitialised(layer)
    assert without_reset(layer) == []
    assert layer.in_proj_weight.abs().max() <= (6 / 16) ** 0.5
    assert not layer.in_proj_bias.any()
    assert not layer.out_proj.bias.any()
    assert without_reset(nn.Sequential(nn.Linear(4, 4), Attention())) == ["1.scale"]


# Runs
# ----------------------------------------------------------------------------------


def test_what_goes_on_after_a_checkpoint_gets_the_same_blocks(tmp_path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Wide(normed)
        return model, torch.optim.Adam(model.parameters(), 0.05)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            draw = torch.Generator().manual_seed(number)
            optimizer.zero_grad()
            model(torch.randn(8, 3, generator=draw)).square().sum().backward()
            optimizer.step()
            model.deep.w.data.fill_(1.0 + 0.5 * number)
            mg.adapt(model, optimizers=[optimizer], generator=draw)

    model, optimizer = build()
    mg.resize(model, [Grow("first", 2)], example=torch.randn(5, 3), optimizers=[optimizer])
    steps(model, optimizer, range(3))
    mg.save(model, tmp_path / "run", optimizers=[optimizer])
    loaded, (other,) = mg.load(tmp_path / "run", build)
    steps(model, optimizer, range(3, 6))
    steps(loaded, other, range(3, 6))
    assert len(model.deep.blocks) > 2
    assert same(model, loaded)
