"""One judge of equality: what differs by rounding is one function, what differs by more is not."""

import math

import pytest
import torch
from torch import Tensor

from morphogen import NotExact
from morphogen.certify import RELATIVE, certify, difference, require_equal
from morphogen.threads import threads


def shifted(amount: float) -> tuple[Tensor, Tensor]:
    outputs = torch.tensor([[1.0, -4.0], [2.0, 0.0]], dtype=torch.float64)
    return outputs, outputs + amount


@pytest.mark.parametrize("dtype", RELATIVE)
def test_the_bound_is_a_share_of_the_largest_output(dtype: torch.dtype) -> None:
    outputs = torch.tensor([100.0, 1.0], dtype=dtype)
    share = RELATIVE[dtype]
    require_equal("x", outputs, (outputs.double() * (1 + 0.5 * share)).to(dtype))
    with pytest.raises(NotExact, match="x: outputs differ by .* where rounding allows .*; do it"):
        require_equal("x", outputs, (outputs.double() * (1 + 3 * share)).to(dtype), hint="do it")


def test_outputs_that_cancel_are_judged_as_if_they_were_of_size_one() -> None:
    small = torch.tensor([1e-6], dtype=torch.float64)
    assert require_equal("x", small, small + 1e-10) == pytest.approx(1e-10)
    with pytest.raises(NotExact):
        require_equal("x", small, small + 1e-10, floor=0.0)


def test_a_caller_may_have_measured_what_rounding_does() -> None:
    before, after = shifted(0.5)
    assert require_equal("x", before, after, allowed=0.6) == 0.5
    assert require_equal("x", before, after, allowed=math.inf) == 0.5
    with pytest.raises(NotExact, match="allows 0.4"):
        require_equal("x", before, after, allowed=0.4)


def test_what_is_no_number_or_has_another_shape_is_not_equal() -> None:
    infinite = torch.tensor([math.inf, 1.0])
    broken = torch.tensor([math.nan, 1.0])
    assert difference(infinite, infinite.clone()) == 0.0
    assert math.isnan(difference((infinite, broken), (infinite, broken)))
    assert difference(infinite, torch.ones(3)) == math.inf
    assert difference(torch.tensor([3]), torch.tensor([5])) == 2.0
    assert difference(torch.ones(0), torch.ones(0)) == 0.0
    for other in (broken, torch.ones(3), -infinite):
        with pytest.raises(NotExact):
            require_equal("x", infinite, other)
    with pytest.raises(NotExact):
        require_equal("x", torch.tensor([3]), torch.tensor([4]))


def test_both_run_on_the_same_points_in_parts() -> None:
    seen: list[int] = []

    def double(x: Tensor) -> Tensor:
        seen.append(len(x))
        return 2 * x

    points = torch.arange(7.0)
    certificate = certify("x", double, lambda x: x + x, points, reason="algebra", at_once=3)
    assert seen == [3, 3, 1]
    assert (certificate.kind, certificate.max_error, certificate.proved) == ("exact", 0.0, True)
    measured = certify("x", double, double, points, reason="seen", kind="measured")
    assert not measured.proved


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    inside = threads(before + 1)(torch.get_num_threads)
    assert (inside(), inside()) == (before + 1, before + 1)
    with threads(None):
        assert torch.get_num_threads() == before
    with pytest.raises(KeyError), threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before
