"""One run of the command: fit, control, baselines, files, with progress shown."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from morphogen.data.dataset import Dataset
from morphogen.deadline import NEVER, Deadline
from morphogen.errors import RunError
from morphogen.fitting.baselines import baselines as sklearn_baselines
from morphogen.fitting.checkpoint import has_checkpoint
from morphogen.fitting.control import compressed, scratch
from morphogen.fitting.evaluation import evaluate
from morphogen.fitting.export import export
from morphogen.fitting.fit import Fitted, search
from morphogen.fitting.interrupt import stopped_by_hand
from morphogen.fitting.metrics import metric_for
from morphogen.fitting.problem import Settings
from morphogen.folder import Left, claimed_run
from morphogen.record import Report
from morphogen.report.live import Display
from morphogen.report.live import display as make_display

_EXPORT = 4.0  # seconds that the files and the last figures take
_SHARE = 0.3  # of what is left at the start of the search, which they are given at most
_OTHERS = 0.05  # of the same, kept for what stands beside the network
_LEAST = 0.5  # seconds of any search
_BASELINE = 30.0  # seconds of one of scikit-learn's models, or as long as the search took


@dataclass(frozen=True)
class Options:
    """What happens around the search. baselines: None for a linear model and gradient boosting,
    True for perceptrons too, False for none. until: when all of it must have ended.
    """

    resume: bool = False
    baselines: bool | None = None
    control: bool = True
    compress: bool = False
    quiet: bool = False
    until: Deadline = NEVER


def run(
    dataset: Dataset, options: Options | None = None, *, out: Path | None = None, **settings: Any
) -> tuple[Fitted, Report]:
    """Fit, compare, write the folder and print the result. settings: those of `Settings`.

    Raises `RunError` before anything is written where the folder holds another run or one is
    writing to it, where several processes train together, the metric is of another task, or the
    device does not exist; `Left` where Ctrl-C was pressed twice.
    """
    options = options or Options()
    asked = Settings(**settings)
    metric_for(asked.metric, dataset.task)
    _require_device(asked.device)
    if options.compress and asked.members > 1:
        raise RunError(
            f"compress=True, members={asked.members}: an ensemble is not compressed; choose one"
        )
    with claimed_run(dataset.name, out, options.resume) as folder:
        try:
            return _run(dataset, folder, options, asked)
        except KeyboardInterrupt as error:
            raise Left(folder, has_checkpoint(folder)) from error


def _run(
    dataset: Dataset, folder: Path, options: Options, settings: Settings
) -> tuple[Fitted, Report]:
    """In a folder that is ours."""
    label = metric_for(settings.metric, dataset.task).label
    with (
        make_display(options.quiet, metric=label) as display,
        stopped_by_hand(display.say) as stopping,
    ):
        for note in dataset.notes:
            display.say(note)
        fitted = _searched(dataset, folder, options, settings, display, stopping)
        if options.compress:
            display.say("compressing it without loss on the range of the training rows")
            fitted = compressed(fitted, dataset, options.until)
            assert fitted.compression is not None
            display.say(fitted.compression.reason)
        report = _compared(fitted, dataset, options, display, stopping)
        report = replace(report, evaluation=evaluate(fitted, dataset, options.until))
        export(fitted, dataset, report, folder)
        display.finish(report)
        files = "model.py, model.safetensors, model.onnx, structure.json, metrics.json, report.html"
        display.written(folder, f"{files}{', certificate.json' if fitted.compression else ''}")
    return fitted, report


def _searched(
    dataset: Dataset,
    folder: Path,
    options: Options,
    settings: Settings,
    display: Display,
    stopping: Callable[[], bool],
) -> Fitted:
    """With what is left of the time, but for what the files take."""
    exists = has_checkpoint(folder)
    if options.resume and not exists:
        display.say(f"nothing to resume in {folder}: starting from the beginning")
    left = options.until.left()
    if left < math.inf:
        seconds = max(_LEAST, (1 - _OTHERS) * left - min(_EXPORT, _SHARE * left))
        settings = replace(settings, seconds=min(seconds, settings.seconds or math.inf))
    return search(
        dataset,
        settings,
        folder=folder,
        resume=options.resume and exists,
        display=display,
        stopping=stopping,
    )


def _compared(
    fitted: Fitted,
    dataset: Dataset,
    options: Options,
    display: Display,
    stopping: Callable[[], bool],
) -> Report:
    """With a row for each of the others, as far as the time reaches."""
    report = fitted.report
    until = replace(options.until, ends=options.until.ends - _EXPORT / 2)
    if options.control and not stopping():
        display.say("training the same shape from scratch, as a control")
        report = replace(report, table=(*report.table, scratch(fitted, dataset, until, stopping)))
    if options.baselines is False or stopping():
        return report
    rows = sklearn_baselines(
        dataset,
        metric_for(fitted.settings.metric, dataset.task),
        fitted.settings.seed,
        more=options.baselines is True,
        until=until,
        each=max(_BASELINE, fitted.seconds),
    )
    for row in rows:
        said = row.note if row.seconds is None else f"done in {row.seconds:.1f} s"
        display.say(f"{row.name}: {said}")
        report = replace(report, table=(*report.table, row))
        if stopping():
            break
    return report


def _require_device(name: str) -> None:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise RunError(
            f"device={name}: not available here ({str(error).splitlines()[0]}); use cpu"
        ) from error
