"""The contract of the resize engine, for every kind of layer and for whole architectures of the
field.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import support_matrix
from architectures import ARCHITECTURES, grows_by_a_quarter_and_shrinks_back
from morphogen import (
    Grow,
    NotExact,
    PlanError,
    Shrink,
    Split,
    Width,
    apply_,
    plan,
    resize,
    trace,
    widths,
)
from supported import CASES


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A case's network in evaluation mode and float64, with nothing at its initial special
    values.
    """
    torch.manual_seed(0)
    case = CASES[name]
    model = case.build().double().eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 0.9)
    return model, torch.randn(case.shape, dtype=torch.float64)


def free(model: nn.Module, x: Tensor) -> dict[str, Width]:
    return {w.name: w for w in widths(trace(model, x)).values() if not w.fixed}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", CASES)
def test_widths_are_those_known_by_hand(name: str) -> None:
    assert {w.name: (w.size, w.step) for w in free(*build(name)).values()} == CASES[name].free


@pytest.mark.parametrize("name", CASES)
def test_growth_keeps_the_function_or_says_why_not(name: str) -> None:
    model, x = build(name)
    for width in free(model, x).values():
        assert bool(width.not_preserved) == (width.name in CASES[name].not_preserved)
        before = tensors(model)
        applied = resize(model, [Grow(width.name, 2)], example=x)
        assert applied.receipt.change is not None
        assert (
            applied.receipt.keeps == (applied.receipt.change <= 1e-9) == (not width.not_preserved)
        )
        applied.undo()
        assert same(before, tensors(model))


@pytest.mark.parametrize("name", CASES)
def test_twins_keep_the_function_or_are_refused(name: str) -> None:
    model, x = build(name)
    for width in free(model, x).values():
        before, expected = tensors(model), model(x)
        try:
            applied = resize(model, [Split(width.name, [0, 1, 1])], example=x)
        except PlanError as error:
            assert "twins would change the function here" in str(error)  # noqa: PT017
            assert width.not_preserved or any(slot.role == "in and more" for slot in width.slots)
            continue
        assert applied.receipt.keeps
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)
        applied.undo()
        assert same(before, tensors(model))


@pytest.mark.parametrize("name", CASES)
def test_what_was_grown_trains_and_shrinks_back_to_the_same(name: str) -> None:
    model, x = build(name)
    before, expected = tensors(model), model(x)
    edits = [Grow(width.name, 2) for width in free(model, x).values()]
    back = [
        Shrink(width.name, range(width.size, width.size + 2)) for width in free(model, x).values()
    ]
    resize(model, edits, example=x)
    optimizer = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    resize(model, back, example=x)
    assert same(before, tensors(model))
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_grow_by_a_quarter_and_shrink_back(name: str) -> None:
    torch.manual_seed(0)
    make, example = ARCHITECTURES[name]
    model, x = make().eval(), example()
    found = grows_by_a_quarter_and_shrinks_back(model, x)
    # every tensor that could have a width is in one, free or fixed; tables of positions are looked
    # up by index only
    covered = {slot.tensor for w in found.values() for slot in w.slots}
    assert {name for name, _ in model.named_parameters()} <= covered | {"cls"}


def test_queries_and_keys_do_not_touch_values() -> None:
    model, x = build("head views")
    text = str(plan(model, widths(trace(model, x)), [Grow("q", 1)]))
    assert text == "q 4 -> 5: q.weight[0] q.bias[0] k.weight[0] k.bias[0]"


def test_a_promise_that_does_not_hold_is_taken_back() -> None:
    class Felt(nn.Module):
        """Hides from the trace that it feels its width: the graph sees another path than the one
        that runs.
        """

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            if not torch.compiler.is_exporting():
                h = h / h.norm(dim=1, keepdim=True)
            return self.b(h)

    model, x = Felt(), torch.randn(3, 3)
    before = tensors(model)
    with pytest.raises(NotExact, match="this plan should keep the function: outputs differ by"):
        resize(model, [Grow("a", 2)], example=x)
    assert same(before, tensors(model))


def test_the_support_matrix_is_current() -> None:
    page = Path(__file__).parents[1] / "docs" / "support.md"
    assert page.read_text(encoding="utf-8") == support_matrix.page(), (
        "run: python tests/support_matrix.py > docs/support.md"
    )


def test_sizes_written_into_the_forward_pass_are_found_before_anything_changes() -> None:
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
            self.runs: list[str] = []

        def forward(self, x: Tensor) -> Tensor:
            self.runs.append(x.device.type)
            return self.b(self.a(x).view(-1, 2, 4).flatten(1))

    model, x = Literal(), torch.randn(3, 3)
    found = widths(trace(model, x))
    model.runs.clear()
    with pytest.raises(PlanError, match="the resized model would not run .* nothing was changed"):
        apply_(model, plan(model, found, [Grow("a", 1)]), example=x)
    assert model.runs == []  # only shapes were tried, on a copy


def test_the_proof_draws_no_random_numbers() -> None:
    first, second = (build("conv2d")[0] for _ in range(2))
    x = build("conv2d")[1]
    for model, example in ((first, x), (second, None)):
        change = plan(model, widths(trace(model, x)), [Grow("0", 2)])
        apply_(model, change, example=example, generator=torch.Generator().manual_seed(4))
    assert same(tensors(first), tensors(second))
