"""One run of the command: fit, control, baselines, files, with progress shown."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from morphogen.data.dataset import Dataset
from morphogen.errors import RunError
from morphogen.fitting.baselines import baselines as sklearn_baselines
from morphogen.fitting.checkpoint import CHECKPOINT
from morphogen.fitting.control import compressed, scratch
from morphogen.fitting.export import export
from morphogen.fitting.fit import Fitted, search
from morphogen.fitting.problem import Settings
from morphogen.folder import claimed, claimed_free
from morphogen.record import Report
from morphogen.report.live import display as make_display


def run(
    dataset: Dataset,
    *,
    out: Path | None = None,
    resume: bool = False,
    baselines: bool = False,
    control: bool = True,
    compress: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> tuple[Fitted, Report]:
    """Fit, compare, write the folder and print the result. settings: those of `Settings`.

    Raises `RunError` before anything is written where the folder holds another run or one is
    writing to it, where several processes train together, or the device does not exist.
    """
    base = Path("runs") / dataset.name
    _require_device(settings.get("device", "cpu"))
    with (
        claimed_free(base) if out is None and not resume else claimed(out or base, resume) as folder
    ):
        return _run(
            dataset, folder, resume, baselines, control, compress, quiet, Settings(**settings)
        )


def _run(
    dataset: Dataset,
    folder: Path,
    resume: bool,
    baselines: bool,
    control: bool,
    compress: bool,
    quiet: bool,
    settings: Settings,
) -> tuple[Fitted, Report]:
    """In a folder that is ours."""
    with make_display(quiet, metric=dataset.metric) as display:
        for note in dataset.notes:
            display.say(note)
        exists = (folder / CHECKPOINT).exists()
        if resume and not exists:
            display.say(f"nothing to resume in {folder}: starting from the beginning")
        fitted = search(dataset, settings, folder=folder, resume=resume and exists, display=display)
        if compress:
            display.say("compressing it without loss on the range of the training rows")
            fitted = compressed(fitted, dataset)
            assert fitted.compression is not None
            display.say(fitted.compression.reason)
        report = fitted.report
        if control:
            display.say("training the same shape from scratch, as a control")
            report = replace(report, table=(*report.table, scratch(fitted, dataset)))
        if baselines:
            for row in sklearn_baselines(dataset, fitted.settings.seed):
                display.say(f"{row.name}: done in {row.seconds:.1f} s")
                report = replace(report, table=(*report.table, row))
        export(fitted, dataset, report, folder)
        display.finish(report)
        files = "model.py, model.safetensors, model.onnx, structure.json, metrics.json, report.html"
        display.say(
            f"written to {folder}/: {files}{', certificate.json' if fitted.compression else ''}"
        )
    return fitted, report


def _require_device(name: str) -> None:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise RunError(
            f"device={name}: not available here ({str(error).splitlines()[0]}); use cpu"
        ) from error
