"""The random state is the user's: no public call moves it, but those that build new weights under
the user's own seed.
"""

import copy
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen import layers, models
from morphogen.bounds.alpha_crown import alpha_crown
from morphogen.bounds.box import linf_ball
from morphogen.bounds.crown import crown
from morphogen.bounds.forward import forward
from morphogen.bounds.interval import interval
from morphogen.data import preparation
from morphogen.data.dataset import from_arrays
from morphogen.data.from_frame import from_frame
from morphogen.data.split import split
from morphogen.edit.apply import count_parameters
from morphogen.edit.checkpoint import load_ledger
from morphogen.edit.ledger import ledger_from_json, ledger_to_json
from morphogen.edit.plan import resized
from morphogen.edit.structure import read_structure
from morphogen.fitting.control import compressed, scratch
from morphogen.fitting.fit import fit
from morphogen.fitting.problem import Settings
from morphogen.fitting.recipe import Recipe
from morphogen.fitting.schedule import shrink_and_perturb
from morphogen.formats import network_files
from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.formats.onnx import export_onnx
from morphogen.formats.onnx_reader import read_onnx
from morphogen.formats.source import source
from morphogen.measures.dead import dead_units
from morphogen.measures.importance import unit_importance
from morphogen.random_state import own_draws
from morphogen.tracing.program import program
from morphogen.training.train import Batches, State, predict, train
from morphogen.transforms import TRANSFORMS
from morphogen.transforms.compress import RULES
from morphogen.transforms.shallow.approximate import approximate_shallow
from morphogen.verification.pgd import attack
from morphogen.verification.verify import misclassified


def state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), (name, keys.tobytes(), *rest), random.getstate()


def moved(call: Callable[[], Any]) -> list[str]:
    """The generators that a call moves."""
    before = state()
    call()
    return [
        name
        for name, old, new in zip(("torch", "numpy", "random"), before, state(), strict=True)
        if old != new
    ]


IMPORTS = """
import importlib, pkgutil, random
import numpy, torch
def state():
    return torch.get_rng_state().tolist(), str(numpy.random.get_state()), random.getstate()
before = state()
import morphogen
names = [module.name for module in pkgutil.walk_packages(morphogen.__path__, "morphogen.")]
assert len(names) > 100
for name in ["morphogen", *names]:
    importlib.import_module(name)
    assert state() == before, name
"""


def test_no_import_moves_it() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Room:
    """What the calls below need, made before the state is looked at."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder = folder
        self.x = torch.rand(6, 3)
        self.y = torch.tensor([0, 1] * 3)
        self.net = nn.Sequential(
            nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)
        )
        self.normed = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 2)
        ).eval()
        self.straight = nn.Sequential(
            nn.Linear(3, 30), nn.ReLU(), nn.Linear(30, 2), nn.ReLU(), nn.Linear(2, 2)
        )
        self.dag = models.dagnet(3, 2).eval()
        self.deep = models.mlp(3, 2, 4, 0.1)
        self.optimizer = torch.optim.Adam(self.deep.parameters())
        self.box = linf_ball(torch.full((1, 3), 0.5), 0.2)
        self.program = program(self.net, torch.zeros(2, 3))
        self.unsafe = misclassified(0, 2)
        draw = np.random.default_rng(0)
        self.rows = draw.normal(size=(60, 3))
        self.y01 = (self.rows[:, 0] > 0).astype(int)
        self.dataset = from_arrays(self.rows, self.y01)
        self.recipe = Recipe(
            batch=16,
            rate=5e-3,
            decay=0.01,
            steps=4,
            anneal=0.5,
            epochs=1,
            width=4,
            rounds=2,
            dropout=0.1,
        )

    def loss(self, model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(self.x), self.y)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def frame() -> Any:
    import pandas as pd

    return pd.DataFrame(
        {"a": np.arange(40) * 1.5, "b": ["u", "v"] * 20, "t": ["x", "y", "x", "x"] * 10}
    )


def bounded(technique: Callable[..., Any]) -> Callable[[Room], Any]:
    return lambda r: technique(r.program, r.box)


def built(name: str) -> Callable[[Room], Any]:
    return lambda r: getattr(mg, name)()


def rewritten(name: str) -> Callable[[Room], Any]:
    if name == "approximate_shallow":
        return lambda r: approximate_shallow(r.net, r.box, 50.0)
    onto = (lambda r: r.x) if name in ("freeze", "fold_batchnorm") else (lambda r: r.box)
    model = (lambda r: r.normed) if name in ("freeze", "fold_batchnorm") else (lambda r: r.net)
    return lambda r: TRANSFORMS[name](model(r), onto(r))


def fitted(r: Room, **settings: Any) -> Any:
    return fit(r.dataset, Settings(**settings), recipe=r.recipe, folder=r.folder / "run")


def written(r: Room, ending: str) -> Path:
    path = r.folder / f"net.{ending}"
    network_files.write_network(
        r.net,
        copy.deepcopy(r.net).double(),
        r.box.points(64, 32),
        path,
        mg.Certificate("exact", 0.0, None, True, ""),
    )
    return path


def trained(r: Room) -> Any:
    batches = Batches(r.x, r.y, 3)
    objective = lambda model, x, y: nn.functional.cross_entropy(model(x), y)  # noqa: E731
    return train(
        State(r.deep, r.optimizer), batches, objective, lambda step: 1e-3, steps=2, rounds=2
    )


def described(r: Room) -> Any:
    density = mg.Density(seconds=1).fit(frame())
    gap = frame()[:2].assign(a=[np.nan, 1.5])
    return density.score_samples(gap), density.sample(3), density.impute(gap), density.anomaly(gap)


def planned(r: Room) -> Any:
    return mg.plan(r.net, mg.widths(mg.trace(r.net, r.x)), [mg.Shrink("0", [1])])


KEEPS: dict[str, Callable[[Room], Any]] = {
    **{f"transforms.{name}": rewritten(name) for name in TRANSFORMS},
    "transforms.compress into layers": lambda r: mg.compress(
        r.straight, mg.linf_ball(r.x[:1], 1e-3), rules=RULES
    ),
    "transforms.shallow as modules": lambda r: mg.shallow(r.net, r.box)[0].to_torch(),
    "transforms.freeze a dag": lambda r: mg.freeze(r.dag, r.x),
    "transforms.link keep": lambda r: mg.link(r.net, r.x, init="preserve"),
    "transforms.unlink": lambda r: (mg.link(r.net, r.x, init="preserve"), mg.unlink(r.net, r.x)),
    "transforms.regions": lambda r: mg.regions(r.net, r.box),
    **{
        f"bounds.{each.__name__}": bounded(each)
        for each in (alpha_crown, forward, interval, crown, mg.stability)
    },
    "bounds.bounding_box": lambda r: mg.bounding_box(r.x),
    "bounds.attack": lambda r: attack(r.program, r.unsafe[0], r.box),
    "bounds.linf_ball": lambda r: mg.linf_ball(r.x[:1], 0.1),
    "bounds.misclassified": lambda r: mg.misclassified(0, 2),
    "bounds.program": lambda r: program(r.deep.eval(), r.x),
    "bounds.verify": lambda r: mg.verify(r.net, r.box, r.unsafe, seconds=5),
    "bounds.robust_accuracy": lambda r: mg.robust_accuracy(r.net, r.x, r.y, 0.01, seconds=2),
    "edit.count_parameters": lambda r: count_parameters(r.net),
    "edit.apply_": lambda r: mg.apply_(r.net, planned(r), example=r.x),
    "edit.resize": lambda r: mg.resize(r.net, [mg.Shrink("0", [0])], example=r.x),
    "edit.plan": planned,
    "edit.compiled": lambda r: mg.compiled(r.net),
    "edit.diff": lambda r: mg.diff(r.net, r.deep),
    "edit.doctor": lambda r: mg.doctor(r.deep, optimizers=[r.optimizer]),
    "edit.ledger_to_json": lambda r: ledger_to_json([mg.Shrink("0", [0])]),
    "edit.ledger_from_json": lambda r: ledger_from_json(
        [{"edit": "Shrink", "width": "0", "drop": [0]}]
    ),
    "edit.replay": lambda r: mg.replay(r.net, [mg.Shrink("0", [0])], r.x),
    "edit.save": lambda r: mg.save(r.deep, r.folder / "c", optimizers=[r.optimizer]),
    "edit.load_ledger": lambda r: load_ledger(
        mg.save(r.deep, r.folder / "c", optimizers=[r.optimizer])
    ),
    "edit.read_structure": lambda r: read_structure(
        mg.save(r.deep, r.folder / "c", optimizers=[r.optimizer])
    ),
    "edit.structure": lambda r: mg.structure(r.deep),
    "edit.resized": lambda r: resized(mg.widths(mg.trace(r.net, r.x)), planned(r)),
    "tracing.trace": lambda r: mg.trace(r.normed.train(), r.x),
    "tracing.widths": lambda r: mg.widths(mg.trace(r.deep, r.x)),
    "measures.dead_units": lambda r: dead_units(r.net, r.x),
    "measures.unit_importance": lambda r: unit_importance(
        r.net, mg.widths(mg.trace(r.net, r.x)), "0"
    ),
    "formats.export_onnx": lambda r: export_onnx(r.net, r.x, r.folder / "new.onnx"),
    "formats.read_onnx": lambda r: read_onnx(written(r, "onnx")),
    "formats.save_tensors": lambda r: save_tensors(r.folder / "t", {"a": r.x}),
    "formats.load_tensors": lambda r: (
        save_tensors(r.folder / "t", {"a": r.x}),
        load_tensors(r.folder / "t"),
    ),
    "formats.source": lambda r: source(r.net, title="t"),
    "data.fit_preparation": lambda r: preparation.fit_preparation(frame()[["a", "b"]]),
    "data.from_arrays": lambda r: from_arrays(r.rows, r.y01),
    "data.from_frame": lambda r: from_frame(frame(), "t"),
    "data.load_data": lambda r: mg.load_data("digits"),
    "data.split": lambda r: split(r.y01, 0.2, 0, stratify=True),
    "data.source": lambda r: preparation.source(preparation.fit_preparation(frame()[["a", "b"]])),
    "models.depths_of": lambda r: models.depths_of(r.deep),
    "models.shape_of": lambda r: models.shape_of(r.deep),
    **{f"layers.{name}": built(name) for name in mg.__all__ if name.startswith("LK")},
    "fit.fit": fitted,
    "fit.fit prune-expand": lambda r: fitted(r, policy="prune-expand"),
    "fit.fit stochastic": lambda r: fitted(r, policy="stochastic"),
    "fit.fit dag": lambda r: fitted(r, wiring="dag"),
    "fit.scratch": lambda r: scratch(fitted(r), r.dataset),
    "fit.compressed": lambda r: compressed(fitted(r), r.dataset),
    "fit.shrink_and_perturb": lambda r: shrink_and_perturb(r.deep, 0.5, 3),
    "train.train": trained,
    "train.predict": lambda r: predict(r.deep, r.x),
    "estimator.MorphogenClassifier": lambda r: mg.MorphogenClassifier(
        seconds=1, random_state=3
    ).fit(r.rows, r.y01),
    "estimator.MorphogenRegressor": lambda r: mg.MorphogenRegressor(seconds=1, random_state=3).fit(
        r.rows, r.y01
    ),
    "estimator.Density": described,
    "formats.read_network onnx": lambda r: network_files.read_network(written(r, "onnx")),
    "formats.read_network pt2": lambda r: network_files.read_network(written(r, "pt2")),
    "formats.largest_output": lambda r: network_files.largest_output(
        copy.deepcopy(r.net).double(), r.box.points(9, 4)
    ),
}
"""Calls that leave everything as it was."""

DRAWS: dict[str, tuple[str, Callable[[Room], Any]]] = {
    "edit.adapt": (
        "new blocks are drawn as the user's own layers are",
        lambda r: mg.adapt(r.deep, optimizers=[r.optimizer], example=r.x),
    ),
    "edit.gradmax": (
        "the search starts from drawn directions",
        lambda r: mg.gradmax(r.net, grown(r), r.loss),
    ),
    "edit.resize growing": (
        "new units are drawn under the user's seed, or from generator=",
        lambda r: mg.resize(r.net, [mg.Grow("0", 2)], example=r.x),
    ),
    "edit.load": (
        "build() is the user's own",
        lambda r: mg.load(mg.save(r.net, r.folder / "c"), lambda: again(r)),
    ),
    "models.convnet": (
        "a network is built, as by torch",
        lambda r: models.convnet((1, 8, 8), 2, 4),
    ),
    "models.mlp": ("a network is built, as by torch", lambda r: models.mlp(3, 2)),
    "models.dagnet": ("a network is built, as by torch", lambda r: models.dagnet(3, 2)),
    "transforms.link": ("weights that look linear are drawn", lambda r: mg.link(r.net, r.x)),
    "layers.Dag": ("a layer is built, as by torch", lambda r: layers.Dag(3, 4)),
    "layers.LearnedDepth": (
        "its blocks are built, as by torch",
        lambda r: mg.LearnedDepth(lambda i: nn.Linear(3, 3)),
    ),
    "layers.DepthPosterior": (
        "its blocks are built, as by torch",
        lambda r: layers.DepthPosterior(lambda i: nn.Linear(3, 3), lambda: nn.Linear(3, 2)),
    ),
    "estimator without random_state": (
        "scikit-learn's convention: None is numpy's global state",
        lambda r: mg.MorphogenClassifier(seconds=1).fit(r.rows, r.y01),
    ),
    "estimator.Density without random_state": (
        "scikit-learn's convention: None is numpy's global state",
        lambda r: mg.Density(seconds=1, random_state=None).fit(frame()),
    ),
}
"""Calls that may move it, and why."""

NO_CALLS = {
    # values, errors, results, and types of these
    "AddBlock",
    "Applied",
    "Certificate",
    "DataError",
    "DropBlock",
    "Graph",
    "Grow",
    "MorphogenError",
    "NotExact",
    "PlanError",
    "Receipt",
    "Report",
    "RunError",
    "ShapeError",
    "Shrink",
    "Split",
    "Unsupported",
    "Width",
    "InputSet",
    "LpBall",
    "Box",
    "L0Ball",
    "l0_ball",
    "lp_ball",
    "Stability",
    "Unsafe",
    "Verdict",
    "Regions",
    "Plan",
    "Controller",
    "Trial",
    # a declaration, a text that is read, a gate without weights, an optional part of a loss
    "follow",
    "LearnedWidth",
    "penalty",
    # in processes of their own, see test_distributed
    "resize_distributed",
}


def again(r: Room) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))


def grown(r: Room) -> Any:
    return mg.plan(r.net, mg.widths(mg.trace(r.net, r.x)), [mg.Grow("0", 2)])


def test_every_public_name_is_in_a_table() -> None:
    """A new one must say whether it draws."""
    known = {
        name.partition(".")[2].split()[0] for name in (*KEEPS, *DRAWS) if "." in name
    } | NO_CALLS
    for package in (mg, layers):
        assert set(package.__all__) <= known, package.__name__


@pytest.mark.parametrize("name", KEEPS)
def test_a_call_moves_nothing(name: str, room: Room) -> None:
    torch.manual_seed(5)
    assert moved(lambda: KEEPS[name](room)) == []


@pytest.mark.parametrize("name", DRAWS)
def test_a_call_that_builds_moves_no_more_than_it_says(name: str, room: Room) -> None:
    _, call = DRAWS[name]
    torch.manual_seed(5)
    assert set(moved(lambda: call(room))) <= {"numpy" if name.startswith("estimator") else "torch"}


def test_the_state_is_back_where_a_call_fails(room: Room) -> None:
    def fail() -> None:
        with own_draws(1):
            nn.Linear(2, 2)
            raise RuntimeError

    before = state()
    with pytest.raises(RuntimeError):
        fail()
    assert state() == before
    with pytest.raises(mg.RunError):
        fit(room.dataset, Settings(budget=3), recipe=room.recipe)
    assert state() == before
