"""Clip growth to a budget of parameters."""

from collections.abc import Callable
from dataclasses import replace

from morphogen.policies.look import Proposal
from morphogen.resize.edit import AddBlock, Edit, Grow


def within(proposals: list[Proposal], budget: int | None, count: Callable[[list[Edit]], int]) -> list[Proposal]:
    """The proposals that fit: a `Grow` that does not is cut to the largest size that does, or left out.

    count: parameters of the model after some edits.
    """
    if budget is None:
        return proposals
    kept: list[Proposal] = []
    for proposal in sorted(proposals, key=lambda p: isinstance(p.edit, (Grow, AddBlock))):
        edits = [p.edit for p in kept]
        if not isinstance(proposal.edit, (Grow, AddBlock)) or count([*edits, proposal.edit]) <= budget:
            kept.append(proposal)
        elif isinstance(proposal.edit, Grow):
            fits = _largest(proposal.edit, budget, lambda e, before=edits: count([*before, e]))  # type: ignore[misc]
            if fits:
                reason = f"{proposal.reason} (cut to the budget)"
                kept.append(replace(proposal, edit=Grow(proposal.edit.width, fits), reason=reason))
    return kept


def _largest(edit: Grow, budget: int, count: Callable[[Edit], int]) -> int:
    low, high = 0, edit.units - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(Grow(edit.width, middle)) <= budget else (low, middle - 1)
    return low
