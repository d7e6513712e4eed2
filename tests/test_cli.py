"""The command as a person uses it: files, exit codes, one clear line for every fault."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from leaks import leaks
from morphogen.cli.app import as_options

COMMAND = [sys.executable, "-c", "from morphogen.cli.app import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )


def frame(rows: int = 240) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    age, town = (
        draw.integers(18, 80, rows).astype(float),
        draw.choice(["Ulm", "Bonn", "Köln"], rows),
    )
    age[::17] = np.nan
    income = draw.normal(size=rows)
    label = np.where(np.nan_to_num(age, nan=40) / 40 + income + (town == "Ulm") > 1.5, "yes", "no")
    return pd.DataFrame({"age": age, "town": town, "income": income, "buys": label})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a table with text, gaps and a text target."""
    folder = tmp_path_factory.mktemp("cli")
    frame().to_csv(folder / "shop.csv", index=False)
    done = call("fit", "shop.csv", "--target", "buys", "--time-limit", "20", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder


def test_a_run_leaves_its_files_and_says_the_result(finished: Path) -> None:
    run, printed = finished / "runs" / "shop", (finished / "printed").read_text()
    names = {p.name for p in run.iterdir()}
    assert names == {
        "checkpoints",
        "metrics.json",
        "model.onnx",
        "model.py",
        "model.safetensors",
        "preparation.json",
        "report.html",
        "structure.json",
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["task"] == "classification"
    assert metrics["test_score"] > 0.6
    assert [row["name"] for row in metrics["table"]] == [
        "found by morphogen",
        "same shape from scratch",
        "linear model",
        "gradient boosting",
    ]
    structure = json.loads((run / "structure.json").read_text())
    assert structure["schema"] == 3
    assert structure["shape"][-1]["units"] == 2
    for part in (
        "found ",
        "linear",
        "parameters",
        "same shape from scratch",
        "written to runs/shop/",
    ):
        assert part in printed
    assert "\x1b" not in printed


def test_no_file_of_a_run_names_a_folder_of_the_machine(finished: Path) -> None:
    assert leaks(finished / "runs") == []


def test_the_page_predicts_from_the_table_alone(finished: Path) -> None:
    code = (
        "import sys, pandas, torch; import model;"
        "x = torch.as_tensor(model.prepare(pandas.read_csv('../../shop.csv')));"
        "assert not any(m.startswith(('morphogen', 'sklearn')) for m in sys.modules);"
        "import onnxruntime; y = model.load()(x).detach().numpy();"
        "z = onnxruntime.InferenceSession('model.onnx').run(None, {'input': x.numpy()})[0];"
        "print(abs(y - z).max(), (y.argmax(1) == (pandas.read_csv('../../shop.csv').buys == "
        "'yes')).mean())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=finished / "runs" / "shop",
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    difference, accuracy = map(float, done.stdout.split())
    assert difference < 1e-4
    assert accuracy > 0.6


def test_a_second_run_takes_a_new_folder_and_out_refuses_the_old(finished: Path) -> None:
    refused = call("fit", "shop.csv", "--target", "buys", "--out", "runs/shop", cwd=finished)
    assert refused.returncode == 2
    assert "runs/shop already holds another run or other files; add --resume" in refused.stderr
    again = call(
        "fit",
        "shop.csv",
        "--target",
        "buys",
        "--time-limit",
        "2",
        "--quiet",
        "--no-control",
        cwd=finished,
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout == "runs/shop-2\n"
    assert (finished / "runs" / "shop-2" / "report.html").exists()


def test_a_corrupt_checkpoint_is_one_line(finished: Path) -> None:
    bad = finished / "runs" / "bad" / "checkpoints"
    bad.mkdir(parents=True)
    (bad / "last.safetensors").write_bytes(b"not tensors")
    done = call(
        "fit", "shop.csv", "--target", "buys", "--out", "runs/bad", "--resume", cwd=finished
    )
    assert done.returncode == 2
    assert "is corrupt" in done.stderr
    assert "delete it and start again without --resume" in done.stderr


FAULTS = {
    "missing file": (None, ["absent.csv", "--target", "y"], "absent.csv"),
    "missing target": (lambda f: f, ["t.csv", "--target", "bys"], "buys"),
    "no target": (lambda f: f, ["t.csv"], "target"),
    "constant target": (lambda f: f.assign(buys="yes"), ["t.csv", "--target", "buys"], "buys"),
    "target in other letters": (
        lambda f: f,
        ["t.csv", "--target", "Buys"],
        "did you mean 'buys'?",
    ),
    "no such column to drop": (
        lambda f: f,
        ["t.csv", "--target", "buys", "--drop", "agee"],
        "given as drop: did you mean 'age'?",
    ),
    "group and time": (
        lambda f: f,
        ["t.csv", "--target", "buys", "--group", "town", "--time", "age"],
        "--group town and --time age cannot be kept apart at once",
    ),
    "no such class weight": (
        lambda f: f,
        ["t.csv", "--target", "buys", "--class-weight", "even"],
        "--class-weight 'even' is unknown: give 'balanced'",
    ),
    "two columns of one name": (
        lambda f: f.rename(columns={"age": "town"}),
        ["t.csv", "--target", "buys"],
        "has 2 columns 'town'",
    ),
    "infinite values": (lambda f: f.assign(income=np.inf), ["t.csv", "--target", "buys"], "income"),
    "empty table": (lambda f: f[:0], ["t.csv", "--target", "buys"], "empty table"),
    "unknown set": (None, ["digitz"], "digits"),
    "unknown device": (
        lambda f: f,
        ["t.csv", "--target", "buys", "--device", "abacus"],
        "--device abacus",
    ),
    "unknown policy": (
        lambda f: f,
        ["t.csv", "--target", "buys", "--policy", "luck"],
        "trial, prune-expand",
    ),
    "tiny budget": (
        lambda f: f,
        ["t.csv", "--target", "buys", "--budget", "3"],
        "smallest network",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_clear_line_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    change, arguments, expected = FAULTS[name]
    if change:
        change(frame()).to_csv(tmp_path / "t.csv", index=False)
    before = sorted(tmp_path.rglob("*"))
    done = call("fit", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert expected in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_ten_thousand_texts_are_said_and_hashed(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = 12_000
    words = [f"w{i}" for i in draw.permutation(np.arange(rows) % 10_000)]
    x = draw.normal(size=rows)
    pd.DataFrame({"word": words, "x": x, "y": (x > 0).astype(int)}).to_csv(
        tmp_path / "t.csv", index=False
    )
    done = call("fit", "t.csv", "--target", "y", "--time-limit", "2", "--no-control", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "word" in done.stdout
    assert "hash" in done.stdout or "drop" in done.stdout


@pytest.mark.parametrize("wait", [0.5, 6.0])
def test_kill_nine_then_resume_ends_with_the_same_metrics(wait: float, tmp_path: Path) -> None:
    arguments = ["fit", "digits", "--budget", "2500", "--no-control", "--out"]
    whole = call(*arguments, "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [*COMMAND, *arguments, "cut"], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = call(*arguments, "cut", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr

    def metrics(name: str) -> dict:
        value = json.loads((tmp_path / name / "metrics.json").read_text())
        for row in (value, *value["table"]):
            row.pop("seconds")
        return value

    assert metrics("cut") == metrics("whole")
    assert (tmp_path / "cut/model.safetensors").read_bytes() == (
        tmp_path / "whole/model.safetensors"
    ).read_bytes()


def test_help_is_fast_to_read_and_complete(tmp_path: Path) -> None:
    text = call("fit", "--help", cwd=tmp_path).stdout
    for option in (
        "--target --task --test --budget --seed --time-limit --out --resume --device "
        "--quiet --baselines --metric"
    ).split():
        assert option in text


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("budget=5: too little", "--budget 5: too little"),
        (
            "folder=/a/b already holds another run; add resume=True to go on",
            "--out /a/b already holds another run; add --resume to go on",
        ),
        (
            "policy=gradmax: cannot change a network of wiring=dag; choose one",
            "--policy gradmax: cannot change a network of --wiring dag; choose one",
        ),
        ("the attribute alpha=0.5 and keep=[1, 2]", "the attribute alpha=0.5 and keep=[1, 2]"),
    ],
)
def test_messages_of_the_library_name_options_where_the_command_shows_them(
    said: str, shown: str
) -> None:
    assert as_options(said) == shown
