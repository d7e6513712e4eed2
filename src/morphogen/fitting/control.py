"""What stands beside the network that was found: its shape from new weights, and a smaller network
that is the same.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from morphogen.bounds.box import bounding_box
from morphogen.data.dataset import Dataset
from morphogen.deadline import NEVER, Deadline
from morphogen.edit.apply import count_parameters
from morphogen.edit.ledger import replay
from morphogen.fitting.fit import Fitted
from morphogen.fitting.problem import LOOKED_AT, Problem, threads_for
from morphogen.fitting.schedule import Phase, optimizer_for
from morphogen.layers.protocol import size_parameters
from morphogen.layers.stack import reinitialised
from morphogen.random_state import own_draws
from morphogen.record import TableRow
from morphogen.training.train import State, train
from morphogen.transforms.compress import compress
from morphogen.transforms.freeze import freeze

_SCRATCH = "same shape from scratch"


def compressed(fitted: Fitted, dataset: Dataset, until: Deadline = NEVER) -> Fitted:
    """With a smaller `plain` that is the same function on the box that just holds the training
    rows, and a row of its own.
    """
    began = time.perf_counter()
    rows = torch.as_tensor(dataset.x_train)
    small, certificate = compress(
        fitted.plain,
        bounding_box(rows),
        samples=rows[:LOOKED_AT],
        seconds=max(0.0, until.within(10).left()),
    )
    assert isinstance(small, nn.Sequential)
    small = small.to(next(fitted.plain.parameters()).dtype)
    problem = Problem(dataset, fitted.recipe, fitted.settings)
    loss, score = problem.test_scores_in_unit(small)
    row = TableRow(
        "the same, compressed",
        score,
        count_parameters(small),
        time.perf_counter() - began,
        loss=loss,
    )
    report = replace(fitted.report, table=(*fitted.report.table, row))
    return replace(fitted, plain=small, compression=certificate, report=report)


def scratch(
    fitted: Fitted,
    dataset: Dataset,
    until: Deadline = NEVER,
    stopping: Callable[[], bool] = lambda: False,
) -> TableRow:
    """The honest control: the shape that was found, trained from new weights for as many steps by
    the same recipe.

    Its depths start where they ended, so that all blocks take part from the first step. until,
    stopping: it ends then, at a round's end, and its row says so; it is not begun where there is
    not half of the time that the search took.
    """
    if until.left() < fitted.seconds / 2:
        return TableRow(_SCRATCH, None, None, None, "skipped: no time was left")
    problem = Problem(dataset, fitted.recipe, fitted.settings, fitted.distillation)
    with threads_for(problem), own_draws(fitted.settings.seed + 1, problem.device):
        return _scratch(fitted, problem, lambda: stopping() or until.left() <= 0)


def _scratch(fitted: Fitted, problem: Problem, ended: Callable[[], bool]) -> TableRow:
    began = time.perf_counter()
    model = problem.build().to(problem.device)
    replay(model, fitted.ledger, problem.example[:2])
    depths = zip(size_parameters(model), size_parameters(fitted.model), strict=True)
    for ours, theirs in depths:
        ours.data.copy_(theirs.data)
    reinitialised(model)
    last = fitted.report.rounds[-1]
    recipe = fitted.recipe
    grown = max(r.step for r in fitted.report.rounds if r.phase == "grow")
    state = State(model, optimizer_for(model, recipe), fitted.settings.seed)

    def end_early(state: State) -> None:
        state.stop = state.stop or ended()

    for phase, until in ((Phase(), grown), (Phase(grown, max(1, last.step - grown)), last.step)):

        def objective(model: nn.Module, x: Tensor, y: Tensor, phase: Phase = phase) -> Tensor:
            return problem.objective(model, x, y, phase.smoothing(state.step, recipe))

        train(
            state,
            problem.batches,
            objective,
            partial(phase.rate, recipe=recipe),
            steps=recipe.steps,
            rounds=until // recipe.steps,
            hooks=[end_early],
        )
    seconds = time.perf_counter() - began
    plain, _ = freeze(model, problem.example)
    loss, score = problem.test_scores(plain)
    cut = f"stopped after {state.step:,} of {last.step:,} steps"
    note = cut if state.step < last.step else ""
    return TableRow(_SCRATCH, score, count_parameters(plain), seconds, note, loss)
