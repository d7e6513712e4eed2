"""The hook that lets a policy, and the learned depths and widths, change a model in training."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.edit.adapt import asked, learned
from morphogen.edit.apply import apply_, count_parameters, prove
from morphogen.edit.blocks import stacks
from morphogen.edit.edit import AddBlock, DropBlock, Edit, Grow, Shrink, Split
from morphogen.edit.inits.constant import INITS, normal
from morphogen.edit.inits.firefly import firefly
from morphogen.edit.inits.gradmax import gradmax
from morphogen.edit.ledger import ledger_from_json, ledger_to_json
from morphogen.edit.plan import Plan, live_size, plan, tensors_of
from morphogen.edit.preserve_state import preserve_state
from morphogen.errors import MorphogenError, PlanError
from morphogen.layers.protocol import has_units
from morphogen.measures.importance import unit_importance
from morphogen.measures.natural import natural_norm
from morphogen.policies.budget import within
from morphogen.policies.cost import Cost
from morphogen.policies.policy import Init, Memory, Observation, Policy, Proposal
from morphogen.record import Change
from morphogen.tracing.trace import modes_kept, trace
from morphogen.tracing.widths import Width, widths

Loss = Callable[[nn.Module], Tensor]

# How new units start, perhaps searched for on training examples: (model, plan, gives the loss,
# generator) -> arguments of apply_.
SEARCHES: dict[
    Init, Callable[[nn.Module, Plan, Callable[[], Loss], torch.Generator], dict[str, Any]]
] = {
    "": lambda model, plan, loss, generator: {},
    "random": lambda model, plan, loss, generator: {
        "inits": INITS | dict.fromkeys(("in", "in a group"), normal(0.01))
    },
    "gradmax": lambda model, plan, loss, generator: {
        "inits": gradmax(model, plan, loss(), generator)
    },
    "firefly": lambda model, plan, loss, generator: {
        "values": firefly(model, plan, loss(), generator).values
    },
}


class Controller:
    """Asks the policy after each round, clips its answer to the budget, carries it out and keeps
    the ledger.

    policy: None lets learned depths and widths alone decide. losses: model -> validation loss of
    each example, shape (n,); it may set modes, and so may `cost` and `loss`: an evaluation leaves
    every module in the mode that it was in. example: a batch to trace the model with. budget: most
    parameters. cost: what the policy's penalty is charged on. loss: model -> training loss, a
    scalar that can be differentiated; some policies need it to choose what new units compute.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: Policy | None,
        losses: Callable[[nn.Module], Tensor],
        example: Tensor | tuple[Any, ...],
        *,
        optimizers: Sequence[Optimizer] = (),
        budget: int | None = None,
        cost: Cost = count_parameters,
        loss: Callable[[nn.Module], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.optimizers = tuple(optimizers)
        self.policy = policy
        self.losses = losses
        self.example = example
        self.budget = budget
        self.cost = cost
        self._loss = loss
        self.memory: Memory = policy.start() if policy else {}
        self.ledger: list[Edit] = []
        self.done = False
        self._widths: dict[str, Width] | None = None
        self._free: tuple[str, ...] | None = None

    def resume(self, ledger: Sequence[Edit], memory: Memory) -> None:
        """Go on as the controller that kept this ledger and memory; the model has been brought
        there already.
        """
        self.ledger = list(ledger)
        self.memory = memory
        self._widths = None

    def kept(self) -> dict[str, Any]:
        """Ledger, memory and whether it is done, JSON-ready; `restore` is the inverse."""
        return {"ledger": ledger_to_json(self.ledger), "memory": self.memory, "done": self.done}

    def restore(self, kept: dict[str, Any]) -> None:
        """`resume`, from what `kept` gave."""
        self.resume(ledger_from_json(kept["ledger"]), kept["memory"])
        self.done = kept["done"]

    @property
    def widths(self) -> dict[str, Width]:
        """The model's widths; traced again only after a block came or went."""
        if self._widths is None:
            self._widths = widths(trace(self.model, self.example))
            self._free = None
        return self._widths

    def sizes(self) -> dict[str, int]:
        """Widths that can change, and their live sizes."""
        tensors = tensors_of(self.model)
        return {name: live_size(self.widths, name, tensors) for name in self._movable()}

    def _movable(self) -> tuple[str, ...]:
        """The widths whose growth the forward pass carries; sizes that are written into it are
        found by shapes alone.
        """
        known = self.widths
        if self._free is None:
            # a learned width decides for itself
            own = {
                learned(known, f"{name}.{module.unit_tensor()}".removeprefix("."))
                for name, module in self.model.named_modules()
                if has_units(module)
            }
            self._free = tuple(
                name
                for name in known
                if not known[name].fixed and name not in own and self._carries(name)
            )
        return self._free

    def _carries(self, width: str) -> bool:
        try:
            prove(self.model, plan(self.model, self.widths, [Grow(width, 1)]), self.example)
        except MorphogenError:
            return False
        return True

    def step(self, round: int, epoch: float, generator: torch.Generator) -> list[Change]:
        """One observation: decide, change the model and every optimizer, and say what changed.
        Every module stays in its mode.
        """
        with modes_kept(self.model):
            return self._step(round, epoch, generator)

    def _step(self, round: int, epoch: float, generator: torch.Generator) -> list[Change]:
        proposals = [] if self.policy is None else self._decided(self.policy, round, generator)
        if not self.done:
            proposals = [
                *proposals,
                *(Proposal(edit, why) for edit, why in asked(self.model, lambda: self.widths)),
            ]
        return [
            self.apply(p, round, epoch, generator)
            for p in within(proposals, self.budget, self._count)
        ]

    def _decided(self, policy: Policy, round: int, generator: torch.Generator) -> list[Proposal]:
        expansion = partial(self._expansion, generator=generator, searched={})
        with preserve_state(self.model):
            losses = self.losses(self.model)
        with preserve_state(self.model):
            cost = self.cost(self.model)
        gains = partial(self._gains, generator)
        observation = Observation(
            round, self.sizes(), cost, losses, self._attempt, self._importance, expansion, gains
        )
        with modes_kept(self.model):
            proposals, self.memory, self.done = policy.decide(observation, self.memory, generator)
        return proposals

    def apply(
        self, proposal: Proposal, round: int, epoch: float, generator: torch.Generator
    ) -> Change:
        """Carry out one edit, whoever proposes it, and remember it."""
        edit = proposal.edit
        before = count_parameters(self.model)
        blocks = self._blocks(edit)
        planned = plan(self.model, self.widths, [edit])
        if proposal.seed is not None:
            generator = torch.Generator().manual_seed(proposal.seed)
        how = SEARCHES[proposal.init](self.model, planned, lambda: self.loss, generator)
        applied = apply_(
            self.model, planned, optimizers=self.optimizers, generator=generator, **how
        )
        if not isinstance(edit, (Grow, Shrink, Split)):
            self._widths = None
        where, sizes = next(iter({**blocks, **applied.receipt.sizes}.items()))
        self.ledger.append(edit)
        counts = (before, count_parameters(self.model))
        return Change(round, epoch, where, *sizes, proposal.reason, counts)

    def _blocks(self, edit: Edit) -> dict[str, tuple[int, int]]:
        """The stack that an edit makes longer or shorter, and how many blocks it has before and
        after.
        """
        if not isinstance(edit, (AddBlock, DropBlock)):
            return {}
        count = len(stacks(self.model)[edit.module])
        return {edit.module: (count, count + (1 if isinstance(edit, AddBlock) else -1))}

    def _attempt(
        self, edits: Sequence[Edit], init: Init = "", seed: int = 0, /
    ) -> tuple[Tensor, float]:
        generator = torch.Generator().manual_seed(seed)
        planned = plan(self.model, self.widths, edits)
        how = SEARCHES[init](self.model, planned, lambda: self.loss, generator)
        # on a copy: losses may move more than a resize takes back, such as the averages of a batch
        # norm
        tried = copy.deepcopy(self.model)
        apply_(tried, planned, generator=generator, **how)
        with preserve_state(tried):
            losses = self.losses(tried)
        with preserve_state(tried):
            return losses, self.cost(tried)

    def _gains(self, generator: torch.Generator, new: int) -> dict[str, tuple[Tensor, Tensor]]:
        edits: dict[str, list[Edit]] = {}
        for name, size in self.sizes().items():
            grow = Grow(name, new)
            split = Split(name, range(size))
            edits[name] = [split, grow] if self._plans([split]) else [grow]
        if not edits:
            return {}
        planned = plan(self.model, self.widths, [edit for some in edits.values() for edit in some])
        gains_of = firefly(self.model, planned, self.loss, generator).gains
        return {name: (gains[:-new], gains[-new:]) for name, gains in gains_of.items()}

    def _plans(self, edits: Sequence[Edit]) -> bool:
        try:
            plan(self.model, self.widths, edits)
        except PlanError:
            return False
        return True

    @property
    def loss(self) -> Callable[[nn.Module], Tensor]:
        """The training loss. Raises `PlanError` where the controller was given none."""
        if self._loss is None:
            raise PlanError(
                f"{type(self.policy).__name__} needs Controller(..., loss=...): model -> training "
                "loss, a scalar"
            )
        return self._loss

    def _expansion(
        self, edit: Edit, generator: torch.Generator, searched: dict[str, float]
    ) -> float:
        if not searched:
            searched["now"] = natural_norm(self.model, self.loss)
        planned = plan(self.model, self.widths, [edit])
        grown = copy.deepcopy(self.model)
        apply_(
            grown,
            planned,
            generator=generator,
            inits=gradmax(self.model, planned, self.loss, generator, rounds=3),
        )
        return natural_norm(grown, self.loss) / searched["now"] if searched["now"] else 1.0

    def _importance(self, width: str) -> Tensor:
        return unit_importance(self.model, self.widths, width)

    def _count(self, edits: list[Edit]) -> int:
        """Parameters after some edits, found by making them and taking them back."""
        try:
            applied = apply_(
                self.model, plan(self.model, self.widths, edits), generator=torch.Generator()
            )
        except PlanError:
            return 2**62
        applied.undo()
        return applied.receipt.parameters[1]
