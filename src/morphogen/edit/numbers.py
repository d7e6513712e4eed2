"""Blocks that know their place: `layer_idx` in a decoder's layers, `num_hidden_layers` in its
configuration.

A copy with its pattern's number would share what is kept by number, such as the entries of a
key-value cache.
"""

import copy
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from morphogen.edit.watch import UndoStack
from morphogen.errors import PlanError

_NUMBERS = re.compile(r"(^|_)(idx|index|id|number)$")
# what one block shows alone: no pad_token_id
_ALONE = re.compile(r"(layer|block)_?(idx|index|id|number)$|^(idx|index)$")
_COUNTS = re.compile(
    r"^(num|n)_?(hidden|encoder|decoder)?_?(layers?|blocks?)$|^(encoder|decoder)_layers$"
)
_LISTS = re.compile(r"(^|_)(layers?|blocks?)(_|$)")


def number(block: nn.Module, older: Sequence[nn.Module], model: nn.Module, stack: str) -> nn.Module:
    """`block` itself, its attributes that number the blocks of a stack set to what comes after
    `older`.

    A whole number that is its block's position in all of them numbers them, and, where it is called
    so (`layer_idx`, `block_id`), one that rises by 1 from any start. Raises `PlanError` where an
    attribute called so does neither although it differs, or the next number is taken elsewhere in
    `model`.
    """
    others = [
        module
        for module in model.modules()
        if all(module is not part for one in older for part in one.modules())
    ]
    for path, part in block.named_modules():
        for attribute, value in [*vars(part).items()]:
            if not _whole(value):
                continue
            values = [(place, _value(one, path, attribute)) for place, one in enumerate(older)]
            known = [(place, held) for place, held in values if _whole(held)]
            starts = {held - place for place, held in known}
            called = (_NUMBERS if len(known) > 1 else _ALONE).search(attribute)
            shown = (
                len(known) > 1
                and starts == {0}
                and not type(part).__module__.startswith("torch.nn.modules.")
            )
            if len(starts) == 1 and (called or shown):
                following = starts.pop() + len(older)
                _refuse_taken(
                    part, attribute, following, {held for _, held in known}, others, stack
                )
                setattr(part, attribute, following)
            elif called and len({held for _, held in known}) > 1:
                raise PlanError(
                    f"the blocks of '{stack}' have '{attribute}' {[held for _, held in known]}, "
                    "which gives no next number for the new one; number them one after the other"
                )
    return block


def recount(model: nn.Module, stack: str, count: int, delta: int, undo_stack: UndoStack) -> None:
    """What holds a stack of `count` blocks says how many there are, itself or in a configuration
    (`num_hidden_layers`, `layer_types`): that goes along; what takes it back is appended to
    `undo_stack`.

    Left alone where it may be about another stack of the same length.
    """
    if not stack:
        return
    holder = model.get_submodule(stack.rpartition(".")[0])
    lengths = [
        len(child)
        for child in holder.children()
        if isinstance(child, nn.Sequential | nn.ModuleList)
    ]
    if lengths.count(count) > 1:
        return
    configs = [
        value
        for name, value in vars(holder).items()
        if name in ("config", "cfg") and hasattr(value, "__dict__")
    ]
    for owner in (holder, *configs):
        for attribute, value in [*vars(owner).items()]:
            if _whole(value) and value == count and _COUNTS.search(attribute):
                _set(owner, attribute, count + delta, undo_stack)
            elif type(value) in (list, tuple) and len(value) == count and _LISTS.search(attribute):
                longer = [*value, copy.deepcopy(value[-1])] if delta > 0 else value[:delta]
                _set(owner, attribute, type(value)(longer), undo_stack)


def _set(owner: Any, attribute: str, value: Any, undo_stack: UndoStack) -> None:
    undo_stack.append(partial(setattr, owner, attribute, getattr(owner, attribute)))
    setattr(owner, attribute, value)


def _refuse_taken(
    part: nn.Module,
    attribute: str,
    value: int,
    ours: set[int],
    others: Sequence[nn.Module],
    stack: str,
) -> None:
    """One numbering through several stacks leaves no number free after this one; stacks that each
    begin anew do not mind.
    """
    theirs = {vars(other).get(attribute) for other in others if type(other) is type(part)}
    if value in theirs and not ours & theirs:
        raise PlanError(
            f"AddBlock('{stack}'): the new block's '{attribute}' would be {value}, which a block "
            "of another stack has; add the block to the last stack, or number each stack from 0"
        )


def _value(block: nn.Module, path: str, attribute: str) -> Any:
    parts = dict(block.named_modules())
    return vars(parts[path]).get(attribute) if path in parts else None


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
