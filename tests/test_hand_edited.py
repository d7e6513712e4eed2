"""Files that were changed by hand: one clear error each, whatever the change."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import morphogen as mg
from morphogen import AddBlock, DropBlock, Grow, MorphogenError, PlanError, RunError, Shrink, Split
from morphogen.data.dataset import from_arrays
from morphogen.edit.checkpoint import load_ledger
from morphogen.edit.edit import AddStage, GrowNodes, PruneWeights, Rewire
from morphogen.edit.ledger import ledger_from_json, ledger_to_json
from morphogen.edit.structure import read_structure
from morphogen.fitting.checkpoint import CHECKPOINT
from morphogen.fitting.fit import fit
from morphogen.fitting.problem import Settings
from morphogen.fitting.recipe import Recipe
from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.record import Certificate, Report, from_json, revive
from problems import problem

ODD: tuple[Any, ...] = (None, "x", -1, 1e9, True, [], {}, [[]], {"x": 1})


def changed(value: Any) -> Iterator[Any]:
    """`value` with one part of it, at any depth, left out or something else."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: new} for new in (*ODD, *changed(inner)))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield value[:i] + value[i + 1 :]
            yield from ([*value[:i], new, *value[i + 1 :]] for new in (*ODD, *changed(inner)))


def test_a_structure_is_read_or_refused(tmp_path: Path) -> None:
    model, _ = problem("mlp")
    good = mg.structure(model, [Grow("hidden", 2), Shrink("hidden", [1])])
    path, refused = tmp_path / "structure.json", []
    for bad in changed(json.loads(json.dumps(good))):
        path.write_text(json.dumps(bad))
        try:
            mg.diff(path, model)
        except RunError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all("structure" in text for text in refused)
    path.write_text(json.dumps({**good, "modules": [1]}))
    with pytest.raises(RunError, match=r"modules is \[1\], not .*; was it changed by hand"):
        read_structure(path)


LEDGER = (
    Grow("a", 2),
    Shrink("b", [1, 2]),
    Split("c", [0]),
    AddBlock("d"),
    DropBlock("e"),
    GrowNodes("f", 3),
    PruneWeights("g", 0.5),
    Rewire("h", 0.25),
    AddStage("", 2),
)


def test_a_ledger_is_read_or_refused() -> None:
    good = json.loads(json.dumps(ledger_to_json(LEDGER)))
    assert ledger_from_json(good) == LEDGER
    refused = []
    for bad in (*ODD, *changed(good)):
        try:
            ledger_from_json(bad)
        except PlanError as error:
            refused.append(str(error))
    assert all(text.startswith("ledger: ") for text in refused)
    for bad, said in (
        (3, "a list of edits"), ([3], "a dictionary"), ([{"edit": "Melt"}], "unknown edit 'Melt'"),
        ([{"edit": "Grow", "width": "a"}], "no 'units'"),
        ([{"edit": "Grow", "width": "a", "units": "2"}], "units is '2', not int"),
        ([{"edit": "Grow", "width": "a", "units": 2, "x": 1}], "Grow has no 'x'"),
        ([{"edit": "Shrink", "width": "a", "drop": [0.5]}], r"drop\[0\] is 0.5"),
    ):  # fmt: skip
        with pytest.raises(PlanError, match=said):
            ledger_from_json(bad)


def pair() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), mg.LearnedDepth(lambda i: nn.Linear(4, 4)), nn.Linear(4, 2)
    )
    return model, torch.optim.Adam(model.parameters())


def test_a_checkpoint_s_metadata_is_used_or_refused(tmp_path: Path) -> None:
    """Even where the checksum fits."""
    model, optimizer = pair()
    model(torch.rand(5, 3)).sum().backward()
    optimizer.step()
    path = mg.save(model, tmp_path / "c", optimizers=[optimizer], ledger=[Grow("0", 1)])
    tensors, about = load_tensors(path)
    refused = []
    for bad in changed({key: value for key, value in about.items() if key != "structure"}):
        save_tensors(path, tensors, {**bad, "structure": about["structure"]})
        try:
            mg.load(path, pair)
        except MorphogenError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all("checkpoint" in text for text in refused)
    for bad in (*ODD, {**about, "structure": 3}):
        save_tensors(path, tensors, bad)
        with pytest.raises(RunError):
            mg.load(path, pair)
        with pytest.raises(RunError):
            load_ledger(path)


def test_a_run_s_checkpoint_is_used_or_refused(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 3))
    data = from_arrays(x, (x[:, 0] > 0).astype(int))
    recipe = Recipe(
        batch=16, rate=5e-3, decay=0.01, steps=4, anneal=0.5, epochs=1, width=4, rounds=2
    )
    fit(data, Settings(), recipe=recipe, folder=tmp_path)
    tensors, about = load_tensors(tmp_path / CHECKPOINT)
    whole = {key: about[key] for key in ("version", "data", "settings", "recipe")}
    for key, value in about.items():
        if key in whole or key == "memory":
            continue
        for new in ("x", None, [3]):
            save_tensors(tmp_path / CHECKPOINT, tensors, {**about, key: new})
            if new != value:
                with pytest.raises(RunError, match="cannot be used .*was it changed by hand"):
                    fit(data, Settings(), recipe=recipe, folder=tmp_path, resume=True)
    fewer = {name: tensor for name, tensor in tensors.items() if "output" not in name}
    smaller = {name: tensor[:1] if tensor.dim() else tensor for name, tensor in tensors.items()}
    for some in ({}, fewer, smaller):
        save_tensors(tmp_path / CHECKPOINT, some, about)
        with pytest.raises(RunError, match="cannot be used"):
            fit(data, Settings(), recipe=recipe, folder=tmp_path, resume=True)
    save_tensors(tmp_path / CHECKPOINT, tensors, [1])
    with pytest.raises(RunError, match="of something else"):
        fit(data, Settings(), recipe=recipe, folder=tmp_path, resume=True)


def test_values_come_back_by_their_types() -> None:
    for box in (None, (0.0, 1.0), ((0.0, 1.0), (2.0, 3.0))):
        good = Certificate("exact", 0.5, box, True, "so", ("a",))
        assert from_json(Certificate, json.dumps({**vars(good), "new": 1})) == good
        assert from_json(Certificate, json.dumps(vars(replace(good, max_error=1)))).max_error == 1
    for kind, value, said in (
        (int, True, "it is True, not int"),
        (float, "1", "not float"),
        (tuple[int, int], [1], r"it is \[1\]"),
        (Report, {}, "no 'name'"),
        (dict[str, int], {"a": "b"}, r"\['a'\] is 'b', not int"),
        (list[tuple[int, ...]], [[1], [None]], r"\[1\]\[0\] is None"),
    ):
        with pytest.raises(ValueError, match=said):
            revive(kind, copy.copy(value))
