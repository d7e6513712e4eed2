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
    """Write tensors and anything JSON can hold; a crash leaves the old file or the new one."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about)
    metadata = {"about": text, "sha256 of all": _digest(whole, text)}
    write_atomic(path, save(whole, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """What `save_tensors` wrote. Raises `RunError` where the file is missing, cut or altered."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # copied: on memory that is not aligned as torch aligns its own, kernels take other paths, with other last bits
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        text = metadata["about"]
        about = json.loads(text)
    except FileNotFoundError as error:
        raise RunError(f"no checkpoint at {path}; start the run without --resume") from error
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise RunError(f"checkpoint {path} is corrupt ({error}); delete it and start again without --resume") from error
    if "sha256" in metadata:
        raise RunError(f"checkpoint {path} is of an older morphogen, whose checksum leaves out what it says; start again")
    if metadata.get("sha256 of all") != _digest(tensors, text):
        raise RunError(f"checkpoint {path} is corrupt (checksum); delete it and start again without --resume")
    return tensors, about


def _digest(tensors: Mapping[str, Tensor], about: str) -> str:
    """Of all that the file says: the metadata, and of each tensor the name, the type, the shape and the numbers."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
