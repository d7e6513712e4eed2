"""Papers, run again: a folder a paper, a file an experiment, with its settings, its published
figures and a run that returns claims and curves.

Each file has `reproduce(faithful, smoke, seeds) -> Reproduction`; it is loaded when it is run.
"""

from collections.abc import Callable
from importlib import import_module

from morphogen.errors import MorphogenError
from morphogen.record import Reproduction

Run = Callable[[bool, bool, int], Reproduction]
"""(faithful, smoke, seeds) -> what came out."""

EXPERIMENTS: dict[str, str] = {
    "dagnn-bigger": "morphogen.experiments.dagnn.bigger",
    "dagnn-hops": "morphogen.experiments.dagnn.hops",
    "dagnn-mnist": "morphogen.experiments.dagnn.mnist",
    "darn-atari-like": "morphogen.experiments.darn.atari_like",
    "darn-mnist": "morphogen.experiments.darn.mnist",
    "darn-uci": "morphogen.experiments.darn.uci",
    "deep-to-shallow": "morphogen.experiments.shallow.deep_to_shallow",
    "den-mnist": "morphogen.experiments.den.mnist",
    "depth-spirals": "morphogen.experiments.going_deeper.spirals",
    "going-deeper-mnist": "morphogen.experiments.going_deeper.mnist",
    "going-deeper-xor": "morphogen.experiments.going_deeper.xor",
    "gradmax-wide": "morphogen.experiments.gradmax.wide",
    "growing-cifar": "morphogen.experiments.growing.cifar",
    "growing-controls": "morphogen.experiments.growing.controls",
    "linear-regions": "morphogen.experiments.compression.regions",
    "linked-allcnn": "morphogen.experiments.linked.allcnn",
    "linked-depth": "morphogen.experiments.linked.depth",
    "linked-extended": "morphogen.experiments.linked.extended",
    "linked-plasticity": "morphogen.experiments.linked.plasticity",
    "linked-resnet50": "morphogen.experiments.linked.resnet50",
    "linked-shift": "morphogen.experiments.linked.shift",
    "linked-width": "morphogen.experiments.linked.width",
    "lossless-compression": "morphogen.experiments.compression.lossless",
}
"""The module of each, by the name that `morphogen reproduce` takes."""


def experiment(name: str) -> Run:
    """The run of an experiment. Raises `MorphogenError` for a name that there is none of."""
    if name not in EXPERIMENTS:
        raise MorphogenError(f"reproduce {name!r}: unknown; choose one of {', '.join(EXPERIMENTS)}")
    run: Run = import_module(EXPERIMENTS[name]).reproduce
    return run
