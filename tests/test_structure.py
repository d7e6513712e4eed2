"""A structure is a versioned value, and two of them have a readable difference."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import morphogen as mg
from morphogen import AddBlock, Grow, RunError, Shrink
from morphogen.cli.app import app
from morphogen.edit.structure import read_structure
from problems import problem


def grown() -> tuple[nn.Module, nn.Module, tuple[Grow, AddBlock]]:
    (base, _), (model, x) = problem("mlp"), problem("mlp")
    ledger = (Grow("hidden", 2), AddBlock("depth"))
    for edit in ledger:
        mg.resize(model, [edit], example=x)
    return base, model, ledger


def test_a_structure_goes_through_json_and_holds_the_ledger() -> None:
    _, model, ledger = grown()
    found = json.loads(json.dumps(mg.structure(model, ledger)))
    assert found["schema"] == 3
    assert [edit["edit"] for edit in found["ledger"]] == ["Grow", "AddBlock"]
    assert found["modules"]["hidden"] == {"kind": "Linear", "tensors": {"weight": [6, 5]}}


def test_the_difference_has_a_line_for_each_module_that_changed() -> None:
    base, model, _ = grown()
    lines = mg.diff(base, model).splitlines()
    assert "~ hidden Linear weight [4, 5] -> [6, 5]" in lines[0]
    assert any(line.startswith("+ depth.blocks.1") for line in lines)
    assert any(line.startswith("- depth.blocks.1") for line in mg.diff(model, base).splitlines())
    assert mg.diff(model, model) == ""
    assert len(lines) == len({line.split()[1] for line in lines})


def test_a_module_of_another_kind_leaves_and_comes() -> None:
    before, after = nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.LayerNorm(3))
    lines = mg.diff(before, after).splitlines()
    assert [line[:13] for line in lines] == ["- 0 BatchNorm", "+ 0 LayerNorm"]
    assert mg.diff(nn.Linear(2, 3), nn.Linear(2, 4)).startswith("~ (model) Linear")


def test_files_and_checkpoints_are_compared_by_the_command(tmp_path: Path) -> None:
    base, model, ledger = grown()
    (tmp_path / "structure.json").write_text(json.dumps(mg.structure(base)))
    checkpoint = mg.save(model, tmp_path / "grown", ledger=ledger)
    assert read_structure(checkpoint) == mg.structure(model, ledger)
    result = CliRunner().invoke(app, ["diff", str(tmp_path / "structure.json"), str(checkpoint)])
    assert result.exit_code == 0
    assert result.output.strip() == mg.diff(base, model)
    result = CliRunner().invoke(app, ["diff", str(checkpoint), str(checkpoint)])
    assert result.output.strip() == "no difference"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no structure at"),
        ("{", "is no structure.json"),
        ("[]", "has structure schema None; this morphogen reads 3"),
        ('{"schema": 1}', "has structure schema 1; this morphogen reads 3"),
    ],
)
def test_what_is_no_structure_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "structure.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError, match=message):
        read_structure(path)


def test_shrinking_back_leaves_no_difference() -> None:
    model, x = problem("residual")
    before = mg.structure(model)
    mg.resize(model, [Grow("first", 2)], example=x)
    mg.resize(model, [Shrink("first", [6, 7])], example=torch.clone(x))
    assert mg.diff(before, model) == ""
