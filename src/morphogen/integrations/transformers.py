"""A policy inside a Hugging Face trainer: `Trainer(..., callbacks=[Growth(policy, losses,
example)])`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from morphogen.edit.ledger import ledger_from_json, replay
from morphogen.errors import RunError, Unsupported
from morphogen.policies.controller import Controller
from morphogen.policies.policy import Policy
from morphogen.record import Change, revive, write_atomic
from morphogen.training.train import generator

FILE = "morphogen.json"


class Growth(TrainerCallback):
    """Every `every` optimizer steps the policy may change the model; the trainer's optimizer
    follows, and keeps its state.

    losses: model -> validation loss of each example, shape (n,). example: the positional arguments
    of a call, such as (input_ids,), to trace the model with. loss: model -> training loss, for
    policies that need one. budget: most parameters. seed: of what the policy draws. `changes` lists
    what happened.

    A checkpoint of the trainer keeps the ledger beside the weights. To resume, give the callback
    and a model that `regrown(model, checkpoint, example)` brought to the checkpoint's structure.
    Sizes in `model.config` stay as they are. Raises `Unsupported` with several processes.
    """

    def __init__(
        self,
        policy: Policy,
        losses: Callable[[nn.Module], Tensor],
        example: tuple[Any, ...],
        *,
        every: int = 100,
        loss: Callable[[nn.Module], Tensor] | None = None,
        budget: int | None = None,
        seed: int = 0,
    ) -> None:
        self.policy = policy
        self.losses = losses
        self.example = example
        self.loss = loss
        self.every = every
        self.budget = budget
        self.seed = seed
        self.changes: list[Change] = []
        self.controller: Controller | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if args.world_size > 1:
            raise Unsupported(
                f"Growth: {args.world_size} processes; use morphogen.resize_distributed in your "
                "own loop"
            )
        plain = getattr(given["optimizer"], "optimizer", given["optimizer"])  # accelerate wraps it
        self.controller = Controller(
            given["model"],
            self.policy,
            self.losses,
            self.example,
            budget=self.budget,
            optimizers=[plain],
            loss=self.loss,
        )
        if state.global_step:
            self.controller.restore(_read(_folder(args, state)))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        assert self.controller is not None
        if state.global_step % self.every or self.controller.done:
            return
        draw = generator(self.seed, state.global_step)
        self.changes += self.controller.step(
            state.global_step // self.every, state.epoch or 0.0, draw
        )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert self.controller is not None
        write_atomic(_folder(args, state) / FILE, json.dumps(self.controller.kept()))


def regrown(model: nn.Module, checkpoint: str | Path, example: tuple[Any, ...]) -> nn.Module:
    """`model` itself, as it is first built, at the structure of a checkpoint that a trainer with
    `Growth` wrote.
    """
    replay(model, ledger_from_json(_read(Path(checkpoint))["ledger"]), example)
    return model


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _read(folder: Path) -> dict[str, Any]:
    if not (folder / FILE).exists():
        raise RunError(
            f"{folder} holds no {FILE}: it was written without Growth; resume without it, or from "
            "another checkpoint"
        )
    try:
        kept = json.loads((folder / FILE).read_text())
        revive(_Kept, kept)
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder / FILE} cannot be used ({error}); was it changed by hand?"
        ) from error
    return dict(kept)


@dataclass(frozen=True)
class _Kept:
    """What is in the file, see `Controller.kept`."""

    ledger: list[dict[str, Any]]
    memory: dict[str, Any]
    done: bool
