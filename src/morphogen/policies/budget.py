"""Clip growth to a budget of parameters."""

from collections.abc import Callable
from dataclasses import replace

from morphogen.edit.edit import AddBlock, AddStage, Edit, Grow, GrowNodes, Split
from morphogen.policies.policy import Proposal


def within(
    proposals: list[Proposal], budget: int | None, count: Callable[[list[Edit]], int]
) -> list[Proposal]:
    """The proposals that fit: a `Grow` or `Split` that does not is cut to the largest size that
    does, or left out.

    count: parameters of the model after some edits.
    """
    if budget is None:
        return proposals
    kept: list[Proposal] = []
    for proposal in sorted(proposals, key=lambda p: isinstance(p.edit, _ADDS)):
        edits = [p.edit for p in kept]
        if not isinstance(proposal.edit, _ADDS) or count([*edits, proposal.edit]) <= budget:
            kept.append(proposal)
        elif isinstance(proposal.edit, (Grow, Split)):
            fits = _largest(proposal.edit, budget, lambda e, before=edits: count([*before, e]))  # type: ignore[misc]
            if fits:
                reason = f"{proposal.reason} (cut to the budget)"
                kept.append(replace(proposal, edit=_cut(proposal.edit, fits), reason=reason))
    return kept


_ADDS = (Grow, Split, AddBlock, GrowNodes, AddStage)


def _cut(edit: Grow | Split, units: int) -> Edit:
    return Grow(edit.width, units) if isinstance(edit, Grow) else Split(edit.width, edit.of[:units])


def _largest(edit: Grow | Split, budget: int, count: Callable[[Edit], int]) -> int:
    low = 0
    high = (edit.units if isinstance(edit, Grow) else len(edit.of)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(_cut(edit, middle)) <= budget else (low, middle - 1)
    return low
