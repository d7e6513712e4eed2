"""The random state is the user's: no public call moves it, but those that build new weights under the user's own seed."""

import copy
import random
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen import bounds, data, estimator, fit, formats, layers, measures, models, train, transforms
from morphogen.bounds.box import ball
from morphogen.bounds.program import program
from morphogen.bounds.verify import other_classes
from morphogen.data.dataset import from_arrays
from morphogen.draws import own_draws
from morphogen.recipe import Recipe
from morphogen.transforms import TRANSFORMS
from morphogen.transforms import files as network_files
from morphogen.transforms.compress import RULES

resize = import_module("morphogen.resize")  # of which `morphogen` has the function


def state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), (name, keys.tobytes(), *rest), random.getstate()


def moved(call: Callable[[], Any]) -> list[str]:
    """The generators that a call moves."""
    before = state()
    call()
    return [name for name, old, new in zip(("torch", "numpy", "random"), before, state(), strict=True) if old != new]


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
        self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
        self.normed = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 2)).eval()
        self.straight = nn.Sequential(nn.Linear(3, 30), nn.ReLU(), nn.Linear(30, 2), nn.ReLU(), nn.Linear(2, 2))
        self.dag = models.dagnet(3, 2).eval()
        self.deep = models.mlp(3, 2, 4, 0.1)
        self.optimizer = torch.optim.Adam(self.deep.parameters())
        self.box = ball(torch.full((1, 3), 0.5), 0.2)
        self.program = program(self.net, torch.zeros(2, 3))
        self.unsafe = other_classes(0, 2)
        draw = np.random.default_rng(0)
        self.rows = draw.normal(size=(60, 3))
        self.y01 = (self.rows[:, 0] > 0).astype(int)
        self.dataset = from_arrays(self.rows, self.y01)
        self.recipe = Recipe(batch=16, rate=5e-3, decay=0.01, steps=4, settle=0.5, epochs=1, width=4, rounds=2, dropout=0.1)

    def loss(self, model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(self.x), self.y)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def frame() -> Any:
    import pandas as pd

    return pd.DataFrame({"a": np.arange(40) * 1.5, "b": ["u", "v"] * 20, "t": ["x", "y", "x", "x"] * 10})


def bounded(name: str) -> Callable[[Room], Any]:
    return lambda r: getattr(bounds, name)(r.program, r.box)


def rewritten(name: str) -> Callable[[Room], Any]:
    if name == "approximate_shallow":
        return lambda r: transforms.approximate_shallow(r.net, r.box, 50.0)
    onto = (lambda r: r.x) if name in ("freeze", "fold_batchnorm") else (lambda r: r.box)
    model = (lambda r: r.normed) if name in ("freeze", "fold_batchnorm") else (lambda r: r.net)
    return lambda r: TRANSFORMS[name](model(r), onto(r))


def fitted(r: Room, **settings: Any) -> Any:
    return fit.fit(r.dataset, fit.Settings(**settings), recipe=r.recipe, folder=r.folder / "run")


def written(r: Room, ending: str) -> Path:
    path = r.folder / f"net.{ending}"
    network_files.write(r.net, copy.deepcopy(r.net).double(), (3,), path, mg.Certificate("exact", 0.0, None, True, ""), r.box)
    return path


def trained(r: Room) -> Any:
    batches = train.Batches(r.x, r.y, 3)
    objective = lambda model, x, y: nn.functional.cross_entropy(model(x), y)  # noqa: E731
    return train.train(train.State(r.deep, r.optimizer), batches, objective, lambda step: 1e-3, steps=2, rounds=2)


def planned(r: Room) -> Any:
    return mg.plan(r.net, mg.widths(mg.trace(r.net, r.x)), [mg.Shrink("0", [1])])


KEEPS: dict[str, Callable[[Room], Any]] = {
    **{f"transforms.{name}": rewritten(name) for name in TRANSFORMS},
    "transforms.compress into layers": lambda r: transforms.compress(r.straight, bounds.ball(r.x[:1], 1e-3), rules=RULES),
    "transforms.shallow as modules": lambda r: mg.shallow(r.net, r.box)[0].to_torch(),
    "transforms.freeze a dag": lambda r: mg.freeze(r.dag, r.x),
    "transforms.regions": lambda r: mg.regions(r.net, r.box),
    **{f"bounds.{name}": bounded(name) for name in ("alpha", "forward", "interval", "linear", "stability")},
    "bounds.around": lambda r: bounds.around(r.x),
    "bounds.attack": lambda r: bounds.attack(r.program, r.unsafe[0], r.box),
    "bounds.ball": lambda r: bounds.ball(r.x[:1], 0.1),
    "bounds.other_classes": lambda r: bounds.other_classes(0, 2),
    "bounds.program": lambda r: bounds.program(r.deep.eval(), r.x),
    "bounds.verify": lambda r: mg.verify(r.net, r.box, r.unsafe, seconds=5),
    "bounds.robust_accuracy": lambda r: mg.robust_accuracy(r.net, r.x, r.y, 0.01, seconds=2),
    "resize.count_parameters": lambda r: resize.count_parameters(r.net),
    "resize.apply_": lambda r: mg.apply_(r.net, planned(r), example=r.x),
    "resize.resize": lambda r: mg.resize(r.net, [mg.Shrink("0", [0])], example=r.x),
    "resize.plan": planned,
    "resize.compiled": lambda r: mg.compiled(r.net),
    "resize.diff": lambda r: mg.diff(r.net, r.deep),
    "resize.doctor": lambda r: mg.doctor(r.deep, r.optimizer),
    "resize.ledger_to_json": lambda r: resize.ledger_to_json([mg.Shrink("0", [0])]),
    "resize.ledger_from_json": lambda r: resize.ledger_from_json([{"edit": "Shrink", "width": "0", "drop": [0]}]),
    "resize.replay": lambda r: mg.replay([mg.Shrink("0", [0])], r.net, r.x),
    "resize.save": lambda r: mg.save(r.folder / "c", r.deep, r.optimizer),
    "resize.load_ledger": lambda r: resize.load_ledger(mg.save(r.folder / "c", r.deep, r.optimizer)),
    "resize.read_structure": lambda r: resize.read_structure(mg.save(r.folder / "c", r.deep, r.optimizer)),
    "resize.structure": lambda r: mg.structure(r.deep),
    "resize.resized": lambda r: resize.resized(mg.widths(mg.trace(r.net, r.x)), planned(r)),
    "graph.trace": lambda r: mg.trace(r.normed.train(), r.x),
    "graph.widths": lambda r: mg.widths(mg.trace(r.deep, r.x)),
    "measures.dead_units": lambda r: measures.dead_units(r.net, r.x),
    "measures.unit_importance": lambda r: measures.unit_importance(r.net, mg.widths(mg.trace(r.net, r.x)), "0"),
    "formats.export_onnx": lambda r: formats.export_onnx(r.net, r.x, r.folder / "new.onnx"),
    "formats.read_onnx": lambda r: formats.read_onnx(written(r, "onnx")),
    "formats.save_tensors": lambda r: formats.save_tensors(r.folder / "t", {"a": r.x}),
    "formats.load_tensors": lambda r: (formats.save_tensors(r.folder / "t", {"a": r.x}), formats.load_tensors(r.folder / "t")),
    "formats.source": lambda r: formats.source(r.net, title="t"),
    "data.fit_preparation": lambda r: data.fit_preparation(frame()[["a", "b"]]),
    "data.from_arrays": lambda r: data.from_arrays(r.rows, r.y01),
    "data.from_frame": lambda r: data.from_frame(frame(), "t"),
    "data.load": lambda r: data.load("digits"),
    "data.split": lambda r: data.split(r.y01, 0.2, 0, stratify=True),
    "data.source": lambda r: data.source(data.fit_preparation(frame()[["a", "b"]])),
    "models.depths_of": lambda r: models.depths_of(r.deep),
    "models.shape_of": lambda r: models.shape_of(r.deep),
    "fit.fit": fitted,
    "fit.fit prune-expand": lambda r: fitted(r, policy="prune-expand"),
    "fit.fit stochastic": lambda r: fitted(r, policy="stochastic"),
    "fit.fit dag": lambda r: fitted(r, wiring="dag"),
    "fit.scratch": lambda r: fit.scratch(fitted(r), r.dataset),
    "fit.compressed": lambda r: fit.compressed(fitted(r), r.dataset),
    "fit.renew": lambda r: fit.renew(r.deep, 0.5, 3),
    "train.train": trained,
    "train.predict": lambda r: train.predict(r.deep, r.x),
    "estimator.MorphogenClassifier": lambda r: estimator.MorphogenClassifier(time_limit=1, random_state=3).fit(r.rows, r.y01),
    "estimator.MorphogenRegressor": lambda r: estimator.MorphogenRegressor(time_limit=1, random_state=3).fit(r.rows, r.y01),
    "files.read onnx": lambda r: network_files.read(written(r, "onnx")),
    "files.read pt2": lambda r: network_files.read(written(r, "pt2")),
    "files.size": lambda r: network_files.size(copy.deepcopy(r.net).double(), r.box),
}  # fmt: skip
"""Calls that leave everything as it was."""

DRAWS: dict[str, tuple[str, Callable[[Room], Any]]] = {
    "resize.adapt": (
        "new blocks are drawn as the user's own layers are",
        lambda r: mg.adapt(r.deep, [r.optimizer], example=r.x),
    ),
    "resize.gradmax": ("the search starts from drawn directions", lambda r: mg.gradmax(r.net, grown(r), r.loss)),
    "resize.resize growing": (
        "new units are drawn under the user's seed, or from generator=",
        lambda r: mg.resize(r.net, [mg.Grow("0", 2)], example=r.x),
    ),
    "resize.load": ("build() is the user's own", lambda r: mg.load(mg.save(r.folder / "c", r.net), lambda: again(r))),
    "models.convnet": ("a network is built, as by torch", lambda r: models.convnet((1, 8, 8), 2, 4)),
    "models.mlp": ("a network is built, as by torch", lambda r: models.mlp(3, 2)),
    "models.dagnet": ("a network is built, as by torch", lambda r: models.dagnet(3, 2)),
    "layers.Dag": ("a layer is built, as by torch", lambda r: layers.Dag(3, 4)),
    "layers.LearnedDepth": ("its blocks are built, as by torch", lambda r: mg.LearnedDepth(lambda i: nn.Linear(3, 3))),
    "layers.DepthPosterior": (
        "its blocks are built, as by torch",
        lambda r: layers.DepthPosterior(lambda i: nn.Linear(3, 3), lambda: nn.Linear(3, 2)),
    ),
    "estimator without random_state": (
        "scikit-learn's convention: None is numpy's global state",
        lambda r: estimator.MorphogenClassifier(time_limit=1).fit(r.rows, r.y01),
    ),
}
"""Calls that may move it, and why."""

NO_CALLS = {
    # values, errors, results, and types of these
    "AddBlock", "Applied", "Certificate", "DataError", "DropBlock", "Graph", "Grow", "MorphogenError", "NotExact", "PlanError",
    "Receipt", "Report", "RunError", "ShapeError", "Shrink", "Split", "Unsupported", "Width", "Ball", "Box", "Few", "Free",
    "Program", "Robustness", "Stability", "Unsafe", "Verdict", "TRANSFORMS", "Regions", "Edit", "Ledger", "Plan", "Row",
    "NAMED", "Dataset", "Preparation",
    # arithmetic on bounds, called by those above
    "dual", "few", "least_of", "lower_bound", "optimised", "split_inputs", "split_units", "within",
    # a declaration, a text that is read, a gate without weights, an optional part of a loss
    "follow", "read_vnnlib", "LearnedWidth", "penalty", "natural_norm",
    # in processes of their own, see test_distributed
    "resize_distributed",
}  # fmt: skip


def again(r: Room) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))


def grown(r: Room) -> Any:
    return mg.plan(r.net, mg.widths(mg.trace(r.net, r.x)), [mg.Grow("0", 2)])


def test_every_public_name_is_in_a_table() -> None:
    """A new one must say whether it draws."""
    known = {name.partition(".")[2].split()[0] for name in (*KEEPS, *DRAWS) if "." in name} | NO_CALLS
    for package in (mg, bounds, transforms, resize, measures, formats, data, models, layers):
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
        fit.fit(room.dataset, fit.Settings(budget=3), recipe=room.recipe)
    assert state() == before
