"""What the README shows runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
RECIPES = README.parent / "docs" / "recipes.md"


def test_the_library_examples_run(capsys) -> None:
    code, depth, proof = re.findall(
        r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S
    )
    exec(depth, {})
    capsys.readouterr()
    exec(proof, {})
    assert "Verdict(status='unsat'" in capsys.readouterr().out
    exec(code, {})
    out = capsys.readouterr().out
    assert "conv1 (8):" in out
    assert "(1971, 7419) 0.0" in out
    assert "8 dead units dropped" in out


@pytest.mark.parametrize("number", range(11))
def test_the_recipes_run(number: int, capsys) -> None:
    parts = re.findall(r"```python\n(.*?)```", RECIPES.read_text(encoding="utf-8"), re.S)
    assert len(parts) == 11
    torch.manual_seed(0)
    exec(parts[number], {})
    out = capsys.readouterr().out
    wanted = (
        "20 {",
        " -> ",
        "Linear",
        "active=3",
        "('link 1', 'link 3')",
        "(64, 80)",
        "undecided",
        "\nTrue",
        "Tanh",
        "20\n",
        "petal width (cm)   2",
    )
    assert wanted[number] in out


def test_the_rooms_exist() -> None:
    package = README.parent / "src" / "morphogen"
    for room in re.findall(
        r"^\| ((?:`[\w./]+`,? ?)+) \|", README.read_text(encoding="utf-8"), re.M
    ):
        for name in re.findall(r"`([\w./]+)`", room):
            assert (package / name).exists(), name


def test_the_rooms_begin_where_the_readme_says() -> None:
    """A folder, and the files to begin with."""
    package = README.parent / "src" / "morphogen"
    rows = re.findall(r"^\| `(\w+)/` \|.*\| ([^|]+) \|$", README.read_text(encoding="utf-8"), re.M)
    assert len(rows) > 10
    for room, files in rows:
        for name in re.findall(r"`([\w./]+)`", files):
            assert (package / room / name).exists(), f"{room}/{name}"


def test_what_a_reader_searches_for_is_said() -> None:
    pages = [README, *README.parent.joinpath("docs").glob("*.md")]
    text = " ".join(page.read_text(encoding="utf-8") for page in pages)
    for term in ("CROWN", "alpha-CROWN", "branch and bound", "IBP", "unstable neuron", "PGD"):
        assert term in text, term
