"""A fitted `Density` as one file, and back: `save(density, path)`, `load(path)`."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from morphogen.density.darn import Darn
from morphogen.density.estimator import Density
from morphogen.density.search import Step, change
from morphogen.density.variables import Variables
from morphogen.edit.ledger import ledger_from_json, ledger_to_json
from morphogen.errors import RunError
from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.random_state import own_draws
from morphogen.record import revive

_KIND = "density 1"


def save(density: Density, path: str | Path) -> None:
    """Tensors, with the first shape, the edits since then and the table's variables, as JSON. Of
    `random_state` a whole number is kept.
    """
    settings = density.get_params()
    whole = isinstance(settings["random_state"], (int, np.integer))
    settings["random_state"] = int(settings["random_state"]) if whole else None
    about = {
        "kind": _KIND,
        "settings": settings,
        "first": density.model_.config(),
        "ledger": ledger_to_json(density.ledger_),
        "variables": asdict(density.variables_),
        "steps": [asdict(step) for step in density.steps_],
        "columns": [str(name) for name in density.feature_names_in_],
    }
    save_tensors(Path(path), dict(density.model_.state_dict()), about)


def load(path: str | Path) -> Density:
    """Raises `RunError` for a file of something else, or one that is cut or altered."""
    tensors, about = load_tensors(Path(path))
    if not isinstance(about, dict) or about.get("kind") != _KIND:
        raise RunError(f"{path} holds no density: give what `fit --task density` wrote")
    density = Density(**about["settings"])
    density.variables_ = revive(Variables, about["variables"])
    density.steps_ = tuple(revive(Step, step) for step in about["steps"])
    density.feature_names_in_ = np.asarray(about["columns"], dtype=object)
    density.n_features_in_ = len(about["columns"])
    density.ledger_ = tuple(ledger_from_json(about["ledger"]))
    rows = tensors["means"].round().expand(8, -1)
    with own_draws(0, "cpu"):
        model = Darn.from_config(about["first"])
        change(model, density.ledger_, rows, seed=0)
    model.load_state_dict(tensors)
    density.model_ = model.eval()
    return density
