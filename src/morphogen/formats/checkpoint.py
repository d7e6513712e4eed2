"""One file that holds tensors and a JSON text: safetensors, written atomically, with a checksum."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from morphogen.errors import RunError
from morphogen.record import write_atomic


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Any = None) -> None:
    """Write tensors and anything JSON can hold; a crash leaves the old file or the new one.

    A tensor under several names, as of tied weights, is written once. Raises `RunError` for a
    tensor that the file cannot hold: sparse, quantized, without data, or of a type that safetensors
    does not have.
    """
    for name, tensor in tensors.items():
        _check(name, tensor)
    aliases = _aliases(tensors)
    whole: dict[str, Tensor] = {}
    used: set[int] = set()
    for name, tensor in tensors.items():
        if name not in aliases:
            whole[name] = _alone(tensor, used)
    texts = {"about": json.dumps(about), "aliases": json.dumps(aliases)}
    metadata = {**texts, "sha256 of all": _digest(whole, texts)}
    try:
        content = save(whole, metadata)
    except KeyError as error:  # safetensors looks types up in a table
        types = sorted({str(tensor.dtype) for tensor in whole.values()})
        raise RunError(
            f"checkpoint {path}: safetensors has no type {error}, among {types}; convert that "
            "tensor"
        ) from error
    write_atomic(path, content)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """What `save_tensors` wrote. Raises `RunError` where the file is missing, cut or altered."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # copied: on memory that is not aligned as torch aligns its own, kernels take other
            # paths, with other last bits
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if "sha256" in metadata:
            raise RunError(
                f"checkpoint {path} is of an older morphogen, whose checksum leaves out what it "
                "says; start again"
            )
        texts = {name: metadata[name] for name in ("about", "aliases")}
        about = json.loads(texts["about"])
        tied = {name: tensors[stored] for name, stored in json.loads(texts["aliases"]).items()}
    except FileNotFoundError as error:
        raise RunError(f"no checkpoint at {path}; start the run without resume=True") from error
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise RunError(
            f"checkpoint {path} is corrupt ({error}); delete it and start again without resume=True"
        ) from error
    if metadata.get("sha256 of all") != _digest(tensors, texts):
        raise RunError(
            f"checkpoint {path} is corrupt (checksum); delete it and start again without "
            "resume=True"
        )
    return {**tensors, **tied}, about


def _check(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = (
            "without data" if tensor.is_meta else "quantized" if tensor.is_quantized else "sparse"
        )
        raise RunError(
            f"a checkpoint cannot hold '{name}', which is {kind}; convert it to a plain tensor "
            "first"
        )


def _aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name whose tensor is that of an earlier one, the earlier name."""
    first: dict[Any, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        key = (
            tensor.device,
            tensor.data_ptr(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
            tensor.is_conj(),
            tensor.is_neg(),
        )
        if tensor.numel() and first.setdefault(key, name) != name:
            aliases[name] = first[key]
    return aliases


def _alone(tensor: Tensor, used: set[int]) -> Tensor:
    """On the CPU, in memory of its own, which joins `used`: safetensors writes no views."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    memory = plain.untyped_storage()
    if memory.data_ptr() in used or memory.nbytes() != plain.nbytes:
        plain = plain.clone()
    used.add(plain.untyped_storage().data_ptr())
    return plain


def _digest(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """Of all that the file says: the metadata, and of each tensor the name, the type, the shape and
    the numbers.
    """
    digest = hashlib.sha256(json.dumps(texts).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
