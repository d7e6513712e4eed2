"""A run on disk: the shape of every tensor, the tensors, the optimizer's state and the ledger; never a pickled module.

    save("run/ckpt", model, optimizer, ledger)
    model, optimizer = load("run/ckpt", build)      # build() makes the network that everything started from

Loading needs no tracing and none of the code that grew the network: every tensor of the base model takes the shape that the
file has, learned depths get their blocks, and the sizes that modules keep beside their tensors are set.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.errors import RunError
from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.resize.apply import attributes, put
from morphogen.resize.blocks import attach, detach, new_block, stacks
from morphogen.resize.edit import Edit, edit_from_dict
from morphogen.resize.numbers import recount
from morphogen.resize.structure import structure

_VERSION = 2


def save(path: str | Path, model: nn.Module, optimizer: Optimizer | None = None, ledger: Iterable[Edit] = ()) -> Path:
    """Write a checkpoint, atomically; returns the file's path (".safetensors" is added where `path` has no suffix).

    Raises `RunError` where the optimizer holds a parameter that is not the model's, see `doctor`.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    about: dict[str, Any] = {
        "version": _VERSION,
        "structure": structure(model, ledger),
        "blocks": {name: len(stack) for name, stack in stacks(model).items()},
        "attributes": attributes(model),
    }
    tensors = model_tensors(model)
    if optimizer is not None:
        about["groups"] = [_group_to_json(group, names) for group in optimizer.param_groups]
        about["numbers"] = {
            names[id(p)]: {k: v for k, v in state.items() if not isinstance(v, Tensor)} for p, state in optimizer.state.items()
        }
        tensors |= optimizer_tensors(model, optimizer)
    path = _file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, tensors, about)
    return path


def load(path: str | Path, build: Callable[[], nn.Module | tuple[nn.Module, Optimizer]]) -> tuple[nn.Module, Optimizer | None]:
    """The model and optimizer of a checkpoint; the next step is bit-identical to that of the saved ones.

    build: makes the base model, or the pair (model, optimizer). The optimizer is None where none was saved. Raises `RunError`
    where the file is missing or corrupt, or belongs to another base model.
    """
    tensors, about = load_tensors(_file(path))
    if about.get("version") != _VERSION:
        raise RunError(f"checkpoint {path} has version {about.get('version')}; this morphogen reads {_VERSION}")
    built = build()
    model, optimizer = built if isinstance(built, tuple) else (built, None)
    if "groups" in about and optimizer is None:
        raise RunError(f"checkpoint {path} has an optimizer's state; let build() return (model, optimizer)")
    _build_blocks(model, about["blocks"])
    _fill_model(model, tensors, path)
    for name, sizes in about["attributes"].items():
        for attribute, value in sizes.items():
            setattr(model.get_submodule(name), attribute, tuple(value) if isinstance(value, list) else value)
    if "groups" not in about:
        return model, None
    assert optimizer is not None
    _fill_groups(optimizer, dict(model.named_parameters()), about["groups"], path)
    fill_optimizer(model, optimizer, tensors)
    parameters = dict(model.named_parameters())
    for name, numbers in about["numbers"].items():
        optimizer.state[parameters[name]].update(numbers)
    return model, optimizer


def load_ledger(path: str | Path) -> tuple[Edit, ...]:
    """The edits that a checkpoint's network went through."""
    _, about = load_tensors(_file(path))
    return tuple(edit_from_dict(edit) for edit in about["structure"]["ledger"])


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
        found = {key.removeprefix(start): value.clone() for key, value in tensors.items() if key.startswith(start)}
        if found:
            optimizer.state[parameter] = {k: _laid_out_as(parameter, v) for k, v in found.items()}


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


def _group_to_json(group: dict[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    strangers = [tuple(p.shape) for p in group["params"] if id(p) not in names]
    if strangers:
        raise RunError(
            f"save: the optimizer holds parameters of shapes {strangers} that are not the model's; see morphogen.doctor"
        )
    values = {k: v.item() if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}
    return {"params": [names[id(p)] for p in group["params"]], **values}


def _fill_groups(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], groups: list[dict[str, Any]], path: str | Path
) -> None:
    if len(groups) != len(optimizer.param_groups):
        raise RunError(
            f"checkpoint {path} has {len(groups)} parameter groups, build() made {len(optimizer.param_groups)}; "
            "build the optimizer as it was built for the saved run"
        )
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group["params"][:] = [parameters[name] for name in saved.pop("params")]
        for key, value in saved.items():
            old = group.get(key)
            if isinstance(old, Tensor):
                old.fill_(value)
            else:
                group[key] = tuple(value) if isinstance(value, list) else value


def _build_blocks(model: nn.Module, blocks: Mapping[str, int]) -> None:
    for name, count in blocks.items():
        stack = stacks(model).get(name)
        if stack is None:
            continue  # another model, as its tensors will show
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
            raise RunError(f"checkpoint {path} {what} tensor '{min(names)[6:]}'; build() makes another model than was saved")
    persistent = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in saved.items():
        target = persistent[name.removeprefix("model.")]
        if tensor.dtype != target.dtype:
            raise RunError(f"checkpoint {path}: '{name[6:]}' is {tensor.dtype}, build() makes it {target.dtype}")
        put(target, tensor.to(target.device))


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` with the memory layout of its parameter, which the file does not keep."""
    if value.shape != parameter.shape:
        return value.to(parameter.device) if value.dim() else value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
