"""Whether two networks are one function: `certify`, which every rewrite asks before it promises so.

Both run on the same points. What differs by more than rounding is refused; what does not is in the
certificate.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from morphogen.errors import NotExact
from morphogen.record import Certificate

Run = Callable[[Any], Any]
"""What gives outputs, a tensor or a tree of them, at some points."""

RELATIVE = {
    # rows count as combinations of others up to 1e-10 of their size
    torch.float64: 1e-9,
    # ten thousand units of rounding: sums in another order, through many layers
    torch.float32: 1e-3,
    # a hundred: ten thousand would allow everything
    torch.float16: 1e-1,
    torch.bfloat16: 5e-1,
}
"""By how much outputs may differ, as a share of the largest one, by their precision."""

REPORT = "please report this model"


@torch.no_grad()
def certify(
    promise: str,
    before: Run,
    after: Run,
    points: Any,
    *,
    reason: str,
    kind: Literal["exact", "bounds", "measured"] = "exact",
    box: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    steps: tuple[str, ...] = (),
    floor: float = 1.0,
    allowed: float | None = None,
    at_once: int | None = None,
    hint: str = REPORT,
) -> Certificate:
    """The certificate that `after` is `before`, with the largest difference at the points.

    promise: who gives it, for the error. kind, box, reason, steps: of the certificate; what is only
    "measured" is not proved. at_once: points are run in parts of so many rows; None is all of them.
    floor, allowed, hint: see `require_equal`, as for `NotExact`.
    """
    parts = [points] if at_once is None else points.split(at_once)
    outputs = []
    for run in (before, after):
        made = [run(part) for part in parts]
        outputs.append(made[0] if at_once is None else torch.cat(made))
    error = require_equal(promise, *outputs, floor=floor, allowed=allowed, hint=hint)
    return Certificate(kind, error, box, kind != "measured", reason, steps)


@torch.no_grad()
def require_equal(
    promise: str,
    before: Any,
    after: Any,
    *,
    floor: float = 1.0,
    allowed: float | None = None,
    hint: str = REPORT,
) -> float:
    """The largest difference of two trees of tensors.

    Raises `NotExact` where a tensor differs by more than `RELATIVE` of its largest entry, which
    counts as at least `floor`: what cancels has the rounding of what it is made of. allowed: the
    largest difference, for a caller who has measured what rounding does; infinite where none is
    promised. hint: what the error asks for.
    """
    largest = 0.0
    for a, b in zip(tree_leaves(before), tree_leaves(after), strict=True):
        error = _apart(a, b)
        bound = RELATIVE.get(a.dtype, 0.0) * _scale(a, floor) if allowed is None else allowed
        if not error <= bound:
            raise NotExact(
                f"{promise}: outputs differ by {error:.2g} where rounding allows {bound:.2g}; "
                f"{hint}"
            )
        largest = max(largest, error)
    return largest


@torch.no_grad()
def difference(before: Any, after: Any) -> float:
    """The largest difference of two trees of tensors: infinite where shapes differ, NaN where one
    is no number.
    """
    pairs = zip(tree_leaves(before), tree_leaves(after), strict=True)
    errors = [_apart(a, b) for a, b in pairs]
    return float(torch.tensor([0.0, *errors], dtype=torch.float64).max())


def _apart(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    if not a.is_floating_point():
        a = a.double()
    # equal infinities differ by 0; what is NaN differs by NaN, which no bound allows
    return float(torch.where(a == b, 0.0, (a - b).abs()).max())


def _scale(outputs: Tensor, floor: float) -> float:
    if not outputs.numel():
        return floor
    finite = outputs.nan_to_num(posinf=0.0, neginf=0.0)
    return max(floor, float(finite.abs().max()))
