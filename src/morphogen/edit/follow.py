"""Sizes that a model keeps as numbers of its own: `follow(model, "head_dim")`.

Code such as `x.view(b, n, self.heads, self.head_dim)` reads a size from an attribute that no tensor
shows. A resize refuses to guess which width it belongs to; once it is declared, the attribute
follows that width.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from morphogen.errors import PlanError

_DECLARED = "_morphogen_follows"


def follow(model: nn.Module, *names: str) -> None:
    """Declare that the whole-number attributes called `names`, in `model` and all its modules, are
    sizes of widths.

    Whenever a resize changes a size in a module, or in the modules inside it, from the attribute's
    value to another, the attribute takes the new one. Raises `PlanError`, and declares none, where
    no module has such an attribute, or one has it as a property that cannot be set.
    """
    declared = []
    for name in names:
        holders = [module for module in model.modules() if _is_size(getattr(module, name, None))]
        if not holders:
            raise PlanError(
                f"follow: no module of {type(model).__name__} has a whole number called '{name}'"
            )
        for module in holders:
            if not _can_be_set(module, name):
                raise PlanError(
                    f"follow: '{name}' of {type(module).__name__} cannot be set; declare what it "
                    "is computed from, or give it a setter (where other modules have it as an "
                    "attribute, call follow on those)"
                )
        declared += [(module, name) for module in holders]
    for module, name in declared:
        setattr(module, _DECLARED, tuple(dict.fromkeys((*getattr(module, _DECLARED, ()), name))))


def followed(model: nn.Module) -> Iterator[tuple[str, str, int]]:
    """(module, attribute, value) of all that was declared."""
    for name, module in model.named_modules():
        for attribute in getattr(module, _DECLARED, ()):
            yield name, attribute, getattr(module, attribute)


def moved(
    model: nn.Module, changes: Mapping[str, Iterable[tuple[int, int]]]
) -> tuple[tuple[str, str, int], ...]:
    """(module, attribute, new value) of the declared attributes whose size changes.

    changes: for each tensor, its sizes (before, after) that a plan changes. Raises `PlanError`
    where two changes of one size disagree within the module.
    """
    result = []
    for name, attribute, value in followed(model):
        after = {
            new
            for tensor, sizes in changes.items()
            if _inside(tensor, name)
            for old, new in sizes
            if old == value
        }
        if len(after) > 1:
            raise PlanError(
                f"'{_dotted(name, attribute)}' is {value}, as are sizes that become "
                f"{sorted(after)}; change them one at a time"
            )
        result += [(name, attribute, new) for new in after if new != value]
    return tuple(result)


def undeclared(model: nn.Module, changes: Mapping[str, Iterable[tuple[int, int]]]) -> str:
    """A hint for a plan that does not run: the attributes that hold a size which it changes."""
    known = {(name, attribute) for name, attribute, _ in followed(model)}
    hints: dict[str, str] = {}
    for name, module in model.named_modules():
        old = {
            old for tensor, sizes in changes.items() if _inside(tensor, name) for old, _ in sizes
        }
        for attribute, value in vars(module).items():
            own = type(module).__module__.startswith("torch.nn")
            if (
                _is_size(value)
                and value > 1
                and value in old
                and not own
                and (name, attribute) not in known
            ):
                hints.setdefault(attribute, f"{_dotted(name, attribute)} = {value}")
    if not hints:
        return ""
    names = ", ".join(repr(attribute) for attribute in hints)
    return (
        f" These attributes hold a size that changes: {', '.join(hints.values())}; try "
        f"morphogen.follow(model, {names})."
    )


def _can_be_set(module: nn.Module, name: str) -> bool:
    """Whether the attribute takes a value: tried with its own."""
    own = name in vars(module)
    try:
        setattr(module, name, getattr(module, name))
    except (AttributeError, TypeError):
        return False
    if not own:
        vars(module).pop(name, None)  # a class's own value, which was hidden by the trial
    return True


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _inside(tensor: str, module: str) -> bool:
    return not module or tensor.startswith(f"{module}.")


def _dotted(module: str, attribute: str) -> str:
    return f"{module}.{attribute}" if module else attribute
