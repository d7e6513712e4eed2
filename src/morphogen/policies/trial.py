"""Add units on trial, keep what pays; remove what does not."""

import math
from dataclasses import dataclass

import torch

from morphogen.policies.look import Look, Memory, Proposal
from morphogen.policies.when import patience, penalised
from morphogen.resize.edit import Edit, Grow, Shrink


@dataclass(frozen=True)
class Trial:
    """Each open width grows by a share of itself; one round later the new units are judged by leaving them out.

    They stay if the validation loss without them is higher by a larger fraction than their price, price * log(parameters
    with / without); the width then grows again. Otherwise they leave, and the width rests. A resting width is asked the
    opposite question: can its weakest units go? All comparisons are paired, on the same validation examples and weights.
    Finished when the penalised loss has not fallen for `patience` looks, or when every width rests.

    Source: Growing_neural_network, the stochastic step (propose, compare loss + penalty x weights, keep or undo).
    Differs: proposals are judged after a round of training instead of before any, on validation data, in chunks, with a
    penalty that is a fraction; weakest units are proposed for removal instead of random ones.
    """

    price: float = 0.02
    rate: float = 0.4
    least: int = 2
    rest: int = 4
    patience: int = 3
    gain: float = 0.002

    def start(self) -> Memory:
        return {"added": {}, "resting": {}}

    def decide(self, look: Look, memory: Memory, draw: torch.Generator) -> tuple[list[Proposal], Memory, bool]:
        added, resting = dict(memory["added"]), dict(memory["resting"])
        new: Memory = {**memory, "added": {}, "resting": resting}
        loss = float(look.losses.mean())
        proposals: list[Proposal] = []
        for width, size in look.sizes.items():
            if width in added:
                units = min(added[width], size - 1)
                edit = Shrink(width, range(size - units, size))
                rise, worth = self._worth(look, edit)
                if worth < 0:
                    resting[width] = look.round + self.rest
                    proposals.append(Proposal(edit, f"the last {units} did not pay: validation loss {rise:+.4f} without them"))
                else:
                    proposals.append(self._grow(width, size, f"validation loss {-rise:+.4f} by the last {units}"))
                    new["added"][width] = _units(proposals[-1].edit)
            elif resting.get(width, 0) > look.round:
                proposals += self._prune(look, width, size)
            else:
                proposals.append(self._grow(width, size, f"on trial at validation loss {loss:.4f}"))
                new["added"][width] = _units(proposals[-1].edit)
        waited = patience(new, penalised(loss, look.parameters, self.price), self.gain)
        done = waited >= self.patience or (bool(look.sizes) and all(w in resting for w in look.sizes) and not new["added"])
        if done:
            # nothing new starts once the structure is final; what failed its trial still leaves
            proposals = [p for p in proposals if isinstance(p.edit, Shrink)]
            new["added"] = {}
        return proposals, new, done

    def _grow(self, width: str, size: int, reason: str) -> Proposal:
        return Proposal(Grow(width, max(self.least, round(self.rate * size))), reason)

    def _prune(self, look: Look, width: str, size: int) -> list[Proposal]:
        units = max(1, size // 16)
        if size - units < self.least:
            return []
        edit = Shrink(width, look.importance(width).argsort()[:units].tolist())
        rise, worth = self._worth(look, edit)
        return [Proposal(edit, f"validation loss {rise:+.4f} without its weakest {units}")] if worth < 0 else []

    def _worth(self, look: Look, removal: Edit) -> tuple[float, float]:
        """(rise of the mean validation loss by a removal, its worth: log loss ratio less the price of the parameters)."""
        without, parameters = look.attempt([removal])
        before, after = float(look.losses.mean()), float(without.mean())
        ratio = math.log(max(after, 1e-12) / max(before, 1e-12))
        return after - before, ratio - self.price * math.log(look.parameters / parameters)


def _units(edit: Edit) -> int:
    return edit.units if isinstance(edit, Grow) else 0
