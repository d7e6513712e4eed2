"""A user's type checker is content with what the README and the recipes show, and sees a wrong
choice.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "recipes.md"]
ENVIRONMENT = {**os.environ, "MYPYPATH": str(ROOT / "src")}

WRONG = """
import torch
from torch import nn

import morphogen as mg

x, model = torch.zeros(2, 4), nn.Sequential(nn.Linear(4, 4))
box = mg.linf_ball(x[:1], 0.1)
mg.MorphogenClassifier(policy="luck")
mg.MorphogenRegressor(wiring="ring")
mg.Dag(4, 4, 2, wiring="ring")
mg.Dag(4, 4, 2, activation="step")
mg.link(model, x, init="keep")
mg.regions(model, box, method="luck")
mg.shallow(model, box, form="luck")
mg.compress(model, box, rules=["luck"])
mg.load_data("digits", task="clustering")
mg.verify(model, box, mg.misclassified(0, 4)).status == "proved"
"""


@pytest.fixture
def scripts(tmp_path: Path) -> list[Path]:
    """Each block as a user's script, whose functions need no annotations."""
    written = []
    for page in PAGES:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
        for number, block in enumerate(blocks):
            path = tmp_path / f"{page.stem.lower()}_{number}.py"
            path.write_text(
                f"# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls\n{block}"
            )
            written.append(path)
    assert len(written) == 14
    return written


def mypy(*paths: Path) -> subprocess.CompletedProcess[str]:
    """Strict, with the settings and the cache of this repository."""
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", *map(str, paths)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def test_mypy_is_content(scripts: list[Path]) -> None:
    done = mypy(*scripts)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("pyright") is None, reason="needs pyright")
def test_pyright_is_content(scripts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT / "src"}"]}}')
    command = ["pyright", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_choice_is_seen_before_the_script_runs(tmp_path: Path) -> None:
    script = tmp_path / "wrong.py"
    script.write_text(WRONG)
    done = mypy(script)
    wrong = [number for number, line in enumerate(WRONG.splitlines(), 1) if '"' in line]
    told = re.findall(r"wrong\.py:(\d+): error", done.stdout)
    assert list(map(int, told)) == wrong, done.stdout


def test_the_types_are_shipped() -> None:
    assert (ROOT / "src" / "morphogen" / "py.typed").exists()
