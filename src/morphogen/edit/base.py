"""The model that everything started from: what a checkpoint asks of the model that it is loaded
into.

The sizes that tensors had before their first edit are noted in the modules that hold them, so that
a copy, a part, or a loaded model has them too.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.edit.blocks import Stack, stacks
from morphogen.layers.protocol import is_wired

_NOTE = "_morphogen_base"
_COUNTS = ""  # the entry of a stack's note that is no tensor's


def note_sizes(model: nn.Module, tensors: Iterable[Tensor], edited: bool = True) -> None:
    """Note what `tensors` of the model were, before they change for the first time.

    edited: whether an edit changes them. A rewrite, such as `link`, makes another base model, whose
    sizes are those after it; of a tensor that was edited before, they are not known any more.
    """
    changing = {id(tensor) for tensor in tensors}
    for module in model.modules():
        for name, tensor in _own(module):
            if id(tensor) in changing:
                noted = (
                    vars(module).setdefault(_NOTE, {}) if edited else vars(module).get(_NOTE, {})
                )
                if edited:
                    noted.setdefault(name, list(tensor.shape))
                elif name in noted:
                    noted[name] = None


def note_blocks(model: nn.Module, changes: Iterable[tuple[str, int]]) -> None:
    """Note how many blocks each stack had before its first changed, and how many of those were
    never gone.

    changes: (stack, +1 or -1), about to be made in that order.
    """
    known = stacks(model)
    now = {name: len(stack) for name, stack in known.items()}
    for name, delta in changes:
        noted = vars(known[name]).setdefault(_NOTE, {})
        count, kept = noted.get(_COUNTS, (now[name], now[name]))
        now[name] += delta
        noted[_COUNTS] = (count, min(kept, now[name]))


def base_of(model: nn.Module) -> dict[str, Any]:
    """{"tensors": {name: sizes before the first edit, None where unknown}, "blocks": {stack:
    count}}, and the notes they are known from.
    """
    notes = {
        name: noted for name, module in model.named_modules() if (noted := vars(module).get(_NOTE))
    }
    new = tuple(
        f"{name}.{key}.".removeprefix(".")
        for name, stack in _lists(model)
        for key in list(stack._modules)[notes.get(name, {}).get(_COUNTS, (0, len(stack)))[1] :]
    )
    tensors = {
        f"{name}.{key}".removeprefix("."): notes.get(name, {}).get(key, list(tensor.shape))
        for name, module in model.named_modules(remove_duplicate=False)
        for key, tensor in _own(module)
        if not _drawn(module, key)
    }
    tensors = (
        {name: sizes for name, sizes in tensors.items() if not name.startswith(new)}
        if new
        else tensors
    )
    counts = {
        name: notes.get(name, {}).get(_COUNTS, (len(stack),))[0] for name, stack in _lists(model)
    }
    return {"tensors": tensors, "blocks": counts, "notes": notes}


def set_base(model: nn.Module, notes: Mapping[str, Any]) -> None:
    """Take the notes over that `base_of` gave of a model of the same modules."""
    for name, module in model.named_modules():
        vars(module).pop(_NOTE, None)
        if name in notes:
            setattr(
                module,
                _NOTE,
                {key: tuple(v) if key == _COUNTS else v for key, v in notes[name].items()},
            )


def made_of(model: nn.Module) -> dict[str, Any]:
    """What shapes do not say: {"modules": {name: [kind, {setting: value}]}, "tied": groups of names
    of one tensor}.

    Settings are the public attributes that are plain values or functions, such as a slope, a
    stride, an activation, and what `extra_repr` prints. Two that differ are two functions of the
    same weights.
    """
    modules = {
        name: [type(module).__name__, _settings(module)] for name, module in model.named_modules()
    }
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {
        "modules": modules,
        "tied": sorted(sorted(some) for some in names.values() if len(some) > 1),
    }


def trained_by(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, int]:
    """The number of the group that holds each parameter, by its name."""
    return {
        names[id(p)]: number
        for number, group in enumerate(optimizer.param_groups)
        for p in group["params"]
        if id(p) in names
    }


def other_base(saved: Mapping[str, Any], built: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two results of `base_of`, of tensors and stacks that are in both."""
    for name, sizes in saved["tensors"].items():
        now = built["tensors"].get(name)
        if sizes is not None and now is not None and list(sizes) != list(now):
            yield f"'{name}' began as {list(sizes)}, build() makes it {list(now)}"
    for name, count in saved["blocks"].items():
        if name in built["blocks"] and built["blocks"][name] != count:
            yield f"'{name}' began with {count} blocks, build() makes {built['blocks'][name]}"


def other_modules(
    saved: Mapping[str, Any], built: Mapping[str, Any], ignore: Iterable[str]
) -> Iterator[str]:
    """What differs between two results of `made_of`; settings that only one has, as of another
    version, aside.
    """
    passed = set(ignore)
    for name in dict.fromkeys([*saved["modules"], *built["modules"]]):
        kind, settings = saved["modules"].get(name, ("absent", {}))
        other, now = built["modules"].get(name, ("absent", {}))
        if kind != other:
            yield f"'{name}' is {kind}, build() makes {other}"
            continue
        different = [
            key
            for key in settings
            if key in now and settings[key] != now[key] and key not in passed
        ]
        # what is printed tells no more than an attribute does that differs
        for key in [key for key in different if key != _PRINTED] or different:
            yield f"'{name}' ({kind}) has {key}={settings[key]}, build() makes it {now[key]}"
    if saved["tied"] != built["tied"]:
        yield f"tied weights are {saved['tied'] or 'none'}, build() ties {built['tied'] or 'none'}"


def other_groups(
    saved: Mapping[str, int], built: Mapping[str, int], base: Iterable[str]
) -> Iterator[str]:
    """What differs between two results of `trained_by`. A parameter that was let go is in the built
    one alone.

    base: the names of the built model's parameters.
    """
    for name in base:
        if name in saved and saved[name] != built.get(name):
            where = f"in group {built[name]}" if name in built else "in no group"
            yield f"the optimizer holds '{name}' in group {saved[name]}, build() puts it {where}"


_PRINTED = "extra_repr"


def _settings(module: nn.Module) -> dict[str, str]:
    settings = {
        key: _short(text)
        for key, value in vars(module).items()
        if not key.startswith("_")
        and key not in ("training", "device")
        and (text := _plain(value)) is not None
    }
    printed = module.extra_repr()
    if printed and " at 0x" not in printed and "device=" not in printed:
        settings[_PRINTED] = _short(printed)
    return settings


def _plain(value: Any) -> str | None:
    """A value as text that is the same in every process; None for what has none, such as
    objects.
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype)):
        return repr(value)
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, partial):
        return f"partial({_plain(value.func)}, {_plain(value.args)}, {_plain(value.keywords)})"
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{_plain(key)}: {_plain(item)}" for key, item in value.items()) + "}"
        )
    if isinstance(value, (list, tuple)):
        return f"({', '.join(str(_plain(item)) for item in value)})"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(str(_plain(item)) for item in value))}}}"
    if not isinstance(value, (nn.Module, Tensor)) and callable(value):
        return getattr(value, "__qualname__", None)
    return None


def _short(text: str) -> str:
    return (
        text
        if len(text) <= 200
        else f"{text[:60]}... ({hashlib.sha256(text.encode()).hexdigest()[:16]})"
    )


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and persistent buffers."""
    yield from ((name, p) for name, p in module._parameters.items() if p is not None)
    hidden = module._non_persistent_buffers_set
    yield from (
        (name, b) for name, b in module._buffers.items() if b is not None and name not in hidden
    )


def _drawn(module: nn.Module, name: str) -> bool:
    """Whether a tensor's size is drawn when the module is built: the weights of a random wiring,
    linked.
    """
    return is_wired(module) and name in module.drawn_tensors


def _lists(model: nn.Module) -> Iterator[tuple[str, Stack]]:
    """The stacks that blocks join and leave, by their own names."""
    known = {id(stack) for stack in stacks(model).values()}
    for name, module in model.named_modules():
        if id(module) in known and isinstance(module, Stack):
            yield name, module
