"""The checkpoint of a search: settings, ledger, tensors. A resumed run ends as an uninterrupted
one.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphogen.data.dataset import Dataset
from morphogen.edit.ledger import ledger_from_json, ledger_to_json, replay
from morphogen.errors import RunError
from morphogen.fitting.distillation import Distillation
from morphogen.fitting.problem import Settings
from morphogen.fitting.schedule import Phase
from morphogen.fitting.search import Best, History, Search, fill_training, training_tensors
from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.record import Report, from_json, revive, to_json

CHECKPOINT = "checkpoints/last.safetensors"
LESSON = "checkpoints/lesson.safetensors"
_VERSION = 6
# settings with which a run may be gone on with all the same; each member has a checkpoint
_NO_MATTER = ("seconds", "device", "members")
_BEST = "best."  # begins the names of the best round's tensors


@dataclass(frozen=True)
class _Counters:
    """What of `State` is kept."""

    round: int
    step: int
    train_loss: float
    stop: bool
    halvings: int


@dataclass(frozen=True)
class _BestRound:
    """What of `Best` is no tensor."""

    loss: float
    round: int
    edits: int


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
    best: _BestRound


def _identity(dataset: Dataset, settings: Settings) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "data": dataset.fingerprint,
        "settings": {k: v for k, v in asdict(settings).items() if k not in _NO_MATTER},
    }


def _identity_of(search: Search) -> dict[str, Any]:
    identity = _identity(search.problem.dataset, search.settings)
    return {**identity, "recipe": asdict(search.recipe)}


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a run to go on with."""
    return (folder / CHECKPOINT).exists()


def save(search: Search, folder: Path) -> None:
    """Write the checkpoint."""
    state = search.state
    best = search.best
    assert best is not None  # there has been a round
    about = {
        **_identity_of(search),
        "ledger": ledger_to_json(search.controller.ledger),
        "state": {f.name: getattr(state, f.name) for f in fields(_Counters)},
        "phase": asdict(search.phase),
        "memory": search.controller.memory,
        "report": to_json(search.report(())),
        "seconds": search.elapsed,
        "best": {f.name: getattr(best, f.name) for f in fields(_BestRound)},
    }
    kept = {_BEST + name: tensor for name, tensor in best.tensors.items()}
    tensors = {**training_tensors(state), **kept}
    path = folder / CHECKPOINT
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, tensors, about)


def load(search: Search, folder: Path) -> None:
    """Go on from the checkpoint in a folder."""
    tensors, about = load_tensors(folder / CHECKPOINT)
    if not isinstance(about, dict):
        raise RunError(f"the checkpoint in {folder} is of something else; choose another folder")
    for key, value in _identity_of(search).items():
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
    fill_training(state, tensors)
    for key, value in asdict(saved.state).items():
        setattr(state, key, value)
    search.phase = saved.phase
    search.controller.resume(ledger, saved.memory)
    report = from_json(Report, saved.report)
    search.history = History(list(report.rounds), list(report.changes), list(report.notes))
    search.before = saved.seconds
    kept = {
        name.removeprefix(_BEST): tensor
        for name, tensor in tensors.items()
        if name.startswith(_BEST)
    }
    search.best = Best(**asdict(saved.best), tensors=kept)


def save_lesson(lesson: Distillation, folder: Path, dataset: Dataset, settings: Settings) -> None:
    """Write what the network learns from beside the labels, which took a while to find."""
    path = folder / LESSON
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"targets": lesson.targets, "x": lesson.x, "y": lesson.y}
    about = {
        **_identity(dataset, settings),
        "loss": lesson.loss,
        "weights": dict(lesson.weights),
    }
    save_tensors(path, {name: torch.as_tensor(array) for name, array in arrays.items()}, about)


def load_lesson(folder: Path, dataset: Dataset, settings: Settings) -> Distillation | None:
    """What `save_lesson` wrote for the same data and settings, None where there is none."""
    path = folder / LESSON
    if not path.exists():
        return None
    tensors, about = load_tensors(path)
    identity = _identity(dataset, settings)
    if not isinstance(about, dict) or any(about.get(k) != v for k, v in identity.items()):
        return None
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return Distillation(**arrays, loss=about["loss"], weights=about["weights"])
