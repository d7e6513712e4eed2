"""Add units on trial, keep what pays; remove what does not."""

import math
from dataclasses import dataclass

import torch

from morphogen.edit.edit import Edit, Grow, Shrink
from morphogen.policies.policy import Memory, Observation, Proposal
from morphogen.policies.stopping import Stopping, log_loss


@dataclass(frozen=True)
class Trial:
    """Each open width grows by a share of itself; `probation` evaluations later the new units are
    judged by leaving them out.

    They stay if the validation loss without them, and that of before they came, is higher by a
    larger fraction than their penalty, penalty * log(cost with / without); the width then grows
    again. Otherwise they leave, and the width rests for `cooldown` evaluations. A resting width is
    asked the opposite question: can its weakest units go? Comparisons are paired, on the same
    validation examples and weights, but for that with the loss before units came. Finished as
    `stopping` says, or when every width failed `max_failures` trials.

    Sizes change in steps of `granularity`, since kernels are slower in between. rate: the share by
    which a width grows. confidence: standard errors of the mean difference by which units must be
    worth their penalty to stay or not to be removed; 0 judges by the mean alone.

    Source: Growing_neural_network, the stochastic step (propose, compare loss + penalty x weights,
    keep or undo). Differs: proposals are judged after a round of training instead of before any, on
    validation data, in chunks, with a penalty that is a fraction; weakest units are proposed for
    removal instead of random ones.
    """

    penalty: float = 0.1
    rate: float = 0.5
    granularity: int = 4
    probation: int = 3
    cooldown: int = 2
    max_failures: int = 2
    stopping: Stopping = Stopping(0.0, 5, 0.01)
    confidence: float = 0.0

    def start(self) -> Memory:
        return {"added": {}, "resting": {}, "failed": {}}

    def decide(
        self, observation: Observation, memory: Memory, generator: torch.Generator
    ) -> tuple[list[Proposal], Memory, bool]:
        added = memory["added"]
        resting = dict(memory["resting"])
        failed = dict(memory["failed"])
        new: Memory = {**memory, "added": {}, "resting": resting, "failed": failed}
        loss = float(observation.losses.mean())
        proposals: list[Proposal] = []
        for width, size in observation.sizes.items():
            before, since, began = added.get(width, (size, 0, loss))
            units = size - before
            if width in added and not units:
                failed[width] = self.max_failures  # the budget has no room for it
            elif units and observation.round - since < self.probation:
                new["added"][width] = (before, since, began)
            elif units:
                edit = Shrink(width, range(size - units, size))
                rise, worth = self._worth(observation, edit, began)
                if worth < 0:
                    resting[width] = observation.round + self.cooldown
                    failed[width] = failed.get(width, 0) + 1
                    proposals.append(
                        Proposal(
                            edit,
                            f"the last {units} did not pay: validation loss {rise:+.4f} without "
                            f"them, {loss - began:+.4f} since they came",
                        )
                    )
                else:
                    proposals.append(
                        self._grow(width, size, f"validation loss {-rise:+.4f} by the last {units}")
                    )
            elif (
                resting.get(width, 0) > observation.round
                or failed.get(width, 0) >= self.max_failures
            ):
                proposals += self._prune(observation, width, size)
            else:
                proposals.append(self._grow(width, size, f"on trial at validation loss {loss:.4f}"))
        for proposal in proposals:
            if isinstance(proposal.edit, Grow):
                new["added"][proposal.edit.width] = (
                    observation.sizes[proposal.edit.width],
                    observation.round,
                    loss,
                )
        # the penalty is charged by the trials; charged here too, units on probation would look like
        # a standstill
        done = self.stopping.over(new, observation) or all(
            failed.get(w, 0) >= self.max_failures for w in observation.sizes
        )
        if done:
            # nothing new starts once the structure is final; what failed its trial still leaves
            proposals = [p for p in proposals if isinstance(p.edit, Shrink)]
            new["added"] = {}
        return proposals, new, done

    def _grow(self, width: str, size: int, reason: str) -> Proposal:
        steps = max(1, round(self.rate * size / self.granularity))
        return Proposal(Grow(width, steps * self.granularity), reason)

    def _prune(self, observation: Observation, width: str, size: int) -> list[Proposal]:
        units = self.granularity
        if size <= units:
            return []
        edit = Shrink(width, observation.importance(width).argsort()[:units].tolist())
        rise, worth = self._worth(observation, edit)
        return (
            [Proposal(edit, f"validation loss {rise:+.4f} without its weakest {units}")]
            if worth < 0
            else []
        )

    def _worth(
        self, observation: Observation, removal: Edit, began: float = math.inf
    ) -> tuple[float, float]:
        """(rise of the mean validation loss by a removal, its worth: log loss ratio, at least, less
        the penalty of the cost). began: the loss when the units came.
        """
        without, cost = observation.attempt([removal])
        rise = without - observation.losses
        error = (
            float(rise.std()) / math.sqrt(len(rise)) if self.confidence and len(rise) > 1 else 0.0
        )
        before = float(observation.losses.mean())
        after = float(without.mean())
        least = max(0.0, after - self.confidence * error)
        # a network comes to rely on all its units, those that brought it nothing too
        gain = min(log_loss(least), log_loss(began)) - log_loss(before)
        return after - before, gain - self.penalty * math.log(observation.cost / cost)
