"""What the graph says about widths, against networks whose answer is known."""

import pytest
import torch
from torch import nn

from morphogen import Grow, PlanError, Unsupported, resize, trace, widths
from morphogen.tracing.widths import Span, find
from problems import PROBLEMS, Embedded, Residual, problem


@pytest.mark.parametrize("name", PROBLEMS)
def test_free_widths_are_those_known_by_hand(name: str) -> None:
    model, x = problem(name)
    found = widths(trace(model, x))
    assert {w.name: w.size for w in found.values() if not w.fixed} == PROBLEMS[name][2]
    assert all(w.fixed for w in found.values() if w.name not in PROBLEMS[name][2])


def test_spans_say_where_each_unit_is() -> None:
    found = widths(trace(Residual(), torch.randn(2, 2, 4, 4)))
    slots = {str(s): s for w in found.values() for s in w.slots}
    assert slots["third.weight[1]"].spans == (Span("first", 1), Span("side", 1), Span("first", 1))
    assert slots["hidden.weight[1]"].spans == (Span("third", 4),)
    assert find(found, "second").name == "first"  # a residual add ties both


def test_input_and_output_are_pinned_with_the_reason() -> None:
    found = widths(
        trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 4))
    )
    assert found["2"].fixed == "the model's output"
    assert found["read by 0.weight"].fixed == "the model's input"


def test_layer_norm_embedding_and_slopes() -> None:
    found = widths(trace(Embedded(), torch.randint(11, (3, 4))))
    assert {w.name: w.size for w in found.values() if not w.fixed} == {"table": 8, "hidden": 6}


def test_a_fixed_size_pins_what_is_added_to_it() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(self.a(x) + torch.arange(6.0))

    assert "fixed size" in widths(trace(Shifted(), torch.randn(2, 4)))["a"].fixed


def test_an_unknown_operation_is_refused_by_node_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return torch.cumprod(self.a(x), 1)

    with pytest.raises(Unsupported, match=r"'aten.cumprod.default' at node 'cumprod'"):
        widths(trace(Odd(), torch.randn(2, 4)))


def test_a_forward_pass_that_cannot_be_followed_is_refused() -> None:
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(Unsupported, match=r"torch\.export cannot follow Branch\.forward"):
        trace(Branch(), torch.randn(2, 4))


def test_an_unknown_width_lists_the_known_ones() -> None:
    model, x = problem("chain")
    with pytest.raises(PlanError, match=r"no width 'fc9'; this model's free widths are: 0, 2"):
        find(widths(trace(model, x)), "fc9")


def test_tracing_leaves_the_mode_alone() -> None:
    model, x = problem("chain")
    model.train()
    model[3].eval()
    trace(model, x)
    assert model.training
    assert not model[3].training


@pytest.mark.parametrize(
    "parametrization",
    [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.orthogonal],
)
def test_weights_that_are_computed_as_a_whole_are_refused_by_node(parametrization) -> None:
    model = nn.Sequential(parametrization(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(
        Unsupported, match=r"'aten\.\w+\.?\w*' at node '\w+': no rule says how it treats widths"
    ):
        widths(trace(model, torch.randn(3, 4)))


class Shown(nn.Module):
    def __init__(self, inner) -> None:
        super().__init__()
        self.a, self.b, self.inner = nn.Linear(4, 6), nn.Linear(6, 2), inner

    def forward(self, x):
        return self.b(self.inner(self.a(x)))


def test_a_roll_across_everything_fixes_and_a_norm_by_hand_is_not_preserved() -> None:
    x = torch.randn(3, 4)
    assert find(widths(trace(Shown(lambda h: h.roll(1)), x)), "a").fixed

    def by_hand(h):
        return (h - h.mean(-1, keepdim=True)) / (
            h.var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()

    found = find(widths(trace(Shown(by_hand), x)), "a")
    assert not found.fixed
    assert found.not_preserved


def test_a_computed_weight_is_felt() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.down, self.up = (
                nn.Linear(4, 6),
                nn.Parameter(torch.randn(2, 6)),
                nn.Parameter(torch.randn(3, 2)),
            )

        def forward(self, x):
            return nn.functional.linear(self.a(x).relu(), self.up @ self.down)

    assert find(widths(trace(Computed(), torch.randn(3, 4))), "a").not_preserved


def test_one_channel_is_flattened_as_several_are() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    conv = find(widths(trace(model, torch.randn(2, 1, 6, 6))), "0")
    assert [str(slot) for slot in conv.slots] == ["0.weight[0]", "0.bias[0]", "3.weight[1]"]
    assert conv.slots[-1].spans == (Span(conv.name, 16),)
    resize(model, [Grow(conv.name, 2)], example=torch.randn(2, 1, 6, 6))
    assert model[3].in_features == 48
