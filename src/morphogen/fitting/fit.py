"""The main job: data in, a network of the right shape out.

    fit(dataset) -> Fitted

Starts from a tiny network. While it trains, a controller adds and removes units and blocks as the
policy and the learned depths ask (phase "grow"). Once nothing pays any more, the structure stays
and the learning rate falls to zero (phase "anneal"). The result is frozen into plain modules. One
part of the training rows is held out for all these decisions; the test part is used for nothing but
the final scores.
"""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from morphogen.bounds.box import bounding_box
from morphogen.data.dataset import Dataset
from morphogen.draws import own_draws
from morphogen.edit.apply import count_parameters
from morphogen.edit.checkpoint import fill_optimizer, model_tensors, optimizer_tensors
from morphogen.edit.ledger import ledger_from_json, ledger_to_json, replay
from morphogen.environment import environment
from morphogen.errors import DataError, MorphogenError, RunError
from morphogen.fitting.recipe import Recipe, recipe_for
from morphogen.folder import claimed
from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.layers.dag.module import Dag
from morphogen.layers.depth import LearnedDepth
from morphogen.layers.penalty import quadratic
from morphogen.layers.stack import reinitialised
from morphogen.models import convnet, dagnet, depths_of, mlp, shape_of
from morphogen.policies import POLICIES
from morphogen.policies.controller import Controller
from morphogen.policies.cost import weighed
from morphogen.policies.policy import Policy, with_settings
from morphogen.record import Certificate, Change, Report, Round, Row, from_json, revive, to_json
from morphogen.training.train import Batches, Diverged, State, generator, predict, train
from morphogen.transforms.compress import compress
from morphogen.transforms.freeze import freeze

CHECKPOINT = "checkpoints/last.safetensors"
_WORTH_THREADS = 50_000  # numbers in a batch from which several threads are faster than one
CHECKPOINT_SECONDS = 1.0  # a checkpoint is written at a round's end, at most so often
_VERSION = 2
# spreads from 0 up to which a target stays in float32, which rounds it there to 3e-5 of its spread
FAR = 1000
_LOOKED_AT = 2000  # validation examples of one look; more would cost time and decide nothing
_SEARCHED = 4  # training batches that the weights of new units are searched on
_HELD_OUT = 6000  # most rows that are ever held out for decisions


class Display(Protocol):
    """Where progress is shown; `morphogen.report.live` has three."""

    def round(self, r: Round, time_left: float | None) -> None: ...
    def change(self, c: Change) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass(frozen=True)
class Settings:
    """What a user may ask for. budget: most parameters. seconds: for the search. policy:
    a name of POLICIES. wiring: a name of WIRINGS.
    """

    budget: int | None = None
    seed: int = 0
    seconds: float | None = None
    device: str = "cpu"
    policy: str = "trial"
    wiring: str = "layers"


WIRINGS = {
    "layers": tuple(POLICIES),
    "dag": tuple(name for name in POLICIES if name not in ("gradmax", "natural")),
}
"""What a network starts from, layers with a learned depth or neurons that read everything before
them, and the policies that can change it: a DAG's operation cannot be differentiated twice, as
gradmax and natural would.
"""


@dataclass(frozen=True)
class Fitted:
    """The outcome. model: as trained, with gates and norms. plain: the same function in plain
    modules (regression: in the target's unit, and in float64 where the target is so far from 0 that
    float32 would lose it). ledger: every edit from the first network. seconds: of the search.
    compression: where `compressed` made `plain` smaller, what proves it.
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
) -> Fitted:
    """`fit` in a folder that the caller has claimed."""
    settings = settings or Settings()
    with own_draws(settings.seed, settings.device):
        run = _Search(dataset, settings, recipe, folder, display)
        with _threads(run.problem):
            if resume:
                run.load()
            run.run()
            return run.result()


@dataclass
class _Phase:
    """Where the schedule is. Growth has an open end; once `anneal_start` is set the rate falls over
    `anneal_steps`.
    """

    anneal_start: int | None = None
    anneal_steps: int = 0

    @property
    def name(self) -> str:
        return "grow" if self.anneal_start is None else "anneal"

    def rate(self, step: int, recipe: Recipe) -> float:
        warm = min(1.0, (step + 1) / recipe.warm_up)
        if self.anneal_start is None:
            return recipe.rate * warm
        return recipe.rate * warm * max(0.0, 1 - (step - self.anneal_start) / self.anneal_steps)

    def smoothing(self, recipe: Recipe) -> float:
        """Of the labels: only once no more trials are judged by the loss."""
        return 0.0 if self.anneal_start is None else recipe.smoothing


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
    phase: _Phase
    memory: Any
    report: str
    seconds: float


@dataclass
class _History:
    rounds: list[Round] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Problem:
    """A data set as tensors on a device, with its split, loss and score."""

    def __init__(self, dataset: Dataset, recipe: Recipe | None, settings: Settings) -> None:
        seed, device, self.wiring = settings.seed, settings.device, settings.wiring
        self.dataset, self.regression = dataset, dataset.task == "regression"
        # a DAG knows no neighbours
        self.images = dataset.x_train.ndim == 4 and settings.wiring == "layers"
        inside, held = _split(dataset, seed)
        self.recipe = recipe or recipe_for(self.images, len(inside), dataset.flip)
        y = dataset.y_train.astype(np.float64)
        self.mean, self.scale = (
            (float(y.mean()), float(y.std()) or 1.0) if self.regression else (0.0, 1.0)
        )
        self.device = torch.device(device)
        x = torch.as_tensor(dataset.x_train, device=self.device)
        target = self._target(dataset.y_train)
        self.x, self.y = x[inside], target[inside]
        looked = held[:_LOOKED_AT]
        self.looked = (x[looked], target[looked])
        self.outputs = 1 if self.regression else max(2, len(dataset.classes))
        self.batches = Batches(
            self.x,
            self.y,
            min(self.recipe.batch, len(self.x)),
            seed,
            self.recipe.shift,
            self.recipe.flip,
        )

    def _target(self, y: np.ndarray) -> Tensor:
        if self.regression:
            return torch.as_tensor(
                (y.astype(np.float64) - self.mean) / self.scale,
                dtype=torch.float32,
                device=self.device,
            )
        return torch.as_tensor(y, dtype=torch.long, device=self.device)

    @property
    def example(self) -> Tensor:
        """A few rows to trace and to compare with; at least two."""
        return self.x[:64] if len(self.x) > 1 else self.x.repeat(2, *(1,) * (self.x.dim() - 1))

    def build(self) -> nn.Module:
        """The first, tiny network."""
        width, dropout = self.recipe.width, self.recipe.dropout
        if self.wiring == "dag":
            return dagnet(self.x[0].numel(), self.outputs, width)
        if self.images:
            channels, height, breadth = self.x.shape[1:]
            model = convnet((channels, height, breadth), self.outputs, width, dropout)
            # up to twice as fast on a CPU, where widths are multiples of 8
            return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
        return mlp(self.x.shape[1], self.outputs, width, dropout)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """Task loss of a batch, with smoothed labels where asked, plus the price of the depths."""
        out = model(x)
        loss = (
            F.mse_loss(out[:, 0], y)
            if self.regression
            else F.cross_entropy(out, y, label_smoothing=smoothing)
        )
        for depth in _depths(model):
            loss = loss + quadratic(depth, self.recipe.depth_penalty)
        return loss

    def losses(self, model: nn.Module) -> Tensor:
        """Loss of each validation example that is looked at, shape (n,)."""
        return self._losses(predict(model, self.looked[0]), self.looked[1])

    def observation(self, model: nn.Module) -> tuple[float, float]:
        """Mean loss and score on the validation examples that are looked at."""
        out = predict(model, self.looked[0])
        return float(self._losses(out, self.looked[1]).mean()), self._score(out, self.looked[1])

    def _losses(self, out: Tensor, y: Tensor) -> Tensor:
        return (
            (out[:, 0] - y).square()
            if self.regression
            else F.cross_entropy(out, y, reduction="none")
        )

    def _score(self, out: Tensor, y: Tensor) -> float:
        """Accuracy, or RMSE in the target's unit."""
        if self.regression:
            return float((out[:, 0] - y).double().square().mean().sqrt()) * self.scale
        return float((out.argmax(1) == y).double().mean())

    def test_score(self, model: nn.Module) -> float | None:
        """The score on the test part, None where there is none."""
        if not len(self.dataset.x_test):
            return None
        out = predict(model, torch.as_tensor(self.dataset.x_test, device=self.device))
        return self._score(out, self._target(self.dataset.y_test))


def optimizer_for(model: nn.Module, recipe: Recipe) -> Optimizer:
    """AdamW in three groups: matrices and kernels (decayed), vectors, and learned depths (their own
    rate).
    """
    depths = [depth.w for depth in _depths(model)]
    # a matrix without its zeros
    flat = {id(m.weight) for m in model.modules() if isinstance(m, Dag)}
    others = [p for p in model.parameters() if not any(p is w for w in depths)]
    groups = [
        {
            "params": [p for p in others if p.dim() > 1 or id(p) in flat],
            "weight_decay": recipe.decay,
        },
        {"params": [p for p in others if p.dim() <= 1 and id(p) not in flat], "weight_decay": 0.0},
        {"params": depths, "weight_decay": 0.0, "scale": recipe.depth_scale},
    ]
    return AdamW(groups, lr=recipe.rate, betas=(0.9, 0.99), fused=True)


@torch.no_grad()
def shrink_and_perturb(model: nn.Module, share: float, seed: int) -> None:
    """Every weight goes part of the way to a freshly drawn one; learned depths stay.

    A network that was grown ends behind the same shape trained from scratch: it starts its long
    training from where short training of a smaller network led, with units that are dead. Source:
    Ash & Adams 2020, "On warm-starting neural network training", shrink and perturb. Measured on
    held-out rows of Fashion-MNIST, share 0.5: +0.32 and +0.25 points on two seeds, and fewer dead
    units; a share of 1 loses 0.58.
    """
    with own_draws(seed, model):
        fresh = reinitialised(copy.deepcopy(model))
    depths = {id(depth.w) for depth in _depths(model)}
    for old, new in zip(model.parameters(), fresh.parameters(), strict=True):
        if id(old) not in depths:
            old.lerp_(new, share)


class _Search:
    """One run: what `train` and the controller remember, and the checkpoint of both."""

    def __init__(
        self,
        dataset: Dataset,
        settings: Settings,
        recipe: Recipe | None,
        folder: Path | None,
        display: Display | None,
    ) -> None:
        if settings.wiring not in WIRINGS:
            raise RunError(
                f"wiring={settings.wiring!r}: unknown; choose one of {', '.join(WIRINGS)}"
            )
        if settings.policy in POLICIES and settings.policy not in (
            able := WIRINGS[settings.wiring]
        ):
            known = f"wiring={settings.wiring}; choose one of {', '.join(able)}"
            raise RunError(f"policy={settings.policy}: cannot change a network of {known}")
        self.problem = Problem(dataset, recipe, settings)
        self.recipe, self.settings, self.folder, self.display = (
            self.problem.recipe,
            settings,
            folder,
            display,
        )
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
            _policy(settings, self.recipe),
            self.problem.losses,
            self.problem.example[:2],
            budget=settings.budget,
            cost=weighed(self.problem.example[:2], self.recipe.operations),
            loss=self._training_loss,
            optimizers=[self.state.optimizer],
        )
        self.phase, self.history = _Phase(), _History(notes=list(dataset.notes))
        self.before = 0.0  # seconds of earlier sessions of this run
        self.began = self.saved = time.perf_counter()

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
        draw, epoch = (
            generator(state.seed, 4, state.round),
            state.step / self.problem.batches.per_epoch,
        )
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
        if self.folder and (state.stop or time.perf_counter() - self.saved > CHECKPOINT_SECONDS):
            self.save()

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
        per_epoch, steps = self.problem.batches.per_epoch, self.recipe.steps
        wanted = max(self.recipe.anneal * self.state.step, self.recipe.epochs * per_epoch)
        if self.settings.seconds is not None:
            wanted = min(wanted, (self.settings.seconds - self.elapsed) / self._seconds_per_step())
        self.phase = _Phase(self.state.step, max(1, math.ceil(wanted / steps)) * steps)
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
        state, problem = self.state, self.problem
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
        if self.display:
            self.display.say(text)

    # Checkpoint: base settings + ledger + tensors
    # ----------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "data": self.problem.dataset.fingerprint,
            "settings": {
                k: v for k, v in asdict(self.settings).items() if k not in ("seconds", "device")
            },
            "recipe": asdict(self.recipe),
        }

    def save(self) -> None:
        """Write the checkpoint."""
        assert self.folder is not None
        state = self.state
        about = {
            **self._identity(),
            "ledger": ledger_to_json(self.controller.ledger),
            "state": {f.name: getattr(state, f.name) for f in fields(_Counters)},
            "phase": asdict(self.phase),
            "memory": self.controller.memory,
            "report": to_json(self._report(())),
            "seconds": self.elapsed,
        }
        path = self.folder / CHECKPOINT
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(
            path,
            {**model_tensors(state.model), **optimizer_tensors(state.model, state.optimizer)},
            about,
        )
        self.saved = time.perf_counter()

    def load(self) -> None:
        """Go on from the checkpoint in the folder."""
        assert self.folder is not None
        tensors, about = load_tensors(self.folder / CHECKPOINT)
        if not isinstance(about, dict):
            raise RunError(
                f"the checkpoint in {self.folder} is of something else; choose another folder"
            )
        for key, value in self._identity().items():
            if about.get(key) != value:
                raise RunError(
                    f"the checkpoint in {self.folder} belongs to another run (its {key}: "
                    f"{about.get(key)}, now: {value}); resume with the same data and options, or "
                    "choose another folder"
                )
        try:
            self._take(tensors, revive(_Saved, about))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise RunError(
                f"the checkpoint in {self.folder} cannot be used ({said}); was it changed by hand?"
            ) from error
        self._say_only(f"resumed after round {self.state.round} ({self.before:.0f} s)")

    def _take(self, tensors: dict[str, Tensor], saved: "_Saved") -> None:
        state = self.state
        ledger = ledger_from_json(saved.ledger)
        replay(ledger, state.model, self.problem.example[:2], optimizers=[state.optimizer])
        with torch.no_grad():
            for name, tensor in model_tensors(state.model).items():
                if tensor.shape != tensors[name].shape:
                    raise ValueError(
                        f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
                    )
                tensor.copy_(tensors[name])
        fill_optimizer(state.model, state.optimizer, tensors)
        for key, value in asdict(saved.state).items():
            setattr(state, key, value)
        self.phase = saved.phase
        self.controller.resume(ledger, saved.memory)
        report = from_json(Report, saved.report)
        self.history = _History(list(report.rounds), list(report.changes), list(report.notes))
        self.before = saved.seconds

    def _say_only(self, text: str) -> None:
        if self.display:
            self.display.say(text)

    def _report(self, table: tuple[Row, ...]) -> Report:
        dataset = self.problem.dataset
        return Report(
            dataset.name,
            dataset.name,
            dataset.task,
            dataset.metric,
            self.settings.seed,
            tuple(self.history.rounds),
            tuple(self.history.changes),
            table,
            tuple(self.history.notes),
            environment(self.settings.device),
        )

    def result(self) -> Fitted:
        """Freeze, score and report."""
        seconds, problem = self.elapsed, self.problem
        plain, certificate = freeze(self.state.model, problem.example)
        assert isinstance(plain, nn.Sequential)
        row = Row("found by morphogen", problem.test_score(plain), count_parameters(plain), seconds)
        if problem.regression:
            if abs(problem.mean) > FAR * problem.scale:
                plain.double()
            _to_unit(plain, problem.mean, problem.scale)
        return Fitted(
            self.state.model.eval(),
            plain,
            certificate,
            self._report((row,)),
            tuple(self.controller.ledger),
            self.recipe,
            self.settings,
            seconds,
        )


def compressed(fitted: Fitted, dataset: Dataset) -> Fitted:
    """With a smaller `plain` that is the same function on the box that just holds the training
    rows, and a row of its own.
    """
    began = time.perf_counter()
    rows = torch.as_tensor(dataset.x_train)
    small, certificate = compress(
        fitted.plain, bounding_box(rows), samples=rows[:_LOOKED_AT], seconds=10
    )
    assert isinstance(small, nn.Sequential)
    small = small.to(next(fitted.plain.parameters()).dtype)
    problem = Problem(dataset, fitted.recipe, fitted.settings)
    judged = copy.deepcopy(small)
    if problem.regression:
        # the score is in the target's own spread
        _to_unit(judged, -problem.mean / problem.scale, 1 / problem.scale)
    row = Row(
        "the same, compressed",
        problem.test_score(judged),
        count_parameters(small),
        time.perf_counter() - began,
    )
    report = replace(fitted.report, table=(*fitted.report.table, row))
    return replace(fitted, plain=small, compression=certificate, report=report)


def scratch(fitted: Fitted, dataset: Dataset) -> Row:
    """The honest control: the shape that was found, trained from new weights for as many steps by
    the same recipe.

    Its depths start where they ended, so that all blocks take part from the first step.
    """
    problem = Problem(dataset, fitted.recipe, fitted.settings)
    with _threads(problem), own_draws(fitted.settings.seed + 1, problem.device):
        return _scratch(fitted, problem)


def _scratch(fitted: Fitted, problem: Problem) -> Row:
    began = time.perf_counter()
    model = problem.build().to(problem.device)
    replay(fitted.ledger, model, problem.example[:2])
    for ours, theirs in zip(_depths(model), _depths(fitted.model), strict=True):
        ours.w.data.copy_(theirs.w.data)
    reinitialised(model)
    last, recipe = fitted.report.rounds[-1], fitted.recipe
    grown = next((r.step for r in fitted.report.rounds if r.phase == "anneal"), last.step)
    state = State(model, optimizer_for(model, recipe), fitted.settings.seed)
    for phase, until in ((_Phase(), grown), (_Phase(grown, max(1, last.step - grown)), last.step)):
        train(
            state,
            problem.batches,
            partial(problem.objective, smoothing=phase.smoothing(recipe)),
            partial(phase.rate, recipe=recipe),
            steps=recipe.steps,
            rounds=until // recipe.steps,
        )
    seconds = time.perf_counter() - began
    plain, _ = freeze(model, problem.example)
    return Row(
        "same shape from scratch", problem.test_score(plain), count_parameters(plain), seconds
    )


@contextmanager
def _threads(problem: Problem) -> Iterator[None]:
    """One thread where a batch is small. Two would be no faster, waiting for each other at every
    operation, and many times slower once another process wants a core; and the result would depend
    on how many there are.
    """
    before = torch.get_num_threads()
    if problem.batches.size * problem.x[0].numel() < _WORTH_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _split(dataset: Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows held out): a tenth, at least 200 where that is at most a quarter,
    stratified where possible.
    """
    n = len(dataset.x_train)
    if n < 2:
        raise DataError(f"{n} sample in the training part; give at least 2")
    held = min(max(1, n // 10, min(200, n // 4)), _HELD_OUT)
    rows, y = np.arange(n), dataset.y_train
    stratify = None
    if dataset.task == "classification":
        _, counts = np.unique(y, return_counts=True)
        stratify = (
            y if counts.min() >= 2 and held >= len(counts) and n - held >= len(counts) else None
        )
    inside, out = train_test_split(
        rows, test_size=held, random_state=seed % 2**32, stratify=stratify
    )
    return inside, out


def _policy(settings: Settings, recipe: Recipe) -> Policy:
    if settings.policy not in POLICIES:
        raise RunError(f"policy={settings.policy!r}: unknown; choose one of {', '.join(POLICIES)}")
    return with_settings(
        POLICIES[settings.policy], penalty=recipe.penalty, granularity=recipe.granularity
    )


def _depths(model: nn.Module) -> list[LearnedDepth]:
    return [m for m in model.modules() if isinstance(m, LearnedDepth)]


@torch.no_grad()
def _to_unit(plain: nn.Sequential, mean: float, scale: float) -> None:
    """Fold the target's standardisation into the last layer, computed in float64 whatever its own
    type.
    """
    last = plain[-1]
    assert isinstance(last, nn.Linear)
    last.weight.copy_(last.weight.double() * scale)
    last.bias.copy_(last.bias.double() * scale + mean)
