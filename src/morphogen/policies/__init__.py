"""DECIDE: when and what to change. A policy is constant settings; its state is a value that is handed back in."""

from morphogen.policies.controller import Controller
from morphogen.policies.firefly import Firefly
from morphogen.policies.gradmax import GradMax
from morphogen.policies.look import Look, Policy, Proposal
from morphogen.policies.natural import Natural
from morphogen.policies.prune_expand import PruneAndExpand
from morphogen.policies.stochastic import Stochastic
from morphogen.policies.trial import Trial

POLICIES: dict[str, type[Policy]] = {
    "trial": Trial,
    "prune-expand": PruneAndExpand,
    "gradmax": GradMax,
    "natural": Natural,
    "firefly": Firefly,
    "stochastic": Stochastic,
}

__all__ = [
    "POLICIES", "Controller", "Firefly", "GradMax", "Look", "Natural", "Policy", "Proposal", "PruneAndExpand", "Stochastic",
    "Trial",
]  # fmt: skip
