"""A network's structure as a value: what modules there are and how large, and how it came to be. No
weights.

    structure(model, ledger)    # a dictionary, ready for JSON
    print(diff(before, after))  # what changed between two models, structures, structure.json files
    or checkpoints

Schema 2:
    schema   3
    modules  {name: {"kind": class name, "tensors": {tensor name: [sizes]}}}, modules that hold
    tensors, in order
    ledger   the edits that led here from the first network, as `ledger_to_json` writes them
Other keys may stand beside these; readers ignore them.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from morphogen.edit.edit import Edit, edit_from_dict, edit_to_dict
from morphogen.errors import RunError
from morphogen.formats.checkpoint import load_tensors
from morphogen.record import revive

SCHEMA = 3

Structure = dict[str, Any]


def structure(model: nn.Module, ledger: Iterable[Edit] = ()) -> Structure:
    """The structure of a live model; see the schema above."""
    modules = {}
    for name, module in model.named_modules():
        own = {
            **dict(module.named_parameters(recurse=False)),
            **dict(module.named_buffers(recurse=False)),
        }
        if own:
            modules[name] = {
                "kind": type(module).__name__,
                "tensors": {key: list(t.shape) for key, t in own.items()},
            }
    return {"schema": SCHEMA, "modules": modules, "ledger": [edit_to_dict(edit) for edit in ledger]}


def read_structure(path: str | Path) -> Structure:
    """The structure in a structure.json, or in a checkpoint that `save` wrote.

    Raises `RunError` where the file is missing, is something else, or has another schema.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        _, value = load_tensors(path)
        value = value.get("structure") if isinstance(value, dict) else None
    else:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(
                f"no structure at {path}; give a structure.json, or a checkpoint (.safetensors)"
            ) from error
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is no structure.json ({error})") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        schema = value.get("schema") if isinstance(value, dict) else None
        raise RunError(f"{path} has structure schema {schema}; this morphogen reads {SCHEMA}")
    try:
        return checked_structure(value)
    except ValueError as error:
        raise RunError(f"{path} is no structure ({error}); was it changed by hand?") from error


@dataclass(frozen=True)
class _Module:
    kind: str
    tensors: dict[str, list[int]]


@dataclass(frozen=True)
class _Structure:
    """What must be in one, see the schema above."""

    schema: int
    modules: dict[str, _Module]
    ledger: list[dict[str, Any]]


def checked_structure(value: Structure) -> Structure:
    """`value` itself, where it is a structure. Raises `ValueError` that says what it lacks."""
    revive(_Structure, value)
    for edit in value["ledger"]:
        edit_from_dict(edit)
    return value


def diff(
    before: nn.Module | Structure | str | Path, after: nn.Module | Structure | str | Path
) -> str:
    """What changed, a line a module: "~ fc1 Linear weight [8, 4] -> [12, 4]"; "+" and "-" for what
    came or left.
    """
    return "\n".join(_lines(_modules(before), _modules(after)))


def _lines(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*before, *after]):
        old = before.get(name)
        new = after.get(name)
        if old == new:
            continue
        if old and new and old["kind"] == new["kind"]:
            yield f"~ {_named(name)} {old['kind']} {_changes(old['tensors'], new['tensors'])}"
            continue
        yield from (
            f"{sign} {_named(name)} {module['kind']} {_sizes(module['tensors'])}"
            for sign, module in (("-", old), ("+", new))
            if module
        )


def _modules(of: nn.Module | Structure | str | Path) -> dict[str, Any]:
    if isinstance(of, nn.Module):
        of = structure(of)
    elif not isinstance(of, dict):
        of = read_structure(of)
    return of["modules"]  # type: ignore[no-any-return]


def _named(name: str) -> str:
    return name or "(model)"


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = (name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name))
    return ", ".join(f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}" for name in names)


def _sizes(tensors: dict[str, Any]) -> str:
    return ", ".join(f"{name} {sizes}" for name, sizes in tensors.items())
