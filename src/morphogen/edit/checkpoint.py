"""A run on disk: the shape of every tensor, the tensors, the optimizers' state and the ledger;
never a pickled module.

    save(model, "run/ckpt", optimizers=[optimizer], ledger=ledger)
    # build() makes the network that everything started from, and its optimizer
    model, [optimizer] = load("run/ckpt", build)

Loading needs no tracing and none of the code that grew the network: every tensor of the base model
takes the shape that the file has, learned depths get their blocks, and the sizes that modules keep
beside their tensors are set.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
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
from morphogen.layers.dag.module import Dag
from morphogen.record import revive

_VERSION = 5
_MOST_BLOCKS = 10_000  # a number beyond it is a fault, and building them would take forever


def save(
    model: nn.Module,
    path: str | Path,
    *,
    optimizers: Sequence[Optimizer] = (),
    ledger: Iterable[Edit] = (),
) -> Path:
    """Write a checkpoint, atomically; returns the file's path (".safetensors" is added where `path`
    has no suffix).

    Tied weights are written once; what is frozen will be frozen again. Numbers of parameter groups
    that are tensors stay tensors. Raises `RunError` where an optimizer holds a parameter that is
    not the model's, see `doctor`, or a value that a file cannot hold.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    tensors = model_tensors(model)
    for optimizer in optimizers:
        _check_holds(optimizer, names)
    about: dict[str, Any] = {
        "version": _VERSION,
        "structure": structure(model, ledger),
        "blocks": {name: len(stack) for name, stack in stacks(model).items()},
        "attributes": attributes(model),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "base": base_of(model),
        "made_of": made_of(model),
        "optimizers": [_optimizer_to_json(one, names, tensors) for one in optimizers],
    }
    tensors |= optimizer_tensors(model, optimizers)
    path = _file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, tensors, about)
    return path


def load(
    path: str | Path,
    build: Callable[[], nn.Module | tuple[nn.Module, *tuple[Optimizer, ...]]],
    *,
    ignore: Iterable[str] = (),
) -> tuple[nn.Module, tuple[Optimizer, ...]]:
    """The model of a checkpoint and its optimizers; the next step is bit-identical to that of the
    saved ones.

    build: makes the base model, or a tuple of it and its optimizers, in the order in which `save`
    was given them: (model, optimizer). Without saved ones the optimizers are (). ignore: names of
    attributes of modules that may differ from the saved model's, such as a counter. Raises
    `RunError` where the file is missing or corrupt, or belongs to another base model or optimizer,
    with what differs: sizes before the first edit, kinds of modules and their settings, ties, an
    optimizer's class and what its groups hold. What a forward method does is not compared.
    """
    tensors, about = _read(path)
    built = build()
    model, *optimizers = built if isinstance(built, tuple) else (built,)
    saved = about["optimizers"]
    if saved and len(saved) != len(optimizers):
        raise RunError(
            f"checkpoint {path} has the state of {len(saved)} optimizers, build() gives "
            f"{len(optimizers)}; let build() return (model, optimizer), each one after the model"
        )
    del optimizers[len(saved) :]
    base = base_of(model)
    names = {id(p): name for name, p in model.named_parameters()}
    held = [trained_by(optimizer, names) for optimizer in optimizers]
    _build_blocks(model, about["blocks"], path)
    _make_sparse(model, tensors)
    _fill_model(model, tensors, path)
    _fill_sizes(model, about, path)
    differences = [
        *other_base(about["base"], base),
        *other_modules(about["made_of"], made_of(model), ignore),
    ]
    for one, optimizer, groups in zip(saved, optimizers, held, strict=True):
        differences += _other_optimizer(one, optimizer, groups, names.values())
    _refuse(differences, path)
    set_base(model, about["base"]["notes"])
    _freeze(model, about["frozen"], path)
    _fill_optimizers(model, optimizers, saved, tensors, path)
    return model, tuple(optimizers)


_SAID = 5  # differences that a message names


def _refuse(differences: Sequence[str], path: str | Path) -> None:
    if not differences:
        return
    more = f"; and {len(differences) - _SAID} more" if len(differences) > _SAID else ""
    raise RunError(
        f"checkpoint {path} belongs to another base model: "
        f"{'; '.join(differences[:_SAID])}{more}. Let build() make the model that the saved run "
        "started from"
    )


def _freeze(model: nn.Module, names: Iterable[str], path: str | Path) -> None:
    parameters = dict(model.named_parameters())
    _known(path, "a frozen parameter", names, parameters)
    for name in names:
        parameters[name].requires_grad_(False)


def _fill_optimizers(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    saved: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
    path: str | Path,
) -> None:
    """Groups, then the tensors of the state, then its numbers."""
    parameters = dict(model.named_parameters())
    for one, optimizer in zip(saved, optimizers, strict=True):
        _fill_groups(optimizer, parameters, one["groups"], tensors, path)
    fill_optimizers(model, optimizers, tensors)
    for one, optimizer in zip(saved, optimizers, strict=True):
        _fill_numbers(optimizer, parameters, one["numbers"], tensors, path)


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
class _Optimizer:
    """kind: its class. numbers: what of its state is no tensor, by parameter."""

    kind: str
    groups: list[_Group]
    numbers: dict[str, dict[str, Any]]


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
    frozen: list[str]
    base: _Base
    made_of: _Made
    optimizers: list[_Optimizer]


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a checkpoint, checked."""
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


def optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """The tensors of the optimizers' state, by "optimizer.<number>.<parameter>.<key>"."""
    tensors = {}
    for number, optimizer in enumerate(optimizers):
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{number}.{name}.{key}"] = value
    return tensors


def fill_optimizers(
    model: nn.Module, optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Take the state from what `optimizer_tensors` gave."""
    for number, optimizer in enumerate(optimizers):
        optimizer.state.clear()
        for name, parameter in model.named_parameters():
            start = f"optimizer.{number}.{name}."
            state = {
                key.removeprefix(start): value.clone()
                for key, value in tensors.items()
                if key.startswith(start)
            }
            if state:
                optimizer.state[parameter] = _placed(state, parameter, optimizer)


def _placed(
    state: Mapping[str, Tensor], parameter: Tensor, optimizer: Optimizer
) -> dict[str, Tensor]:
    """State on the device of its parameter; a count of steps only where the optimizer wants it
    there.
    """
    on_device = any(
        group.get("capturable") or group.get("fused")
        for group in optimizer.param_groups
        if any(p is parameter for p in group["params"])
    )
    return {
        key: value if key == "step" and not on_device else _laid_out_as(parameter, value)
        for key, value in state.items()
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


def _optimizer_to_json(
    optimizer: Optimizer, names: Mapping[int, str], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """All of an optimizer but the tensors of its state, see `_Optimizer`."""
    groups = [_group_to_json(group, names, tensors) for group in optimizer.param_groups]
    numbers = {
        names[id(p)]: {
            key: _to_json(value, tensors, f"state '{key}'")
            for key, value in state.items()
            if not isinstance(value, Tensor)
        }
        for p, state in optimizer.state.items()
    }
    return {"kind": type(optimizer).__name__, "groups": groups, "numbers": numbers}


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


def _fill_numbers(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    numbers: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
    path: str | Path,
) -> None:
    _known(path, "numbers of a parameter", numbers, parameters)
    for name, own in numbers.items():
        parameter = parameters[name]
        for key, value in own.items():
            optimizer.state[parameter][key] = _from_json(value, tensors, parameter.device)


def _other_optimizer(
    saved: Mapping[str, Any],
    optimizer: Optimizer,
    held: Mapping[str, int],
    base: Iterable[str],
) -> Iterator[str]:
    """What differs between a saved optimizer and the one that build() made; held: the group of each
    parameter, base: their names.
    """
    kind = type(optimizer).__name__
    if saved["kind"] != kind:
        yield f"the optimizer is {saved['kind']}, build() makes {kind}"
    groups = {
        name: number for number, group in enumerate(saved["groups"]) for name in group["params"]
    }
    yield from other_groups(groups, held, base)


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


def _make_sparse(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Each dense `Dag` whose weights were pruned before it was saved gets the buffers of a wiring,
    which the file fills.
    """
    for name, module in model.named_modules():
        wired = ".".join(part for part in ("model", name, "indices") if part)
        if wired in tensors and isinstance(module, Dag) and not module.sparse:
            module.indices = torch.empty(0, dtype=torch.long, device=module.weight.device)
            module.indptr = torch.empty(0, dtype=torch.long, device=module.weight.device)


def _fill_sizes(model: nn.Module, about: Mapping[str, Any], path: str | Path) -> None:
    """The sizes that modules keep as attributes."""
    modules = dict(model.named_modules())
    _known(path, "sizes of a module", about["attributes"], modules)
    kinds = {name: kind for name, (kind, _) in about["made_of"]["modules"].items()}
    for name, sizes in about["attributes"].items():
        if kinds.get(name) != type(modules[name]).__name__:
            continue  # another model, as `load` will say
        _known(path, f"for module {name!r} a size", sizes, _sizes_of(modules[name]))
        for attribute, value in sizes.items():
            setattr(modules[name], attribute, tuple(value) if isinstance(value, list) else value)


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
