"""A fitted `Density` as one file, and back: `save(density, path)`, `load(path)`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from morphogen.density.darn import Darn
from morphogen.density.estimator import Density
from morphogen.density.groups import reordered
from morphogen.density.mixture import Mixture
from morphogen.density.search import Step, change
from morphogen.density.variables import Variables
from morphogen.edit.edit import Edit
from morphogen.edit.ledger import ledger_from_json, ledger_to_json
from morphogen.errors import RunError
from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.random_state import own_draws
from morphogen.record import revive

_KIND = "density 2"


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
        "orders": [list(order) for order in density.mixture_.orders],
        "variables": asdict(density.variables_),
        "steps": [asdict(step) for step in density.steps_],
        "columns": list(density.columns_),
        "named": hasattr(density, "feature_names_in_"),
    }
    tensors = {
        f"{number}.{name}": tensor
        for number, model in enumerate(density.mixture_.models)
        for name, tensor in model.state_dict().items()
    }
    save_tensors(Path(path), tensors, about)


def load(path: str | Path) -> Density:
    """Raises `RunError` for a file of something else, or one that is cut or altered."""
    tensors, about = load_tensors(Path(path))
    if not isinstance(about, dict) or about.get("kind") != _KIND:
        raise RunError(f"{path} holds no density: give what `fit --task density` wrote")
    density = Density(**about["settings"])
    density.variables_ = revive(Variables, about["variables"])
    density.steps_ = tuple(revive(Step, step) for step in about["steps"])
    density.columns_ = tuple(about["columns"])
    if about["named"]:
        density.feature_names_in_ = np.asarray(about["columns"], dtype=object)
    density.n_features_in_ = len(about["columns"])
    density.ledger_ = tuple(ledger_from_json(about["ledger"]))
    density.mixture_ = _mixture(tensors, about, density.ledger_)
    density.model_ = density.mixture_.models[0]
    return density


def _mixture(
    tensors: dict[str, Tensor], about: dict[str, Any], ledger: tuple[Edit, ...]
) -> Mixture:
    """The first network by its ledger, the others of the shape that it has then."""
    rows = tensors["0.means"].round().expand(8, -1)
    orders = tuple(tuple(order) for order in about["orders"])
    models: list[Darn] = []
    with own_draws(0, "cpu"):
        for number, order in enumerate(orders):
            if number == 0:
                model = Darn.from_config(about["first"])
                change(model, ledger, rows, seed=0)
            else:
                first = models[0]
                groups, _ = reordered(first.groups.sizes, order)
                model = Darn(groups, first.present_shape)
            start = f"{number}."
            own = {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
            model.load_state_dict(own)
            models.append(model.eval())
    return Mixture(tuple(models), orders)
