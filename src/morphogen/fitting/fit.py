"""The main job: data in, a network of the right shape out.

    fit(dataset) -> Fitted

Starts from a tiny network. While it trains, a controller adds and removes units and blocks as the
policy and the learned depths ask (phase "grow"). Once nothing pays any more, the structure stays
and the learning rate falls to zero (phase "anneal"). The result is frozen into plain modules. One
part of the training rows is held out for all these decisions; the test part is used for nothing but
the final scores.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from morphogen.data.dataset import Dataset
from morphogen.edit.apply import count_parameters
from morphogen.errors import RunError
from morphogen.fitting.checkpoint import has_checkpoint, load, load_lesson, save, save_lesson
from morphogen.fitting.distillation import Distillation, distil
from morphogen.fitting.problem import Problem, Settings, threads_for
from morphogen.fitting.recipe import Recipe
from morphogen.fitting.scaling import to_unit
from morphogen.fitting.search import Display, Search, first_network
from morphogen.folder import claimed
from morphogen.layers.ensemble import Ensemble
from morphogen.random_state import own_draws
from morphogen.record import Certificate, Report, TableRow
from morphogen.tracing.program import dtype_of
from morphogen.transforms.freeze import freeze

_TEACHING = 0.3  # share of the time limit after which no further kind of teacher begins
# spreads from 0 up to which a target stays in float32, which rounds it there to 3e-5 of its spread
FAR = 1000


@dataclass(frozen=True)
class Fitted:
    """The outcome. model: as trained, with gates and norms. plain: the same function in plain
    modules (regression: in the target's unit, and in float64 where the target is so far from 0 that
    float32 would lose it). ledger: every edit from the first network. seconds: of the search.
    compression: where `compressed` made `plain` smaller, what proves it. distillation: what it
    learned from beside the labels. members: of an ensemble, each of its networks.
    """

    model: nn.Module
    plain: nn.Sequential
    certificate: Certificate
    report: Report
    ledger: tuple[Any, ...]
    recipe: Recipe
    settings: Settings
    seconds: float
    compression: Certificate | None = None
    distillation: Distillation | None = None
    members: tuple["Fitted", ...] = ()


def fit(
    dataset: Dataset,
    settings: Settings | None = None,
    *,
    recipe: Recipe | None = None,
    folder: Path | None = None,
    resume: bool = False,
    display: Display | None = None,
) -> Fitted:
    """Learn a network's shape and weights.

    folder: where checkpoints go, at every round's end (at most one a second); no other run may be
    at it. resume: go on from the one there; with the same data, settings and device type "cpu" it
    ends as the uninterrupted run would have, bit for bit, unless `seconds` cut one of them.
    Raises `DataError` where there are too few rows and `RunError` for a checkpoint of another run
    or a folder that another run is at.
    """
    with nullcontext() if folder is None else claimed(folder, used=True):
        return search(
            dataset, settings, recipe=recipe, folder=folder, resume=resume, display=display
        )


def search(
    dataset: Dataset,
    settings: Settings | None = None,
    *,
    recipe: Recipe | None = None,
    folder: Path | None = None,
    resume: bool = False,
    display: Display | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Fitted:
    """`fit` in a folder that the caller has claimed. stopping: asked at the end of each round,
    whether that was the last one.
    """
    settings = settings or Settings()
    if settings.members < 1:
        raise RunError(f"members={settings.members}: no network to average; give at least 1")
    began = time.perf_counter()
    problem = Problem(dataset, recipe, settings)
    with own_draws(settings.seed, settings.device):
        # what cannot be kept is said before anything is learned or written
        first_network(problem, settings)
    members: list[Fitted] = []
    while len(members) < settings.members and not (members and stopping()):
        number = len(members)
        begun = time.perf_counter() if number else began
        if number and settings.seconds is not None and begun - began >= settings.seconds:
            break
        if number and display is not None:
            display.say(f"member {number + 1} of {settings.members}")
        one = _member(settings, number, begun - began)
        place = None if folder is None else folder / member_folder(number)
        with own_draws(one.seed, one.device):
            # other folds for each member: what they say alike is worth more than one lesson
            lesson = _distillation(dataset, one, place, resume, display, stopping)
        with own_draws(one.seed, one.device):
            keep = None if place is None else partial(save, folder=place)
            if number or lesson is not None:
                problem = Problem(dataset, recipe, one, lesson)
            run = Search(problem, one, keep, display, time.perf_counter() - begun)
            run.stopping = stopping
            with threads_for(run.problem):
                if resume and place is not None and (number == 0 or has_checkpoint(place)):
                    load(run, place)
                run.run()
                members.append(_result(run))
    return members[0] if settings.members == 1 else averaged(members, problem, settings)


def member_folder(number: int) -> str:
    """Where the checkpoints of a member of an ensemble go, below those of the first."""
    return f"checkpoints/member-{number + 1}" if number else ""


def _member(settings: Settings, number: int, spent: float) -> Settings:
    """Those of one search: with its own seed, and its share of the time that is left."""
    if settings.members == 1:
        return settings
    seconds = settings.seconds
    if seconds is not None:
        seconds = (seconds - spent) / (settings.members - number)
    return replace(settings, seed=settings.seed + number, members=1, seconds=seconds)


def averaged(members: Sequence[Fitted], problem: Problem, settings: Settings) -> Fitted:
    """One network out of several, see `layers.ensemble`. Its report is the first one's, with a row
    for all of them before it; so are `model` and the ledger. problem: of any member.
    """
    first = members[0]
    plains = [member.plain for member in members]
    kind = torch.float64 if any(dtype_of(p) is torch.float64 for p in plains) else torch.float32
    ensemble = Ensemble([plain.to(kind) for plain in plains], not problem.regression)
    plain = nn.Sequential(OrderedDict(ensemble=ensemble)).eval()
    loss, score = problem.test_scores_in_unit(plain)
    seconds = sum(member.seconds for member in members)
    row = TableRow(
        f"the mean of {len(members)} found by morphogen",
        score,
        count_parameters(plain),
        seconds,
        loss=loss,
    )
    worst = max(members, key=lambda member: member.certificate.max_error)
    report = replace(first.report, table=(row, *first.report.table))
    return replace(
        first,
        plain=plain,
        certificate=worst.certificate,
        report=report,
        settings=settings,
        seconds=seconds,
        members=tuple(members),
    )


def _distillation(
    dataset: Dataset,
    settings: Settings,
    folder: Path | None,
    resume: bool,
    display: Display | None,
    stopping: Callable[[], bool],
) -> Distillation | None:
    """What the network learns from beside the labels; of a resumed run, what it had."""
    if not settings.distillation:
        return None
    lesson = load_lesson(folder, dataset, settings) if resume and folder is not None else None
    if lesson is None:
        began = time.perf_counter()
        limit = math.inf if settings.seconds is None else _TEACHING * settings.seconds
        lesson = distil(
            dataset,
            settings.seed,
            lambda: stopping() or time.perf_counter() - began > limit,
        )
        # one that was cut short is no lesson for a run that goes on
        if lesson is not None and folder is not None and not stopping():
            save_lesson(lesson, folder, dataset, settings)
    if lesson is not None and display is not None:
        display.say(lesson.note)
    return lesson


def _result(search: Search) -> Fitted:
    """Freeze, score and report."""
    seconds = search.elapsed
    problem = search.problem
    plain, certificate = freeze(search.state.model, problem.example)
    assert isinstance(plain, nn.Sequential)
    loss, score = problem.test_scores(plain)
    row = TableRow("found by morphogen", score, count_parameters(plain), seconds, loss=loss)
    if problem.regression:
        if (abs(problem.scaling.mean) > FAR * problem.scaling.scale).any():
            plain.double()
        to_unit(plain, problem.scaling)
    return Fitted(
        search.state.model.eval(),
        plain,
        certificate,
        search.report((row,)),
        tuple(search.controller.ledger),
        search.recipe,
        search.settings,
        seconds,
        distillation=problem.distillation,
    )
