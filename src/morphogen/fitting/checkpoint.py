"""The checkpoint of a search: settings, ledger, tensors. A resumed run ends as an uninterrupted
one.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphogen.edit.checkpoint import fill_optimizers, model_tensors, optimizer_tensors
from morphogen.edit.ledger import ledger_from_json, ledger_to_json, replay
from morphogen.errors import RunError
from morphogen.fitting.schedule import Phase
from morphogen.fitting.search import History, Search
from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.record import Report, from_json, revive, to_json

CHECKPOINT = "checkpoints/last.safetensors"
_VERSION = 3


@dataclass(frozen=True)
class _Counters:
    """What of `State` is kept."""

    round: int
    step: int
    train_loss: float
    stop: bool
    halvings: int


@dataclass(frozen=True)
class _Saved:
    """What is in a checkpoint beside the tensors and what tells runs apart. report: as JSON
    text.
    """

    ledger: list[dict[str, Any]]
    state: _Counters
    phase: Phase
    memory: Any
    report: str
    seconds: float


def _identity(search: Search) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "data": search.problem.dataset.fingerprint,
        "settings": {
            k: v for k, v in asdict(search.settings).items() if k not in ("seconds", "device")
        },
        "recipe": asdict(search.recipe),
    }


def save(search: Search, folder: Path) -> None:
    """Write the checkpoint."""
    state = search.state
    about = {
        **_identity(search),
        "ledger": ledger_to_json(search.controller.ledger),
        "state": {f.name: getattr(state, f.name) for f in fields(_Counters)},
        "phase": asdict(search.phase),
        "memory": search.controller.memory,
        "report": to_json(search.report(())),
        "seconds": search.elapsed,
    }
    path = folder / CHECKPOINT
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(
        path,
        {**model_tensors(state.model), **optimizer_tensors(state.model, [state.optimizer])},
        about,
    )


def load(search: Search, folder: Path) -> None:
    """Go on from the checkpoint in a folder."""
    tensors, about = load_tensors(folder / CHECKPOINT)
    if not isinstance(about, dict):
        raise RunError(f"the checkpoint in {folder} is of something else; choose another folder")
    for key, value in _identity(search).items():
        if about.get(key) != value:
            raise RunError(
                f"the checkpoint in {folder} belongs to another run (its {key}: "
                f"{about.get(key)}, now: {value}); resume with the same data and options, or "
                "choose another folder"
            )
    try:
        _take(search, tensors, revive(_Saved, about))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise RunError(
            f"the checkpoint in {folder} cannot be used ({said}); was it changed by hand?"
        ) from error
    search.show(f"resumed after round {search.state.round} ({search.before:.0f} s)")


def _take(search: Search, tensors: dict[str, Tensor], saved: "_Saved") -> None:
    state = search.state
    ledger = ledger_from_json(saved.ledger)
    replay(state.model, ledger, search.problem.example[:2], optimizers=[state.optimizer])
    with torch.no_grad():
        for name, tensor in model_tensors(state.model).items():
            if tensor.shape != tensors[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
                )
            tensor.copy_(tensors[name])
    fill_optimizers(state.model, [state.optimizer], tensors)
    for key, value in asdict(saved.state).items():
        setattr(state, key, value)
    search.phase = saved.phase
    search.controller.resume(ledger, saved.memory)
    report = from_json(Report, saved.report)
    search.history = History(list(report.rounds), list(report.changes), list(report.notes))
    search.before = saved.seconds
