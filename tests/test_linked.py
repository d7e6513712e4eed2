"""Linked activations: two halves of one sum, one saved tensor, and nets that start linear."""

import copy
import math
import multiprocessing

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphogen as mg
from morphogen import Grow, NotExact, ShapeError, Shrink, Unsupported
from morphogen.layers import linked_op
from morphogen.layers.linked import (
    LKELU,
    LKGELU,
    LKSELU,
    Linked,
    LKPReLU,
    LKReLU,
    LKSine,
    LKSwish,
    looks_linear_,
    odd_part,
    second_moment,
    variance_,
)
from morphogen.layers.linked_op import KINDS
from morphogen.transforms.link import link, unlink

NAMED = {
    LKReLU: torch.relu, LKSELU: F.selu, LKSwish: lambda z: z * z.sigmoid(),
    LKGELU: lambda z: z * (1 + torch.erf(z / math.sqrt(2))) / 2, LKELU: F.elu,
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 5, 6), (2, 7, 3), (64, 1024)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_those_of_the_formula(kind, shape, dtype) -> None:
    torch.manual_seed(0)
    g, z = NAMED[kind], torch.randn(shape, dtype=dtype, requires_grad=True)
    allowed = 1e-12 if dtype == torch.float64 else 1e-5
    with torch.no_grad():
        z.view(-1)[:2] = torch.tensor([0.0, -0.0])
    found, expected = kind(1 if z.dim() == 3 else None)(z), torch.cat([g(z), g(-z)], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed)
    weight = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), z)[0] for out in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=allowed)


@pytest.mark.parametrize("kind", NAMED)
def test_it_can_be_differentiated_twice(kind) -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 4, dtype=torch.float64)
    z = torch.where(z.abs() < 0.1, 0.5, z).requires_grad_()
    assert torch.autograd.gradgradcheck(kind(), (z,))


@pytest.mark.parametrize("kind", NAMED)
def test_the_backward_pass_keeps_z_alone(kind) -> None:
    kept: list[Tensor] = []
    z = torch.randn(8, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        kind()(z)
    assert len(kept) == 1
    assert kept[0].untyped_storage().data_ptr() == z.untyped_storage().data_ptr()


def test_dimensions_formats_and_precisions() -> None:
    z = torch.randn(2, 3, 4)
    assert LKReLU(dim=-1)(z).shape == (2, 3, 8)
    assert LKReLU(dim=0)(z).shape == (4, 3, 4)
    image = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    assert LKReLU()(image).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(LKReLU()(image), torch.cat([image.relu(), (-image).relu()], 1))
    assert LKGELU(dim=-1)(z.bfloat16()).dtype == torch.bfloat16
    infinite = torch.tensor([[math.inf, -math.inf, math.nan]])
    torch.testing.assert_close(
        LKReLU()(infinite), torch.cat([infinite.relu(), (-infinite).relu()], 1), equal_nan=True
    )
    with pytest.raises(ShapeError, match="dim=3"):
        LKReLU(dim=3)(z)


LAYOUTS: dict[str, tuple[Tensor, int]] = {
    "rows": (torch.randn(64, 1024), 1),
    "channels": (torch.randn(4, 32, 30, 30), 1),
    "channels last": (torch.randn(4, 32, 30, 30).to(memory_format=torch.channels_last), 1),
    "channels last, other dimension": (
        torch.randn(4, 6, 5, 5).to(memory_format=torch.channels_last),
        2,
    ),
    "transposed": (torch.randn(1024, 64).T, 1),
    "first dimension": (torch.randn(6, 5), 0),
    "part": (torch.randn(64, 40)[:, 5:25], 1),
    "empty": (torch.randn(0, 5), 1),
    "extreme": (
        torch.tensor(
            [[0.0, -0.0, math.nan, math.inf, -math.inf, 1e-30, -1e-30, 90, -90, 200, -200]]
        ),
        1,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_compiled_loop_does_what_pytorch_does(kind, layout, threads, monkeypatch) -> None:
    z, dim = LAYOUTS[layout]
    at = z.detach().requires_grad_()
    gradient = torch.randn_like(torch.cat([z, z], dim))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = linked_op.linked(at, kind, dim)
        (ours,) = torch.autograd.grad(found, at, gradient)
        (summed,) = torch.autograd.grad(linked_op.linked(at, kind, dim).sum(), at)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(linked_op, "_compilable", lambda z: False)
    expected = linked_op.linked(at, kind, dim)
    (theirs,) = torch.autograd.grad(expected, at, gradient)
    assert found.stride() == expected.stride()
    assert ours.stride() == theirs.stride()
    bounded = ~z.isinf()  # PyTorch says nan for silu and gelu at -inf, whose limit is 0
    both = torch.cat([bounded, bounded], dim)
    torch.testing.assert_close(found[both], expected[both], rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(ours[bounded], theirs[bounded], rtol=1e-6, atol=2e-6, equal_nan=True)
    assert summed[z.isfinite()].isfinite().all()


def test_a_blocked_gradient_may_be_infinite() -> None:
    z = torch.tensor([[1.0, -1.0]], requires_grad=True)
    (found,) = torch.autograd.grad(LKReLU()(z), z, torch.tensor([[2.0, math.inf, math.inf, 3.0]]))
    assert found.tolist() == [[2.0, -3.0]]


def test_a_fork_has_threads_of_its_own() -> None:
    z = torch.randn(64, 4096)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        LKReLU()(z)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply_async(_linked_sum, (z[:, :2048].numpy(),)).get(60) == pytest.approx(
                float(z[:, :2048].abs().sum()), rel=1e-4
            )
    finally:
        torch.set_num_threads(before)


def _linked_sum(z) -> float:
    return float(LKReLU()(torch.from_numpy(z)).numpy().sum())


def test_batched_by_vmap() -> None:
    z = torch.randn(5, 3, 4, dtype=torch.float64)
    assert torch.equal(torch.vmap(LKSwish())(z), LKSwish(dim=2)(z))
    per_example = torch.vmap(torch.func.grad(lambda one: LKReLU(dim=0)(one).square().sum()))(z)
    torch.testing.assert_close(per_example, 2 * z)


def test_whoever_reads_the_graph_sees_plain_operations(tmp_path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), LKSwish(), nn.Linear(12, 3)), torch.randn(5, 4)
    exported = torch.export.export(model.eval(), (x,), strict=False)
    assert not any("morphogen" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), model(x))


def net() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 5, 3, padding=1),
        LKReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(10, 4, 3, padding=1),
        LKSwish(),
        nn.Flatten(),
        nn.Linear(32, 6),
        LKPReLU(6),
        nn.Linear(12, 3),
    ]
    return nn.Sequential(*layers).double(), torch.randn(3, 2, 4, 4).double()


def test_a_linked_pair_is_one_width() -> None:
    model, x = net()
    known = mg.widths(mg.trace(model, x))
    assert {w.name: w.size for w in known.values() if not w.fixed} == {"0": 5, "3": 4, "6": 6}
    spans = next(slot for slot in known["0"].slots if slot.tensor == "3.weight").spans
    assert [(span.width, span.repeat) for span in spans] == [("0", 1), ("0", 1)]
    flat = next(slot for slot in known["3"].slots if slot.tensor == "6.weight").spans
    assert [(span.width, span.repeat) for span in flat] == [("3", 4), ("3", 4)]


def test_linked_nets_grow_and_shrink() -> None:
    model, x = net()
    before = model(x)
    optimizer = torch.optim.AdamW(model.parameters())
    applied = mg.resize(
        model, [Grow("0", 3), Grow("3", 1), Grow("6", 2)], example=x, optimizers=[optimizer]
    )
    assert applied.receipt.keeps
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    assert model[3].weight.shape == (5, 16, 3, 3)
    assert model[7].positive.shape == (8,)
    mg.resize(
        model,
        [Shrink("0", [5, 6, 7]), Shrink("3", [4]), Shrink("6", [6, 7])],
        example=x,
        optimizers=[optimizer],
    )
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    assert mg.doctor(model, optimizers=[optimizer]) == []


def test_slopes_are_trained_each_on_its_own() -> None:
    z = torch.randn(20, 3, dtype=torch.float64)
    for units in (1, 3):
        layer = LKPReLU(units).double()
        layer(z).square().sum().backward()
        for slope in (layer.positive, layer.negative):
            assert slope.shape == (units,)
            assert slope.grad.abs().min() > 0
    each = LKPReLU((4, 5, 5))
    assert each(torch.randn(2, 4, 5, 5)).shape == (2, 8, 5, 5)
    published = LKPReLU((3,), initial=0.0, frozen=True).double()
    assert torch.equal(published(z), LKReLU()(z))
    assert not any(p.requires_grad for p in published.parameters())
    layer = LKPReLU(3, initial=0.3).double()
    torch.testing.assert_close(
        layer(z)[:, :3], F.prelu(z, torch.full((3,), 0.3).double()), rtol=0, atol=1e-7
    )
    with pytest.raises(ShapeError, match="units=0"):
        LKPReLU(0)


def test_any_activation_can_be_linked() -> None:
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for base, g in (
        (nn.Tanh(), torch.tanh),
        (torch.sin, torch.sin),
        (nn.GELU("tanh"), lambda u: F.gelu(u, approximate="tanh")),
    ):
        assert torch.equal(Linked(base)(z), torch.cat([g(z), g(-z)], 1))
    assert torch.equal(LKSine()(z), torch.cat([z.sin(), z.cos()], 1))
    slopes = LKSine()(z)[:, :3].diff().shape
    assert slopes == (4, 2)


def test_shares_and_differences() -> None:
    assert second_moment(nn.ReLU()) == pytest.approx(0.5, abs=1e-6)
    assert second_moment(nn.SELU()) == pytest.approx(1.0, abs=1e-5)
    assert second_moment(LKPReLU(initial=0.5)) == pytest.approx(1.25 / 2, abs=1e-6)
    # the specification's figure at q = 1
    assert second_moment(nn.SiLU()) == pytest.approx(0.356, abs=1e-3)
    for base in (nn.ReLU(), nn.SiLU(), nn.GELU(), LKSwish()):
        assert odd_part(base) == pytest.approx(1.0, abs=1e-6)
    assert odd_part(LKPReLU(initial=0.25)) == pytest.approx(1.25, abs=1e-6)
    assert odd_part(nn.SELU()) is None
    assert odd_part(nn.Tanh()) is None


@pytest.mark.parametrize("kind", [LKReLU, LKSwish, LKGELU, LKPReLU])
def test_fifty_layers_that_look_linear_keep_lengths(kind) -> None:
    torch.manual_seed(0)
    act = kind()
    x = torch.randn(64, 32, dtype=torch.float64)
    z, moments = x, []
    for _ in range(50):
        layer = looks_linear_(nn.Linear(64, 32).double(), odd_part(act))
        z = layer(act.double()(z))
        moments.append(float(z.detach().square().mean() / x.square().mean()))
    assert moments == pytest.approx([1.0] * 50, abs=1e-5)


def test_fifty_convolutions_keep_lengths_and_gradients() -> None:
    torch.manual_seed(0)
    layers = [
        m for _ in range(50) for m in (LKSwish(), looks_linear_(nn.Conv2d(8, 4, 3, padding=1)))
    ]
    model, x = (
        nn.Sequential(*layers).double(),
        torch.randn(2, 4, 6, 6, dtype=torch.float64, requires_grad=True),
    )
    out = model(x)
    assert float((out.square().mean() / x.square().mean()).detach()) == pytest.approx(1.0, abs=1e-5)
    (gradient,) = torch.autograd.grad(out.square().sum() / 2, x)
    assert float(gradient.norm() / out.detach().norm()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", [LKSELU, LKELU])
def test_variance_keeps_energy_over_fifty_layers(kind) -> None:
    torch.manual_seed(0)
    act, z, moments = kind(), torch.randn(128, 1024), []
    with torch.no_grad():
        for _ in range(50):
            z = variance_(nn.Linear(2048, 1024), act)(act(z))
            moments.append(float(z.square().mean()))
    assert min(moments) > 0.9
    assert max(moments) < 1.1


@pytest.mark.parametrize("kind", [LKReLU, LKPReLU, LKSELU, LKELU, LKSwish, LKGELU, LKSine])
def test_variance_keeps_the_energy_of_unit_sums(kind) -> None:
    torch.manual_seed(0)
    act, z = kind(), torch.randn(256, 1024)
    with torch.no_grad():
        kept = [
            float(variance_(nn.Linear(2048, 1024), act)(act(z)).square().mean()) for _ in range(4)
        ]
    assert sum(kept) / 4 == pytest.approx(1.0, abs=0.03)


def test_what_cannot_look_linear_is_refused() -> None:
    for layer, match in (
        (nn.Linear(5, 3), "even number"),
        (nn.ReLU(), "give a Linear"),
        (nn.Conv2d(4, 4, 3, groups=2), "groups=1"),
    ):
        with pytest.raises(ShapeError, match=match):
            looks_linear_(layer)


def test_copies_and_state() -> None:
    model, x = net()
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))


def plain() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 3, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.PReLU(),
        nn.Dropout(0.1),
        nn.Linear(6, 7),
        nn.SELU(),
        nn.Linear(7, 3),
    ]
    return nn.Sequential(*layers).double().eval(), torch.randn(3, 2, 4, 4).double()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    state = optimizer.state_dict()
    return str((model, model.state_dict(), state["param_groups"], sorted(state["state"].items())))


@pytest.mark.parametrize("init", ["preserve", "looks-linear"])
def test_link_rewrites_a_network_and_undo_takes_it_back(init: str) -> None:
    model, x = plain()
    optimizer = torch.optim.AdamW(model.parameters())
    model(x).square().sum().backward()
    optimizer.step()
    before, out = everything(model, optimizer), model(x)
    done = link(model, x, optimizers=[optimizer], init=init)
    assert [type(model[i]) for i in (2, 5, 8, 11)] == [LKReLU, LKSwish, LKPReLU, LKSELU]
    assert [model[i].weight.shape[1] for i in (4, 7, 10, 12)] == [10, 32, 12, 14]
    assert model[4].in_channels == 10
    assert mg.doctor(model, optimizers=[optimizer]) == []
    assert done.receipt.keeps == (init == "preserve")
    assert done.receipt.edits == ("link 2", "link 5", "link 8", "link 11")
    assert done.receipt.parameters[1] == sum(p.numel() for p in model.parameters())
    if init == "preserve":
        torch.testing.assert_close(model(x), out, rtol=0, atol=1e-12)
    else:
        assert done.receipt.change == pytest.approx(float((model(x) - out).abs().max().detach()))
        torch.testing.assert_close(model[4].weight[:, :5], -model[4].weight[:, 5:])
    done.undo()
    assert everything(model, optimizer) == before


def test_unlink_gives_the_plain_network_back() -> None:
    model, x = plain()
    optimizer = torch.optim.AdamW(model.parameters())
    twin, out = copy.deepcopy(model), model(x)
    link(model, x, optimizers=[optimizer], init="preserve")
    done = unlink(model, x, optimizers=[optimizer])
    assert done.receipt.keeps
    assert mg.doctor(model, optimizers=[optimizer]) == []
    assert str(model) == str(twin)
    assert torch.equal(model(x), out)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_a_net_that_looks_linear_folds_to_a_linear_one() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Linear(4, 6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.GELU(),
        nn.Linear(6, 5),
        nn.PReLU(5),
        nn.Linear(5, 2),
    ]
    model, x = nn.Sequential(*layers).double(), torch.randn(7, 4).double()
    link(model, x)
    out = model(x)
    unlink(model, x)
    assert [type(m) for m in model[1::2]] == [nn.Identity] * 3
    torch.testing.assert_close(model(x), out, rtol=0, atol=1e-12)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = (
            nn.Linear(*s) for s in ((4, 6), (6, 5), (5, 6), (6, 2))
        )
        self.inner, self.outer = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.outer(self.stem(x))
        x = self.outer(x + self.second(self.inner(self.first(x))))
        return self.head(x)


def test_what_a_residual_stream_reads_stays_plain() -> None:
    torch.manual_seed(0)
    model, x = Residual().double(), torch.randn(3, 4).double()
    done = link(model, x, init="preserve")
    assert done.receipt.edits == ("link inner",)
    assert type(model.outer) is nn.ReLU
    assert model.second.in_features == 10


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "the output shows it"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)), "no activation module"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 2)), "layer_norm"),
    ],
)
def test_what_cannot_be_linked_is_refused_with_the_reason(model: nn.Module, reason: str) -> None:
    before = str((model, model.state_dict()))
    with pytest.raises(Unsupported, match=reason):
        link(model, torch.randn(3, 4))
    assert str((model, model.state_dict())) == before


def test_a_trained_linked_net_has_no_plain_twin() -> None:
    model, x = plain()
    link(model, x)
    with torch.no_grad():
        model[10].weight.add_(0.1)
    with pytest.raises(NotExact, match="'8' is read as neither"):
        unlink(model, x)
    with pytest.raises(Unsupported, match="nothing is linked|no linked activation"):
        unlink(nn.Sequential(nn.Linear(4, 2)), torch.randn(2, 4))


def test_a_layer_that_reads_two_things_is_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act, self.b = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.act(self.a(x))) + self.b(x)

    with pytest.raises(Unsupported, match="reads something else"):
        link(Shared(), torch.randn(3, 4))


def test_freeze_says_a_linked_activation_by_rows() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        LKReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(10, 4, 3, padding=1),
        LKSwish(),
        nn.Flatten(),
        nn.Linear(32, 6),
        LKPReLU(6),
        nn.Dropout(0.2),
        nn.Linear(12, 7),
        LKPReLU(),
        nn.Linear(14, 5),
        Linked(nn.Tanh()),
        nn.Linear(10, 3),
    ]
    model, x = nn.Sequential(*layers).double(), torch.randn(6, 2, 4, 4).double()
    with torch.no_grad():
        model[8].positive.uniform_(), model[8].negative.uniform_()
    model(x)
    plain, certificate = mg.freeze(model, x)
    assert certificate.max_error <= 1e-10
    assert not any(type(m).__module__.startswith("morphogen") for m in plain.modules())
    torch.testing.assert_close(plain(x), model.eval()(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 4), LKSine(), nn.Linear(8, 2)),
        nn.Sequential(nn.Linear(4, 4), nn.Tanh(), LKReLU(), nn.Linear(8, 2)),
        nn.Sequential(nn.Linear(4, 4), Linked(torch.sin), nn.Linear(8, 2)),
    ],
)
def test_what_has_no_plain_form_is_refused(model: nn.Module) -> None:
    with pytest.raises(Unsupported, match="freeze"):
        mg.freeze(model, torch.randn(3, 4))
