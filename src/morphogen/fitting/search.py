"""The search for a shape while a network trains: `Search`."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from morphogen.edit.apply import count_parameters
from morphogen.edit.checkpoint import fill_optimizers, model_tensors, optimizer_tensors
from morphogen.edit.edit import Shrink
from morphogen.edit.ledger import replay
from morphogen.environment import environment
from morphogen.errors import MorphogenError, RunError
from morphogen.fitting.feature_elimination import eliminate, take_over
from morphogen.fitting.problem import WIRINGS, Problem, Settings
from morphogen.fitting.recipe import Recipe
from morphogen.fitting.schedule import Phase, optimizer_for, shrink_and_perturb
from morphogen.models import depths_of, shape_of
from morphogen.policies import POLICIES
from morphogen.policies.controller import Controller
from morphogen.policies.cost import weighed
from morphogen.policies.policy import Policy, Proposal, with_settings
from morphogen.record import Change, Report, Round, TableRow
from morphogen.training.train import Diverged, State, generator, train

_WORTH_SAYING = 0.01  # share by which the validation loss must have risen
CHECKPOINT_SECONDS = 1.0  # a checkpoint is written at a round's end, at most so often
_SELECT_AT = 0.75  # share of the annealing phase after which input features are selected
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


@dataclass(frozen=True)
class Best:
    """The network with the least validation loss so far. edits: how many of the ledger led to it.
    tensors: its own and its optimizer's.
    """

    loss: float
    round: int
    edits: int
    tensors: dict[str, Tensor]


class Search:
    """One run: what `train` and the controller remember. keep: writes a checkpoint, at a round's
    end. before: seconds that this run has taken already.
    """

    def __init__(
        self,
        problem: Problem,
        settings: Settings,
        keep: Keep | None = None,
        display: Display | None = None,
        before: float = 0.0,
    ) -> None:
        self.problem = problem
        self.recipe = problem.recipe
        self.settings = settings
        self.keep = keep
        self.display = display
        model = first_network(problem, settings)
        self.state = State(model, optimizer_for(model, self.recipe), settings.seed)
        self.controller = self._controller()
        self.phase = Phase()
        self.best: Best | None = None
        self.history = History(notes=list(problem.dataset.notes))
        if problem.linear is not None:
            self._say("no hidden layer: a linear model says nearly all there is to learn")
        self.before = before
        self.began = self.saved = time.perf_counter()
        self.stopping: Callable[[], bool] = lambda: False

    def _controller(self) -> Controller:
        return Controller(
            self.state.model,
            policy_of(self.settings, self.recipe),
            self.problem.losses,
            self.problem.example[:2],
            budget=self.settings.budget,
            cost=weighed(self.problem.example[:2], self.recipe.operations),
            loss=self._training_loss,
            optimizers=[self.state.optimizer],
        )

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
                        m, x, y, self.phase.smoothing(self.state.step, self.recipe)
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
        epoch = state.step / self.problem.batches.per_epoch
        growing = self.phase.anneal_start is None
        if growing:
            for change in self.controller.step(state.round, epoch, draw):
                self.history.changes.append(change)
                if self.display:
                    self.display.change(change)
        elif self._features_due():
            self._select_features()
        self._record(epoch)
        self._keep_best()
        ended = not growing and self._annealed()
        if growing and self._grown():
            self._settle()
        by_hand = not ended and self.stopping()
        if by_hand:
            self._save()  # as the run is, so that it can be gone on with
        state.stop = ended or by_hand
        if state.stop:
            self._restore_best("is kept")
        if ended or (not by_hand and time.perf_counter() - self.saved > CHECKPOINT_SECONDS):
            self._save()

    def _save(self) -> None:
        if self.keep:
            self.keep(self)
            self.saved = time.perf_counter()

    def _grown(self) -> bool:
        over = self.state.round >= self.recipe.rounds
        return self.controller.done or over or self._late(0.5)

    def _annealed(self) -> bool:
        assert self.phase.anneal_start is not None
        end = self.phase.anneal_start + self.phase.anneal_steps
        return self.state.step >= end or self._late(1.0)

    def _keep_best(self) -> None:
        now = self.history.rounds[-1]
        if self.best is None or now.valid_loss < self.best.loss:
            tensors = {
                name: tensor.detach().clone()
                for name, tensor in training_tensors(self.state).items()
            }
            edits = len(self.controller.ledger)
            self.best = Best(now.valid_loss, now.round, edits, tensors)

    def _restore_best(self, fate: str) -> None:
        """Go back to the round with the least validation loss, and to its structure. fate: what
        becomes of that network, for the user.
        """
        best = self.best
        last = self.history.rounds[-1]
        if best is None or best.round == last.round:
            return
        undone = len(self.controller.ledger) - best.edits
        if undone:
            self._rebuild(best.edits)
            self.history.changes = [c for c in self.history.changes if c.round <= best.round]
        fill_training(self.state, best.tensors)
        if last.valid_loss > best.loss * (1 + _WORTH_SAYING):
            taken = f" and {undone} later changes are taken back" if undone else ""
            self._say(
                f"validation loss was least in round {best.round} ({best.loss:.4g}) and rose to "
                f"{last.valid_loss:.4g} by round {last.round}: the network of round {best.round} "
                f"{fate}{taken}"
            )

    def _rebuild(self, edits: int) -> None:
        """The network after so many edits, with new weights."""
        model = self.problem.build().to(self.problem.device)
        self.state.model = model
        self.state.optimizer = optimizer_for(model, self.recipe)
        ledger = self.controller.ledger[:edits]
        example = self.problem.example[:2]
        replay(model, ledger, example, optimizers=[self.state.optimizer])
        memory = self.controller.memory
        done = self.controller.done
        self.controller = self._controller()
        self.controller.resume(ledger, memory)
        self.controller.done = done

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
        self._restore_best("is trained on")
        if self.recipe.smoothing and self.best:  # losses of another objective do not compare
            self.best = replace(self.best, loss=math.inf)
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

    def _features_due(self) -> bool:
        """Whether the annealing phase is so far with this round, and was not before."""
        start = self.phase.anneal_start
        if start is None:
            return False
        at = start + _SELECT_AT * self.phase.anneal_steps
        return self.state.step >= at > self.state.step - self.recipe.steps

    def _select_features(self) -> None:
        """Let the input features leave that do not pay; training goes on without them. While the
        learning rate was high its noise would hide what they bring.
        """
        model = self.state.model
        if "features" not in dict(model.named_children()):
            return
        draw = generator(self.settings.seed, 6)
        fewer = eliminate(
            model,
            self.problem.x,
            self.problem.losses,
            self.recipe.feature_penalty,
            not self.problem.regression,
            draw,
        )
        if fewer is None:
            return
        reason = f"{len(fewer.drop)} did not pay: validation loss {fewer.rise:+.4f} without them"
        epoch = self.state.step / self.problem.batches.per_epoch
        edit = Shrink("features", fewer.drop)
        change = self.controller.apply(Proposal(edit, reason), self.state.round, epoch, draw)
        take_over(model, fewer)
        self.history.changes.append(change)
        if self.display:
            self.display.change(change)
        assert self.best is not None
        self.best = replace(self.best, loss=math.inf)  # rounds before read what has left

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
            None if self.best is None else self.best.round,
        )


def first_network(problem: Problem, settings: Settings) -> nn.Module:
    """What a search begins with. Raises `RunError` for settings that cannot be kept."""
    policy_of(settings, problem.recipe)
    if settings.wiring not in WIRINGS:
        raise RunError(f"wiring={settings.wiring!r}: unknown; choose one of {', '.join(WIRINGS)}")
    unable = WIRINGS[settings.wiring]
    if settings.policy in unable:
        able = ", ".join(name for name in POLICIES if name not in unable)
        raise RunError(
            f"policy={settings.policy}: cannot change a network of wiring={settings.wiring}; "
            f"choose one of {able}"
        )
    model = problem.build().to(problem.device)
    parameters = count_parameters(model)
    if settings.budget is not None and parameters > settings.budget:
        raise RunError(
            f"budget={settings.budget}: the smallest network for this data has {parameters} "
            "parameters"
        )
    return model


def training_tensors(state: State) -> dict[str, Tensor]:
    """By name, those of the model and of its optimizer."""
    return {**model_tensors(state.model), **optimizer_tensors(state.model, [state.optimizer])}


@torch.no_grad()
def fill_training(state: State, tensors: Mapping[str, Tensor]) -> None:
    """Put in what `training_tensors` gave. Raises `ValueError` where a shape differs."""
    for name, tensor in model_tensors(state.model).items():
        if tensor.shape != tensors[name].shape:
            given = tuple(tensors[name].shape)
            raise ValueError(f"{name} has shape {given}, not {tuple(tensor.shape)}")
        tensor.copy_(tensors[name])
    fill_optimizers(state.model, [state.optimizer], tensors)


def policy_of(settings: Settings, recipe: Recipe) -> Policy:
    if settings.policy not in POLICIES:
        raise RunError(f"policy={settings.policy!r}: unknown; choose one of {', '.join(POLICIES)}")
    asked = {
        "penalty": recipe.penalty,
        "granularity": recipe.granularity,
        "min_delta": recipe.min_delta,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return with_settings(POLICIES[settings.policy], **given)
