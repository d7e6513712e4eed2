"""The learned depth against its closed forms."""

import math

import pytest
import torch
from torch import nn

from morphogen import LearnedDepth, ShapeError
from morphogen.layers.depth import gate


def test_gates_are_the_published_values() -> None:
    for w, expected in {1.0: [0.632], 2.0: [0.865, 0.632], 4.406: [0.988, 0.967, 0.910, 0.755, 0.334]}.items():
        torch.testing.assert_close(gate(torch.tensor(w), len(expected)), torch.tensor(expected), rtol=0, atol=1e-3)


def test_the_gradient_is_the_formula_and_zero_at_the_kink() -> None:
    for w in (0.3, 1.0, 2.0, 2.5):
        value = torch.tensor(w, dtype=torch.float64, requires_grad=True)
        gate(value, 4).sum().backward()
        assert float(value.grad) == pytest.approx(sum(math.exp(i - w) for i in range(4) if i < w), abs=1e-12)


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
    expected = {n: p.grad.clone() for n, p in layer.named_parameters() if p.grad is not None and p.grad.any()}
    layer.zero_grad()
    out = layer(x)
    assert layer.active == max(0, math.ceil(w))
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
    ("w", "built", "wanted"), [(1.0, 1, 1), (1.01, 1, 2), (1.9, 2, 2), (0.9, 2, 2), (0.7, 2, 1), (-3, 1, 1)]
)
def test_blocks_are_wanted_with_hysteresis(w: float, built: int, wanted: int) -> None:
    assert deep(w, built).wanted() == wanted


def test_the_function_is_continuous_where_a_block_opens() -> None:
    layer, x = deep(2.0, 3), torch.randn(7, 5, dtype=torch.float64)
    before = layer(x)
    layer.w.data += 1e-9
    assert layer.active == 3
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-6)


def test_a_depth_that_is_no_number_is_refused() -> None:
    with pytest.raises(ShapeError, match="w=nan; give a finite number"):
        LearnedDepth(lambda i: nn.Linear(2, 2), w=math.nan)
