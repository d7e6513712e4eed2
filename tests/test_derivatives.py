"""Every custom operation has its derivatives: backward, forward, batched, and of any order; or says
that it has not.
"""

import importlib
import pkgutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import morphogen
from morphogen import Unsupported
from morphogen.gnn import attention as attention_op
from morphogen.gnn import neighbour_sums as neighbour_sums_op
from morphogen.gnn.adjacency import Adjacency, from_edge_index
from morphogen.gnn.attention import attention
from morphogen.gnn.neighbour_sums import neighbour_sums
from morphogen.layers import linked_op
from morphogen.layers.dag import dense as dense_op
from morphogen.layers.dag import sparse as sparse_op
from morphogen.layers.dag.dense import Layout, dag
from morphogen.layers.dag.module import Dag
from morphogen.layers.dag.sparse import sparse_dag, wiring
from morphogen.layers.linked_op import KINDS, linked

Case = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def draw(*shape: int) -> Tensor:
    """Numbers that no ReLU sees near its kink."""
    values = torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    )
    return (values + 0.3 * values.sign()).requires_grad_()


def dense(kind: str, linked: bool, inner: bool, solver: str) -> Case:
    layout = Layout(3, (3, 2), inner, kind, linked)
    return lambda x, w, b: dag(x, w, b, layout, solver), (
        draw(2, 3),
        draw(layout.weights),
        draw(layout.nodes),
    )


def placed(kind: str, linked: bool) -> Case:
    layout = Layout(3, (3, 2), True, kind, linked)
    chosen = torch.arange(0, layout.weights, 2)
    run = lambda x, w, b: dag(x, w, b, layout, "auto", chosen)  # noqa: E731
    return run, (draw(2, 3), draw(len(chosen)), draw(layout.nodes))


def wired(kind: str, linked: bool, solver: str) -> Case:
    # node 2 reads nothing
    indices, indptr = torch.tensor([0, 2, 1, 3, 0, 4]), torch.tensor([0, 2, 4, 4, 6])
    known = wiring(indices, indptr, 3, 2 if linked else 1)
    return lambda x, w, b: sparse_dag(x, w, b, known, kind, linked, solver), (
        draw(2, 3),
        draw(6),
        draw(4),
    )


def pair(kind: str, dim: int, *shape: int) -> Case:
    return lambda z: linked(z, kind, dim), (draw(*shape),)


def heard() -> Adjacency:
    """Of five nodes, the last of which hears nobody, and one hears another twice."""
    return from_edge_index(torch.tensor([[1, 2, 0, 3, 3, 4, 2], [0, 0, 1, 2, 2, 3, 3]]), 5)


def sums(*scaled: str) -> Case:
    scales = {name: draw(5).detach() for name in scaled}
    return lambda x: neighbour_sums(heard(), x, **scales).sin(), (draw(5, 2),)


def attended() -> Case:
    return lambda to, of, x: attention(heard(), to, of, x), (
        draw(5, 2),
        0.7 * draw(5, 2).detach().requires_grad_(),
        draw(5, 2, 2),
    )


# every custom operation and autograd function, and what calls it
CASES: dict[str, list[Case]] = {
    "morphogen::dag": [
        dense(kind, linked, inner, solver)
        for kind, linked, inner, solver in [
            ("relu", False, True, "auto"),
            ("relu", True, True, "native"),
            ("silu", False, True, "auto"),
            ("gelu", True, True, "jacobi"),
            ("elu", False, False, "auto"),
            ("selu", True, False, "loop"),
        ]
    ]
    + [placed("relu", False), placed("silu", True)],
    "morphogen::sparse_dag": [
        wired("relu", False, "auto"),
        wired("relu", True, "native"),
        wired("relu", True, "levels"),
        wired("gelu", False, "auto"),
    ],
    "morphogen::linked": [pair(kind, 1, 2, 3) for kind in KINDS]
    + [pair("silu", 2, 2, 1, 2), pair("gelu", 1, 1, 2, 2, 2)],
    "morphogen::neighbour_attention": [attended()],
}
CASES |= {f"{name}_backward": cases for name, cases in list(CASES.items())}
# a sum is its own backward pass, along the transpose
CASES["morphogen::neighbour_sums"] = [
    sums(),
    sums("rows"),
    sums("columns"),
    sums("rows", "columns"),
]
CASES |= {"_Linked": CASES["morphogen::linked"], "_Kept": CASES["morphogen::linked"]}
# what they give back is an estimate and no derivative; tests/test_density.py follows each
ESTIMATES = {"_Half", "_StraightThrough"}
FORWARD = [
    (name, n)
    for name, cases in CASES.items()
    if "::" in name and "backward" not in name
    for n in range(len(cases))
]


def custom() -> set[str]:
    """The names of all custom operations and autograd functions of the package."""
    for module in pkgutil.walk_packages(morphogen.__path__, "morphogen."):
        if not module.name.startswith(("morphogen.integrations", "morphogen.cli")):
            importlib.import_module(module.name)
    operations = {
        name for name in torch._C._dispatch_get_all_op_names() if name.startswith("morphogen::")
    }
    functions = {
        f.__name__
        for f in torch.autograd.Function.__subclasses__()
        if f.__module__.startswith("morphogen")
    }
    return {name.partition(".")[0] for name in operations} | functions


def test_every_custom_operation_has_a_case() -> None:
    assert custom() == CASES.keys() | ESTIMATES, "add a case for it above"


@pytest.mark.parametrize(("name", "number"), FORWARD)
def test_derivatives_of_every_kind(name: str, number: int) -> None:
    run, inputs = CASES[name][number]
    assert gradcheck(
        run,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=False,
    )
    assert gradgradcheck(run, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize(("name", "number"), FORWARD)
def test_the_third_derivative_is_that_of_plain_operations(name: str, number: int) -> None:
    run, inputs = CASES[name][number]
    found, expected = [], []
    with torch.no_grad():
        values = run(*inputs)
    weight = torch.linspace(0.5, 1.5, values.numel(), dtype=values.dtype).view_as(values)
    for function, into in ((run, found), (plainly(name, run), expected)):
        scalar = (function(*inputs) * weight).sum()
        for _ in range(3):
            grads = torch.autograd.grad(
                scalar, inputs, create_graph=True, allow_unused=True, materialize_grads=True
            )
            into.extend(g.detach() for g in grads)
            scalar = sum((g.sin() * (1 + k)).sum() for k, g in enumerate(grads))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11 * max(1.0, float(b.abs().max())))


def plainly(name: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same by plain operations, as they run while derivatives are carried forward."""

    def plain(*inputs: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return run(*inputs)

    return plain


@pytest.mark.parametrize(
    "model",
    [
        Dag(4, 6, 2),
        Dag(4, 60, 2, wiring="random", fan_in=2),
        Dag(4, 9, 2, wiring="block", block_size=4, linked=True, activation="silu"),
    ],
)
def test_a_derivative_carried_forward_is_that_of_a_difference(model: nn.Module) -> None:
    model, x, way = model.double(), draw(3, 4).detach(), draw(3, 4).detach()
    found = torch.func.jvp(model, (x,), (way,))[1]
    expected = (model(x + 1e-6 * way) - model(x - 1e-6 * way)) / 2e-6
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-7)
    assert found.abs().max() > 0
    one = x[0]
    square = lambda v: model(v[None]).square().sum()  # noqa: E731
    torch.testing.assert_close(
        torch.func.hessian(square)(one), torch.autograd.functional.hessian(square, one)
    )
    torch.testing.assert_close(torch.func.jacfwd(square)(one), torch.func.jacrev(square)(one))
    each = torch.func.vmap(torch.func.grad(square))(x)
    (all_at_once,) = torch.autograd.grad(model(x.requires_grad_()).square().sum(), x)
    torch.testing.assert_close(each, all_at_once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_batched_gradients_in_every_precision(kind: str, dtype: torch.dtype) -> None:
    z = torch.randn(4, 6, dtype=dtype, requires_grad=True)
    out, above = linked(z, kind, 1), torch.randn(5, 4, 12, dtype=dtype)
    (found,) = torch.autograd.grad(out, z, above, is_grads_batched=True, retain_graph=True)
    expected = torch.stack([torch.autograd.grad(out, z, g, retain_graph=True)[0] for g in above])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_operation_called_by_name_refuses_what_it_would_drop() -> None:
    model, x = Dag(4, 6, 2).double(), torch.randn(3, 4, dtype=torch.float64)
    exported = torch.export.export(model, (x,)).module()
    with pytest.raises(Unsupported, match="morphogen::dag carries no derivatives forward"):
        torch.func.jvp(exported, (x,), (x,))
    modules = {
        "dag": dense_op,
        "sparse_dag": sparse_op,
        "linked": linked_op,
        "neighbour_sums": neighbour_sums_op,
        "neighbour_attention": attention_op,
    }
    operations = {
        f"morphogen::{name}{end}": function
        for name, module in modules.items()
        for end, kind in (("", "_forward"), ("_backward", "_backward"))
        if (function := getattr(module, kind, None))
    }
    assert operations.keys() == {name for name in CASES if "::" in name}
    for function in operations.values():
        with (
            forward_ad.dual_level(),
            pytest.raises(Unsupported, match="carries no derivatives forward"),
        ):
            function(*[None] * function.__code__.co_argcount)


def test_a_gradient_that_carries_a_derivative_is_not_cut_off() -> None:
    """The graph is older than the level: the backward pass itself must carry what comes with the
    gradient.
    """
    for model in (
        Dag(3, 5).double(),
        Dag(3, 40, wiring="random", fan_in=1).double(),
        nn.Sequential(linked_layer()),
    ):
        x = draw(2, 3)
        out = model(x)
        above, way = draw(*out.shape).detach(), draw(*out.shape).detach()
        with forward_ad.dual_level():
            (found,) = torch.autograd.grad(
                out, x, forward_ad.make_dual(above, way), retain_graph=True
            )
            tangent = forward_ad.unpack_dual(found).tangent
        (expected,) = torch.autograd.grad(out, x, way)  # it is linear in the gradient
        torch.testing.assert_close(tangent, expected)


def linked_layer() -> nn.Module:
    return morphogen.layers.linked.LKSwish()


def test_a_compiled_model_carries_derivatives_too() -> None:
    torch._dynamo.reset()
    model, x, way = Dag(4, 6, 2).double(), draw(3, 4).detach(), draw(3, 4).detach()
    expected = torch.func.jvp(model, (x,), (way,))[1]
    run = torch.compile(lambda x, way: torch.func.jvp(model, (x,), (way,))[1], backend="eager")
    torch.testing.assert_close(run(x, way), expected)
