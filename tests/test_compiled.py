"""A compiled graph follows its model: whatever changes the structure, the next call runs what is
there then.
"""

import copy
import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen import AddBlock, Grow, LearnedDepth, LearnedWidth, layers
from morphogen.layers.dag.module import Dag
from morphogen.layers.linked import LKReLU
from morphogen.layers.posterior import DepthPosterior

Change = Callable[[nn.Module, nn.Module, Tensor], Any]
"""(model, the layer in it, an example) -> makes the layer's structure another."""


def depth() -> nn.Module:
    return LearnedDepth(lambda i: nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)), w=0.8)


def deeper(model: nn.Module, layer: nn.Module, x: Tensor) -> None:
    layer.w.data.fill_(3.3)
    mg.adapt(model)
    assert len(layer.blocks) == 4


def shallower(model: nn.Module, layer: nn.Module, x: Tensor) -> None:
    deeper(model, layer, x)
    layer.w.data.fill_(0.4)
    mg.adapt(model)
    assert len(layer.blocks) == 1


def moved(model: nn.Module, layer: nn.Module, x: Tensor) -> None:
    """No block joins: w alone opens what is there."""
    layer.w.data.fill_(1.7)


def reached(model: nn.Module, layer: nn.Module, x: Tensor) -> None:
    before = len(layer.blocks)
    layer.mean.data.fill_(5.0)
    mg.adapt(model)
    assert len(layer.blocks) > before


def wider(model: nn.Module, layer: nn.Module, x: Tensor) -> None:
    layer.log_w.data.fill_(math.log(7.5))
    assert mg.adapt(model, example=x)


def more(name: str) -> Change:
    return lambda model, layer, x: mg.resize(model, [Grow(name, 3)], example=x)


CASES: dict[str, tuple[Callable[[], nn.Module], Change]] = {
    "LearnedDepth, deeper": (depth, deeper),
    "LearnedDepth, shallower": (depth, shallower),
    "LearnedDepth, moved": (
        lambda: LearnedDepth(lambda i: nn.Linear(5, 5), w=0.8, lookahead=True),
        moved,
    ),
    "LearnedDepth, inside another": (
        lambda: LearnedDepth(lambda i: nn.Sequential(nn.Linear(5, 5), depth()), w=0.8),
        lambda model, layer, x: deeper(model, layer.blocks[0][1], x),
    ),
    "DepthPosterior": (
        lambda: DepthPosterior(lambda i: nn.Linear(5, 5), lambda: nn.Linear(5, 5)),
        reached,
    ),
    "LearnedWidth": (lambda: LearnedWidth(5, 4.5), wider),
    "Dag": (lambda: Dag(5, 8, 5), more("1")),
    "Linked": (lambda: nn.Sequential(nn.Linear(5, 6), LKReLU(), nn.Linear(12, 5)), more("1.0")),
}


def compiled(model: nn.Sequential, how: str, backend: str) -> Callable[[Tensor], Tensor]:
    match how:
        case "around the model":
            return torch.compile(model, backend=backend)
        case "in the model":
            model.compile(backend=backend)
            return model
        case "around the layer":
            layer = torch.compile(model[1], backend=backend)
            return lambda x: model[2](layer(model[0](x)))
        case "in the layer":
            model[1].compile(backend=backend)
            return model
    return mg.compiled(model, backend=backend)


HOWS = ["around the model", "around the layer", "mg.compiled"]
PAIRS = [(case, how) for case in CASES for how in HOWS]
PAIRS += [("LearnedDepth, deeper", how) for how in ("in the model", "in the layer")]


def gradients(
    run: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor
) -> dict[str, Tensor | None]:
    model.zero_grad()
    out = run(x)
    out.square().sum().backward()
    return {"": out.detach(), **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize(("case", "how"), PAIRS)
def test_what_changes_the_structure_changes_the_graph(case: str, how: str) -> None:
    torch._dynamo.reset()
    build, change = CASES[case]
    model, x = (
        nn.Sequential(nn.Linear(4, 5), build(), nn.Linear(5, 2)).double(),
        torch.randn(7, 4, dtype=torch.float64),
    )
    layer, twin = model[1], copy.deepcopy(model)
    run = compiled(model, how, "eager")
    for _ in range(2):
        gradients(run, model, x)
    change(twin, twin[1], x)
    change(model, layer, x)
    twin.load_state_dict(model.state_dict())
    for mode in (True, False):
        model.train(mode), twin.train(mode)
        found, expected = gradients(run, model, x), gradients(twin, twin, x)
        for name, value in expected.items():
            assert (found[name] is None) == (value is None), name
            if value is not None:
                torch.testing.assert_close(
                    found[name], value, rtol=0, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
                )


def test_every_layer_has_a_case() -> None:
    """A new layer whose structure moves needs a case above."""
    missing = {name for name in layers.__all__ if name[0].isupper()} - {
        name.partition(",")[0] for name in CASES
    }
    assert not missing


@pytest.mark.parametrize(("how", "backend", "depths"), [
    ("around the "
     "layer", "inductor", (0.8, 1.5)), ("around the model", "aot_eager", (0.8, 2.5, 0.5)),
])  # fmt: skip
def test_a_depth_is_followed_by_what_a_real_compiler_makes(
    how: str, backend: str, depths: tuple[float, ...]
) -> None:
    if backend == "inductor" and not shutil.which("gcc"):
        pytest.skip("inductor compiles with gcc, and there is none")
    torch._dynamo.reset()
    model, x = nn.Sequential(nn.Linear(4, 5), depth(), nn.Linear(5, 2)), torch.randn(7, 4)
    run = compiled(model, how, backend)
    for w in depths:
        model[1].w.data.fill_(w)
        mg.adapt(model)
        twin = copy.deepcopy(model)
        found, expected = gradients(run, model, x), gradients(twin, twin, x)
        assert {name for name, g in found.items() if g is not None} == {
            name for name, g in expected.items() if g is not None
        }
        for name, value in expected.items():
            if value is not None:
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_a_whole_graph_is_made_by_compiled_alone() -> None:
    torch._dynamo.reset()
    model, x = nn.Sequential(nn.Linear(4, 5), depth()), torch.randn(7, 4)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="morphogen.compiled"):
        torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(mg.compiled(model, backend="eager", fullgraph=True)(x), model(x))


def test_a_plain_stack_that_grew_runs_its_new_block() -> None:
    torch._dynamo.reset()

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(torch.relu(self.first(x)))

    model, x = (
        nn.Sequential(nn.Linear(4, 5), nn.Sequential(Residual()), nn.Linear(5, 2)),
        torch.randn(7, 4),
    )
    run = torch.compile(model, backend="eager")
    run(x).sum().backward()
    mg.resize(model, [AddBlock("1")], example=x)
    run(x).sum().backward()
    assert model[1][1].second.weight.grad.abs().max() > 0
