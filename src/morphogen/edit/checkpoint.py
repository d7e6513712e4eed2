"""A run on disk: the shape of every tensor, the tensors, the optimizer's state and the ledger;
never a pickled module.

    save(model, "run/ckpt", optimizer=optimizer, ledger=ledger)
    model, optimizer = load("run/ckpt", build)      # build() makes the network that everything
    started from

Loading needs no tracing and none of the code that grew the network: every tensor of the base model
takes the shape that the file has, learned depths get their blocks, and the sizes that modules keep
beside their tensors are set.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.edit.apply import put
from morphogen.edit.base import (
    base_of,
    made_of,
    other_base,
    other_groups,
    other_modules,
    set_base,
    trained_by,
)
from morphogen.edit.blocks import attach, detach, new_block, stacks
from morphogen.edit.edit import Edit, edit_from_dict
from morphogen.edit.numbers import recount
from morphogen.edit.optim import whole
from morphogen.edit.sizes import attributes
from morphogen.edit.structure import checked_structure, structure
from morphogen.errors import RunError
from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.record import revive

_VERSION = 4
_MOST_BLOCKS = 10_000  # a number beyond it is a fault, and building them would take forever


def save(
    model: nn.Module,
    path: str | Path,
    *,
    optimizer: Optimizer | None = None,
    ledger: Iterable[Edit] = (),
) -> Path:
    """Write a checkpoint, atomically; returns the file's path (".safetensors" is added where `path`
    has no suffix).

    Tied weights are written once. Numbers of parameter groups that are tensors stay tensors. Raises
    `RunError` where the optimizer holds a parameter that is not the model's, see `doctor`, or a
    value that a file cannot hold.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    about: dict[str, Any] = {
        "version": _VERSION,
        "structure": structure(model, ledger),
        "blocks": {name: len(stack) for name, stack in stacks(model).items()},
        "attributes": attributes(model),
        "base": base_of(model),
        "made_of": made_of(model),
    }
    tensors = model_tensors(model)
    if optimizer is not None:
        _check_holds(optimizer, names)
        about["optimizer"] = type(optimizer).__name__
        about["groups"] = [
            _group_to_json(group, names, tensors) for group in optimizer.param_groups
        ]
        about["numbers"] = {
            names[id(p)]: {
                k: _to_json(v, tensors, f"state '{k}'")
                for k, v in state.items()
                if not isinstance(v, Tensor)
            }
            for p, state in optimizer.state.items()
        }
        tensors |= optimizer_tensors(model, optimizer)
    path = _file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, tensors, about)
    return path


def load(
    path: str | Path,
    build: Callable[[], nn.Module | tuple[nn.Module, Optimizer]],
    *,
    ignore: Iterable[str] = (),
) -> tuple[nn.Module, Optimizer | None]:
    """The model and optimizer of a checkpoint; the next step is bit-identical to that of the saved
    ones.

    build: makes the base model, or the pair (model, optimizer). The optimizer is None where none
    was saved. ignore: names of attributes of modules that may differ from the saved model's, such
    as a counter. Raises `RunError` where the file is missing or corrupt, or belongs to another base
    model or optimizer, with what differs: sizes before the first edit, kinds of modules and their
    settings, ties, the optimizer's class and what its groups hold. What a forward method does is
    not compared.
    """
    tensors, about = _read(path)
    built = build()
    model, optimizer = built if isinstance(built, tuple) else (built, None)
    if about.get("groups") is not None and optimizer is None:
        raise RunError(
            f"checkpoint {path} has an optimizer's state; let build() return (model, optimizer)"
        )
    base = base_of(model)
    names = {id(p): name for name, p in model.named_parameters()}
    held = {} if optimizer is None else trained_by(optimizer, names)
    _build_blocks(model, about["blocks"], path)
    _fill_model(model, tensors, path)
    modules = dict(model.named_modules())
    _known(path, "sizes of a module", about["attributes"], modules)
    kinds = {name: kind for name, (kind, _) in about["made_of"]["modules"].items()}
    for name, sizes in about["attributes"].items():
        if kinds.get(name) != type(modules[name]).__name__:
            continue  # another model, as is said below
        _known(path, f"for module {name!r} a size", sizes, _sizes_of(modules[name]))
        for attribute, value in sizes.items():
            setattr(modules[name], attribute, tuple(value) if isinstance(value, list) else value)
    differences = [
        *other_base(about["base"], base),
        *other_modules(about["made_of"], made_of(model), ignore),
    ]
    if about.get("groups") is not None and optimizer is not None:
        if about.get("optimizer") != type(optimizer).__name__:
            differences.append(
                f"the optimizer is {about.get('optimizer')}, build() makes "
                f"{type(optimizer).__name__}"
            )
        groups = {
            name: number for number, group in enumerate(about["groups"]) for name in group["params"]
        }
        differences += other_groups(groups, held, names.values())
    if differences:
        more = f"; and {len(differences) - _SAID} more" if len(differences) > _SAID else ""
        raise RunError(
            f"checkpoint {path} belongs to another base model: "
            f"{'; '.join(differences[:_SAID])}{more}. Let build() make the model that the saved "
            "run started from"
        )
    set_base(model, about["base"]["notes"])
    if about.get("groups") is None:
        return model, None
    assert optimizer is not None
    parameters = dict(model.named_parameters())
    _fill_groups(optimizer, parameters, about["groups"], tensors, path)
    fill_optimizer(model, optimizer, tensors)
    _known(path, "numbers of a parameter", about.get("numbers") or {}, parameters)
    for name, numbers in (about.get("numbers") or {}).items():
        home = parameters[name].device
        optimizer.state[parameters[name]].update(
            {key: _from_json(value, tensors, home) for key, value in numbers.items()}
        )
    return model, optimizer


_SAID = 5  # differences that a message names


def load_ledger(path: str | Path) -> tuple[Edit, ...]:
    """The edits that a checkpoint's network went through."""
    _, about = _read(path)
    return tuple(edit_from_dict(edit) for edit in about["structure"]["ledger"])


@dataclass(frozen=True)
class _Group:
    """Of a parameter group's settings only the parameters are everyone's."""

    params: list[str]
    values: dict[str, Any]


@dataclass(frozen=True)
class _Base:
    """What `base_of` gave."""

    tensors: dict[str, tuple[int, ...] | None]
    blocks: dict[str, int]
    notes: dict[str, dict[str, tuple[int, ...] | None]]


@dataclass(frozen=True)
class _Made:
    """What `made_of` gave: of each module its kind and its settings."""

    modules: dict[str, tuple[str, dict[str, Any]]]
    tied: list[Any]


@dataclass(frozen=True)
class _About:
    """What must be in the metadata, and of which types."""

    version: int
    structure: dict[str, Any]
    blocks: dict[str, int]
    attributes: dict[str, dict[str, int | tuple[int, ...]]]
    base: _Base
    made_of: _Made
    optimizer: str | None = None
    groups: list[_Group] | None = None
    numbers: dict[str, dict[str, Any]] | None = None


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a checkpoint, looked at."""
    tensors, about = load_tensors(_file(path))
    version = about.get("version") if isinstance(about, dict) else None
    if version != _VERSION:
        raise RunError(f"checkpoint {path} has version {version}; this morphogen reads {_VERSION}")
    try:
        revive(_About, about)
        checked_structure(about["structure"])
    except ValueError as error:
        raise RunError(
            f"checkpoint {path}: its metadata cannot be used ({error}); was it changed by hand?"
        ) from error
    return tensors, about


def _known(path: str | Path, what: str, names: Iterable[str], known: Container[str]) -> None:
    """Raises `RunError` for the first name that the model of `build()` does not have."""
    for name in names:
        if name not in known:
            raise RunError(
                f"checkpoint {path} has {what} {name!r}, which the model that build() makes does "
                "not have"
            )


def _sizes_of(module: nn.Module) -> set[str]:
    """What may be a size among a module's attributes: whole numbers and tuples; never a method or a
    submodule.
    """
    return {
        name
        for name in dir(module)
        if isinstance(getattr(module, name, None), (int, tuple, list, torch.Size))
    }


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, by "model.<name>"."""
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, by "optimizer.<parameter>.<key>"."""
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def fill_optimizer(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take the state from what `optimizer_tensors` gave."""
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        start = f"optimizer.{name}."
        found = {
            key.removeprefix(start): value.clone()
            for key, value in tensors.items()
            if key.startswith(start)
        }
        if found:
            on_device = any(
                group.get("capturable") or group.get("fused")
                for group in optimizer.param_groups
                if any(p is parameter for p in group["params"])
            )
            optimizer.state[parameter] = {
                k: v if k == "step" and not on_device else _laid_out_as(parameter, v)
                for k, v in found.items()
            }


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


def _check_holds(optimizer: Optimizer, names: Mapping[int, str]) -> None:
    every = [p for group in optimizer.param_groups for p in group["params"]]
    strangers = [tuple(p.shape) for p in every if id(p) not in names]
    if strangers:
        raise RunError(
            f"save: the optimizer holds parameters of shapes {strangers} that are not the model's; "
            "see morphogen.doctor"
        )
    beside = [
        key if not isinstance(key, Tensor) else tuple(key.shape)
        for key in optimizer.state
        if id(key) not in names
    ]
    if beside:
        raise RunError(
            f"save: the optimizer keeps state of {beside}, no parameter of the model; see "
            "morphogen.doctor"
        )
    if inner := [type(other).__name__ for other in whole([optimizer])[1:]]:
        raise RunError(
            f"save: {type(optimizer).__name__} wraps {', '.join(inner)}, whose state would be "
            "lost; save the model alone"
        )


def _group_to_json(
    group: dict[str, Any], names: Mapping[int, str], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    values = {
        k: _to_json(v, tensors, f"parameter group's '{k}'")
        for k, v in group.items()
        if k != "params"
    }
    return {"params": [names[id(p)] for p in group["params"]], "values": values}


def _to_json(value: Any, tensors: dict[str, Tensor], what: str) -> Any:
    """A value of an optimizer as JSON; `_from_json` gives it back, type for type. Its tensors join
    `tensors`.
    """
    if isinstance(value, Tensor):
        name = f"value.{len(tensors)}"
        tensors[name] = value
        return {"tensor": name, "device": value.device.type}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_to_json(item, tensors, what) for item in value]}
    if type(value) is dict:
        return {
            "dict": [[_to_json(part, tensors, what) for part in pair] for pair in value.items()]
        }
    raise RunError(
        f"save: the optimizer's {what} is a {type(value).__name__}, which a file cannot hold; save "
        "the model alone"
    )


def _from_json(value: Any, tensors: Mapping[str, Tensor], home: torch.device) -> Any:
    """home: where tensors go that were not on the CPU. Raises `RunError` for what `_to_json` does
    not write.
    """

    def inner(part: Any) -> Any:
        return _from_json(part, tensors, home)

    match value:
        case None | bool() | int() | float() | str():
            return value
        case {"tensor": str(name), "device": str(device)} if name in tensors:
            tensor = tensors[name].clone()
            return tensor if device == "cpu" else tensor.to(home)
        case {"dtype": str(name)} if isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        case {"dict": [*pairs]} if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            return {inner(key): inner(part) for key, part in pairs}
        case {"list": [*items]}:
            return [inner(item) for item in items]
        case {"tuple": [*items]}:
            return tuple(inner(item) for item in items)
    raise RunError(
        f"the checkpoint has {value!r} as a value of the optimizer, which cannot be; was it "
        "changed by hand?"
    )


def _fill_groups(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    groups: list[dict[str, Any]],
    tensors: Mapping[str, Tensor],
    path: str | Path,
) -> None:
    if len(groups) != len(optimizer.param_groups):
        raise RunError(
            f"checkpoint {path} has {len(groups)} parameter groups, build() made "
            f"{len(optimizer.param_groups)}; build the optimizer as it was built for the saved run"
        )
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        _known(path, "in a group a parameter", saved["params"], parameters)
        group["params"][:] = [parameters[name] for name in saved["params"]]
        home = next((p.device for p in group["params"]), torch.device("cpu"))
        for key, value in saved["values"].items():
            old = group.get(key)
            new = _from_json(value, tensors, home)
            if isinstance(old, (int, float)) and not isinstance(new, (int, float, Tensor)):
                raise RunError(
                    f"checkpoint {path} has {new!r} as the optimizer's {key!r}, which is a number"
                )
            if (
                isinstance(old, Tensor)
                and isinstance(new, Tensor)
                and (old.shape, old.dtype) == (new.shape, new.dtype)
            ):
                old.copy_(new)  # a scheduler may hold it
            else:
                group[key] = new


def _build_blocks(model: nn.Module, blocks: Mapping[str, int], path: str | Path) -> None:
    for name, count in blocks.items():
        stack = stacks(model).get(name)
        if stack is None:
            continue  # another model, as its tensors will show
        if not 0 <= count <= _MOST_BLOCKS:
            raise RunError(f"checkpoint {path} has {count} blocks in {name!r}, which cannot be")
        while len(stack) < count:
            block = new_block(model, name)
            recount(model, name, len(stack), 1, [])
            attach(stack, block)
        while len(stack) > count:
            recount(model, name, len(stack), -1, [])
            detach(stack)


def _fill_model(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    live = model_tensors(model)
    saved = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    for names, what in ((live.keys() - saved, "has no"), (saved.keys() - live, "has an unknown")):
        if names:
            raise RunError(
                f"checkpoint {path} {what} tensor '{min(names)[6:]}'; build() makes another model "
                "than was saved"
            )
    persistent = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    for name, tensor in saved.items():
        target = persistent[name.removeprefix("model.")]
        if tensor.dtype != target.dtype:
            raise RunError(
                f"checkpoint {path}: '{name[6:]}' is {tensor.dtype}, build() makes it "
                f"{target.dtype}"
            )
        put(target, tensor.to(target.device))


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` with the memory layout of its parameter, which the file does not keep."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
