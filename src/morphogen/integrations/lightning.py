"""A policy inside a Lightning trainer: `Trainer(callbacks=[Growth(policy, losses, example)])`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from morphogen.edit.apply import count_parameters
from morphogen.edit.ledger import ledger_from_json, replay
from morphogen.errors import Unsupported
from morphogen.policies.controller import Controller
from morphogen.policies.policy import Policy
from morphogen.record import Change
from morphogen.tracing.trace import modes_kept
from morphogen.training.train import generator


class Growth(pl.Callback):
    """Every `every` optimizer steps the policy may change the network; the trainer's optimizers
    follow, and keep their state.

    losses: network -> validation loss of each example, shape (n,). example: a batch to trace the
    network with. network: the name of the submodule that changes, "" for the whole module. loss:
    network -> training loss, for policies that need one. budget: most parameters. seed: of what the
    policy draws. `changes` lists what happened; "morphogen/parameters" is logged.

    A checkpoint of the trainer keeps the ledger. To resume, give the same callback and a module as
    it is first built: the structure is replayed before the weights are loaded. Raises `Unsupported`
    with several processes.
    """

    def __init__(
        self,
        policy: Policy,
        losses: Callable[[nn.Module], Tensor],
        example: Tensor | tuple[Any, ...],
        *,
        every: int = 100,
        network: str = "",
        loss: Callable[[nn.Module], Tensor] | None = None,
        budget: int | None = None,
        seed: int = 0,
    ) -> None:
        self.policy = policy
        self.losses = losses
        self.example = example
        self.loss = loss
        self.every = every
        self.network = network
        self.budget = budget
        self.seed = seed
        self.changes: list[Change] = []
        self.controller: Controller | None = None
        self._kept: dict[str, Any] | None = None
        self._seen = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            raise Unsupported(
                f"Growth: {trainer.world_size} processes; use morphogen.resize_distributed in your "
                "own loop"
            )
        # of all hooks, only the module's own is called between reading a checkpoint and loading its
        # weights
        replay = partial(self._replay, pl_module, pl_module.on_load_checkpoint)
        pl_module.on_load_checkpoint = replay  # type: ignore[method-assign]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        vars(pl_module).pop("on_load_checkpoint", None)

    def _replay(
        self,
        module: pl.LightningModule,
        then: Callable[[dict[str, Any]], None],
        checkpoint: dict[str, Any],
    ) -> None:
        if kept := checkpoint.get("callbacks", {}).get(self.state_key):
            self._kept = kept
            replay(self._network(module), ledger_from_json(kept["ledger"]), self.example)
        then(checkpoint)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.controller = Controller(
            self._network(pl_module),
            self.policy,
            self.losses,
            self.example,
            budget=self.budget,
            optimizers=trainer.optimizers,
            loss=self.loss,
        )
        self._seen = trainer.global_step
        if self._kept:
            self.controller.restore(self._kept)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert self.controller is not None
        step = trainer.global_step
        # gradients that are still accumulated would be lost, so only right after a step of the
        # optimizer
        if step == self._seen or step % self.every or self.controller.done:
            return
        self._seen = step
        with modes_kept(pl_module):
            self.changes += self.controller.step(
                step // self.every, trainer.current_epoch, generator(self.seed, step)
            )
        pl_module.log("morphogen/parameters", float(count_parameters(self.controller.model)))

    def state_dict(self) -> dict[str, Any]:
        return self.controller.kept() if self.controller else self._kept or {}

    def _network(self, module: pl.LightningModule) -> nn.Module:
        return module.get_submodule(self.network)
