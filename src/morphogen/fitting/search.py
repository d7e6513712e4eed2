"""The search for a shape while a network trains: `Search`."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from morphogen.data.dataset import Dataset
from morphogen.edit.apply import count_parameters
from morphogen.environment import environment
from morphogen.errors import MorphogenError, RunError
from morphogen.fitting.problem import WIRINGS, Problem, Settings
from morphogen.fitting.recipe import Recipe
from morphogen.fitting.schedule import Phase, optimizer_for, shrink_and_perturb
from morphogen.models import depths_of, shape_of
from morphogen.policies import POLICIES
from morphogen.policies.controller import Controller
from morphogen.policies.cost import weighed
from morphogen.policies.policy import Policy, with_settings
from morphogen.record import Change, Report, Round, TableRow
from morphogen.training.train import Diverged, State, generator, train

CHECKPOINT_SECONDS = 1.0  # a checkpoint is written at a round's end, at most so often
_SEARCHED = 4  # training batches that the weights of new units are searched on

Keep = Callable[["Search"], None]


class Display(Protocol):
    """Where progress is shown; `morphogen.report.live` has three."""

    def round(self, r: Round, time_left: float | None) -> None: ...
    def change(self, c: Change) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass
class History:
    rounds: list[Round] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Search:
    """One run: what `train` and the controller remember. keep: writes a checkpoint, at a round's
    end.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: Settings,
        recipe: Recipe | None,
        keep: Keep | None,
        display: Display | None,
    ) -> None:
        if settings.wiring not in WIRINGS:
            raise RunError(
                f"wiring={settings.wiring!r}: unknown; choose one of {', '.join(WIRINGS)}"
            )
        unable = WIRINGS[settings.wiring]
        if settings.policy in unable:
            able = ", ".join(name for name in POLICIES if name not in unable)
            raise RunError(
                f"policy={settings.policy}: cannot change a network of wiring={settings.wiring}; "
                f"choose one of {able}"
            )
        self.problem = Problem(dataset, recipe, settings)
        self.recipe = self.problem.recipe
        self.settings = settings
        self.keep = keep
        self.display = display
        model = self.problem.build().to(self.problem.device)
        parameters = count_parameters(model)
        if settings.budget is not None and parameters > settings.budget:
            raise RunError(
                f"budget={settings.budget}: the smallest network for this data has {parameters} "
                "parameters"
            )
        self.state = State(model, optimizer_for(model, self.recipe), settings.seed)
        self.controller = Controller(
            model,
            policy_of(settings, self.recipe),
            self.problem.losses,
            self.problem.example[:2],
            budget=settings.budget,
            cost=weighed(self.problem.example[:2], self.recipe.operations),
            loss=self._training_loss,
            optimizers=[self.state.optimizer],
        )
        self.phase = Phase()
        self.history = History(notes=list(dataset.notes))
        self.before = 0.0  # seconds of earlier sessions of this run
        self.began = self.saved = time.perf_counter()
        self.stopping: Callable[[], bool] = lambda: False

    @property
    def elapsed(self) -> float:
        return self.before + time.perf_counter() - self.began

    def run(self) -> None:
        """Train until settled. A NaN loss halves the learning rate and repeats the round."""
        if not self.history.rounds:
            self._record(0.0)  # the network that everything starts from
        while not self.state.stop:
            try:
                train(
                    self.state,
                    self.problem.batches,
                    lambda m, x, y: self.problem.objective(
                        m, x, y, self.phase.smoothing(self.recipe)
                    ),
                    lambda step: self.phase.rate(step, self.recipe),
                    steps=self.recipe.steps,
                    hooks=[self._after_round],
                )
            except Diverged as error:
                self.state.halvings += 1
                if self.state.halvings > 8:
                    raise MorphogenError(
                        f"{error}; it stays so at 1/256 of the learning rate: check the data"
                    ) from error
                self._say(f"{error}: the last good state is back, the learning rate is halved")

    def _after_round(self, state: State) -> None:
        draw = generator(state.seed, 4, state.round)
        state.stop = self.stopping()
        epoch = state.step / self.problem.batches.per_epoch
        if self.phase.anneal_start is None:
            for change in self.controller.step(state.round, epoch, draw):
                self.history.changes.append(change)
                if self.display:
                    self.display.change(change)
            if self.controller.done or state.round >= self.recipe.rounds or self._late(0.5):
                self._settle()
        elif state.step >= self.phase.anneal_start + self.phase.anneal_steps or self._late(1.0):
            state.stop = True
        self._record(epoch)
        if self.keep and (state.stop or time.perf_counter() - self.saved > CHECKPOINT_SECONDS):
            self.keep(self)
            self.saved = time.perf_counter()

    def _training_loss(self, model: nn.Module) -> Tensor:
        """Of the next few batches."""
        batches = self.problem.batches.range(self.state.step, self.state.step + _SEARCHED)
        x, y = (torch.cat(part) for part in zip(*batches, strict=True))
        return self.problem.objective(model.train(), x, y)

    def _late(self, share: float) -> bool:
        limit = self.settings.seconds
        return limit is not None and self.elapsed >= share * limit

    def _settle(self) -> None:
        """Fix the structure and plan the fall of the learning rate, within what is left of the time
        limit.
        """
        per_epoch = self.problem.batches.per_epoch
        steps = self.recipe.steps
        wanted = max(self.recipe.anneal * self.state.step, self.recipe.epochs * per_epoch)
        if self.settings.seconds is not None:
            wanted = min(wanted, (self.settings.seconds - self.elapsed) / self._seconds_per_step())
        self.phase = Phase(self.state.step, max(1, math.ceil(wanted / steps)) * steps)
        if self.recipe.shrink_and_perturb_share:
            shrink_and_perturb(
                self.state.model,
                self.recipe.shrink_and_perturb_share,
                generator(self.settings.seed, 5).initial_seed() % 2**63,
            )

    def _seconds_per_step(self) -> float:
        """Of the latest rounds, since larger networks are slower."""
        last = self.history.rounds[-3:]
        if len(last) < 2:
            return self.elapsed / max(1, self.state.step)
        return max(1e-6, (last[-1].seconds - last[0].seconds) / (last[-1].step - last[0].step))

    def _record(self, epoch: float) -> None:
        state = self.state
        problem = self.problem
        now = Round(
            state.round,
            epoch,
            state.step,
            self.elapsed,
            self.phase.name,
            state.train_loss,
            *problem.observation(state.model),
            count_parameters(state.model),
            shape_of(state.model),
            depths_of(state.model),
        )
        self.history.rounds.append(now)
        if self.display:
            left = None
            if self.phase.anneal_start is not None:
                left = (
                    self.phase.anneal_start + self.phase.anneal_steps - state.step
                ) * self._seconds_per_step()
            self.display.round(now, left)

    def _say(self, text: str) -> None:
        self.history.notes.append(text)
        self.show(text)

    def show(self, text: str) -> None:
        """On the display alone."""
        if self.display:
            self.display.say(text)

    def report(self, table: tuple[TableRow, ...]) -> Report:
        dataset = self.problem.dataset
        return Report(
            dataset.name,
            dataset.name,
            dataset.task,
            self.problem.metric.label,
            self.settings.seed,
            tuple(self.history.rounds),
            tuple(self.history.changes),
            table,
            tuple(self.history.notes),
            environment(self.settings.device),
        )


def policy_of(settings: Settings, recipe: Recipe) -> Policy:
    if settings.policy not in POLICIES:
        raise RunError(f"policy={settings.policy!r}: unknown; choose one of {', '.join(POLICIES)}")
    return with_settings(
        POLICIES[settings.policy], penalty=recipe.penalty, granularity=recipe.granularity
    )
