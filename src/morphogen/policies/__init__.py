"""DECIDE: when and what to change. A policy is constant settings; its state is a value that is
handed back in.
"""

from morphogen.policies.firefly import Firefly
from morphogen.policies.gradmax import GradMax
from morphogen.policies.natural import Natural
from morphogen.policies.policy import Policy
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
