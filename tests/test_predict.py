"""A finished run and new rows: the command, the library and the page say the same, whatever the
table looks like.
"""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import morphogen as mg
from morphogen import DataError, RunError
from morphogen.cli.app import app
from morphogen.data.dataset import Dataset, from_arrays
from morphogen.data.from_frame import from_frame
from morphogen.fitting import predict as scoring
from morphogen.fitting.export import export
from morphogen.fitting.fit import fit
from morphogen.fitting.problem import Settings
from morphogen.fitting.recipe import Recipe
from morphogen.training.train import predict as network_output

QUICK = Recipe(batch=32, rate=5e-3, decay=0.01, steps=10, anneal=0.5, epochs=1, width=4, rounds=2)
ROWS = 200


def shop(rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    """Numbers with gaps, a flag, text, codes that look like numbers, many names."""
    draw = np.random.default_rng(seed)
    age = draw.integers(18, 80, rows).astype(float)
    age[::17] = np.nan
    town = draw.choice(["Ulm", "Bonn", "Köln"], rows)
    code = draw.choice(["01", "02", "x"], rows)
    return pd.DataFrame(
        {
            "age": age,
            "town": town,
            "member": draw.random(rows) < 0.5,
            "code": code,
            "income": draw.normal(size=rows),
        }
    )


def made(folder: Path, data: Dataset) -> Path:
    fitted = fit(data, Settings(distillation=False), recipe=QUICK)
    export(fitted, data, fitted.report, folder)
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frame = shop()
    label = np.where(frame.income > 0.5, "yes", np.where(frame.town == "Ulm", 'a "b"', "no, never"))
    return made(
        tmp_path_factory.mktemp("classes"), from_frame(frame.assign(buys=label), target="buys")
    )


@pytest.fixture(scope="module")
def dates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regression far from 0, whose last layer computes in float64."""
    frame = shop()
    seconds = 1.7e9 + 20 * frame.income
    return made(
        tmp_path_factory.mktemp("dates"), from_frame(frame.assign(when=seconds), target="when")
    )


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def page(folder: Path, *arguments: object) -> tuple[pd.DataFrame, str]:
    """What `python model.py` prints where nothing of ours, nor scikit-learn, can be imported."""
    code = (
        "import runpy, sys; sys.modules.update(morphogen=None, sklearn=None, onnxruntime=None); "
        f"sys.argv = {['model.py', *map(str, arguments)]!r}; "
        f"runpy.run_path({str(folder / 'model.py')!r}, run_name='__main__')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return pd.read_csv(io.StringIO(done.stdout)), done.stderr


ODD = """\
more;income ; town;code;age;member
a;0.5;Ulm;01;30;True
b;1.5;Paris;02;old;False
c;;;;;
d;-3;Bonn;2;1e9;maybe
e;0.1;Ulm;99;?;True
"""


def test_the_command_the_library_and_the_page_say_the_same(classes: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.csv"
    new.write_text(ODD)
    printed = pd.read_csv(io.StringIO(call(classes, new)))
    chances = pd.read_csv(io.StringIO(call(classes, new, "--proba")))
    assert list(printed) == ["buys"]
    assert list(chances) == ['a "b"', "no, never", "yes"]
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-5)
    assert list(printed.buys) == list(chances.idxmax(axis=1))

    frame = pd.read_csv(new, sep=";", skipinitialspace=True, dtype={"code": str}, na_values=["?"])
    frame = frame.rename(columns=str.strip)
    assert mg.predict(classes, frame).equals(printed)
    pd.testing.assert_frame_equal(
        mg.predict(str(classes), frame, proba=True), chances, check_dtype=False, rtol=1e-5
    )

    from_page, notes = page(classes, new)
    assert from_page.equals(printed)
    pd.testing.assert_frame_equal(page(classes, new, "--proba")[0], chances, atol=1e-5)
    assert notes == "".join(
        f"note: column '{name}': 1 cells that cannot be read, such as '{first}': read as missing\n"
        for name, first in (("age", "old"), ("member", "maybe"))
    )


def test_a_regression_is_in_the_targets_own_unit(dates: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.parquet"
    shop(50, seed=1).to_parquet(new)
    printed = pd.read_csv(io.StringIO(call(dates, new)))
    assert list(printed) == ["when"]
    # of a spread of 20: neither file may lose it
    assert printed.when.between(1.7e9 - 200, 1.7e9 + 200).all()
    assert printed.when.std() > 0.1
    pd.testing.assert_frame_equal(page(dates, new)[0], printed, rtol=0, atol=0.05)
    with pytest.raises(DataError, match="proba=True: a regression has no probabilities"):
        call(dates, new, "--proba")


def test_a_stray_text_is_a_gap_with_one_note_a_column(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over many parts of a file: counted together, the first one named."""
    frame = shop(95).astype({"age": object, "member": object})
    clean = frame.copy()
    for row in (10, 40, 94):
        frame.loc[row, "age"] = f"text {row}"
        clean.loc[row, "age"] = np.nan
    frame.to_csv(tmp_path / "stray.csv", index=False)
    clean.to_csv(tmp_path / "clean.csv", index=False)
    whole = call(classes, tmp_path / "stray.csv")
    assert whole == call(classes, tmp_path / "clean.csv")
    monkeypatch.setattr(scoring, "rows_at_once", lambda scorer: 9)
    strays = scoring.Strays()
    parts = list(scoring.predict_file(classes, tmp_path / "stray.csv", strays))
    assert [len(part) for part in parts] == [9] * 10 + [5]
    assert pd.concat(parts).to_csv(index=False) == whole
    assert strays.notes() == (
        "column 'age': 3 cells that cannot be read, such as 'text 10': read as missing",
    )


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_every_kind_of_table_in_parts(
    classes: Path, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = shop(60, seed=2)
    path = tmp_path / f"new{ending}"
    if ending == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
    expected = mg.predict(classes, frame)
    monkeypatch.setattr(scoring, "rows_at_once", lambda scorer: 7)
    parts = list(scoring.predict_file(classes, path, scoring.Strays()))
    assert [len(part) for part in parts] == [7] * 8 + [4]
    assert pd.concat(parts).equals(expected)


def test_a_code_that_looks_like_a_number_is_the_level_that_training_saw(classes: Path) -> None:
    """In a part of a file where all codes are numbers, pandas would read 1 for 01."""
    same = shop(1).drop(columns="code")
    chances = [
        mg.predict(classes, same.assign(code=code), proba=True).to_numpy()
        for code in ("01", " 01", "x", "7", np.nan)
    ]
    assert np.array_equal(chances[0], chances[1])
    assert not np.array_equal(chances[0], chances[2])
    assert not np.array_equal(chances[0], chances[3])


def test_whole_numbers_that_training_saw_as_text_of_floats(tmp_path: Path) -> None:
    """A gap makes floats of a file's integers: they are found under the same level."""
    draw = np.random.default_rng(0)
    floor = pd.Series(draw.choice(["3", "4", "attic"], ROWS))
    frame = pd.DataFrame({"floor": floor, "y": np.where(floor == "3", "low", "high")})
    run = made(tmp_path, from_frame(frame, target="y"))
    texts = [mg.predict(run, pd.DataFrame({"floor": [cell]}), proba=True) for cell in ("3", "3.0")]
    number = mg.predict(run, pd.DataFrame({"floor": [3.0, np.nan]}), proba=True)[:1]
    assert texts[0].equals(texts[1])
    assert texts[0].equals(number)


def test_missing_columns_are_named_and_further_ones_ignored(classes: Path, tmp_path: Path) -> None:
    frame = shop(5)
    assert mg.predict(classes, frame[sorted(frame)].assign(x=1)).equals(mg.predict(classes, frame))
    frame.drop(columns=["age", "town"]).to_csv(tmp_path / "few.csv", index=False)
    frame.drop(columns=["age", "town"]).to_parquet(tmp_path / "few.parquet")
    for name in ("few.csv", "few.parquet"):
        with pytest.raises(DataError, match=f"{name} lacks the columns 'age', 'town'"):
            call(classes, tmp_path / name)
    with pytest.raises(DataError, match="age"):
        mg.predict(classes, frame.drop(columns="age"))


def test_an_empty_table_gives_an_empty_result(classes: Path, tmp_path: Path) -> None:
    frame = shop(5)[:0]
    frame.to_csv(tmp_path / "none.csv", index=False)
    assert call(classes, tmp_path / "none.csv") == "buys\n"
    assert mg.predict(classes, frame).empty


def test_out_is_written_as_a_whole_or_not_at_all(classes: Path, tmp_path: Path) -> None:
    frame = shop(20)
    frame.to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "said.csv"
    assert call(classes, tmp_path / "new.csv", "--out", out) == ""
    assert pd.read_csv(out).equals(mg.predict(classes, frame))
    (tmp_path / "bad.csv").write_text("age,town\n1,a\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError):
        call(classes, tmp_path / "bad.csv", "--out", tmp_path / "never.csv")
    with pytest.raises(DataError, match="cannot be written"):
        call(classes, tmp_path / "new.csv", "--out", tmp_path / "absent" / "x.csv")
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_without_a_finished_run_is_one_clear_error(classes: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no finished run"):
        mg.predict(tmp_path, shop(1))
    (tmp_path / "model.onnx").write_bytes(b"hello")
    with pytest.raises(RunError, match="cannot be read"):
        mg.predict(tmp_path, shop(1))
    (tmp_path / "model.onnx").write_bytes((classes / "model.onnx").read_bytes())
    with pytest.raises(RunError, match=r"preparation.json cannot be used"):
        mg.predict(tmp_path, shop(1))
    for odd in ("[]", "{}", '{"numbers": [3]}', "x"):
        (tmp_path / "preparation.json").write_text(odd)
        with pytest.raises((RunError, DataError)):
            mg.predict(tmp_path, shop(1))
    with pytest.raises(DataError, match="there is no file"):
        call(classes, tmp_path / "absent.csv")


def test_a_network_of_arrays_takes_its_features_in_their_order(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(120, 4)).astype(np.float32)
    data = from_arrays(x, np.where(x[:, 0] > 0, "up", "down"))
    fitted = fit(data, Settings(distillation=False), recipe=QUICK)
    export(fitted, data, fitted.report, tmp_path)
    table = pd.DataFrame(x, columns=list("abcd"))
    logits = network_output(fitted.plain, torch.as_tensor(x)).numpy()
    expected = np.array(data.classes)[logits.argmax(1)]
    assert list(mg.predict(tmp_path, table)["prediction"]) == list(expected)
    with pytest.raises(DataError, match="3 columns; the network reads 4 features"):
        mg.predict(tmp_path, table[["a", "b", "c"]])
    with pytest.raises(DataError, match="column 'b' has gaps or text"):
        mg.predict(tmp_path, table.assign(b="x"))


def test_classes_and_columns_are_data_in_every_file(classes: Path) -> None:
    names, columns = ['a "b"', "no, never", "yes"], ["age", "member", "income", "town", "code"]
    structure = json.loads((classes / "structure.json").read_text())
    about = onnxruntime.InferenceSession(classes / "model.onnx").get_modelmeta()
    said = {key: json.loads(about.custom_metadata_map[key]) for key in ("classes", "columns")}
    assert (structure["classes"], structure["targets"]) == (names, ["buys"])
    assert said["classes"] == names
    assert json.loads(about.custom_metadata_map["targets"]) == ["buys"]
    assert about.custom_metadata_map["task"] == structure["task"] == "classification"
    assert sorted(structure["columns"]) == sorted(said["columns"]) == sorted(columns)
    room: dict = {"__file__": str(classes / "model.py"), "__name__": "model"}
    exec((classes / "model.py").read_text(), room)
    assert room["CLASSES"] == tuple(names)
    assert room["TARGETS"] == ("buys",)
    assert room["predict"](shop(9)).equals(mg.predict(classes, shop(9)))


def test_it_starts_without_torch(classes: Path, tmp_path: Path) -> None:
    shop(5).to_csv(tmp_path / "new.csv", index=False)
    code = (
        "import sys; from typer.testing import CliRunner; from morphogen.cli.app import app; "
        f"done = CliRunner().invoke(app, ['predict', {str(classes)!r}, "
        f"{str(tmp_path / 'new.csv')!r}]); "
        "assert done.exit_code == 0, done.output; "
        "print(*{'torch', 'sklearn', 'onnx', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_a_part_fits_into_memory() -> None:
    class Session:
        pass

    scorer = scoring.Scorer(Session(), "classification", ("y",), ("a", "b"), None, (20,))  # type: ignore[arg-type]
    assert scoring.rows_at_once(scorer) == 100_000
    assert scoring.rows_at_once(replace(scorer, features=(3, 224, 224))) == 100
    assert scoring.rows_at_once(replace(scorer, features=(2_000,))) == 4_194
