"""Numbers far from 0, as seconds since 1970: nothing of them is lost on the way through float32."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from sklearn.metrics import r2_score
from torch import nn

from morphogen import DataError, NotExact, Unsupported
from morphogen.data.dataset import Dataset, from_arrays
from morphogen.data.from_frame import from_frame
from morphogen.fitting.baselines import baselines
from morphogen.fitting.control import compressed
from morphogen.fitting.estimator import MorphogenRegressor
from morphogen.fitting.export import export
from morphogen.fitting.fit import Fitted, fit
from morphogen.fitting.metrics import metric_for
from morphogen.fitting.recipe import Recipe
from morphogen.formats.onnx import export_onnx
from morphogen.formats.source import source
from morphogen.training.train import predict

BASE = 1.7e9
QUICK = Recipe(batch=32, rate=5e-3, decay=0.01, steps=20, anneal=0.5, epochs=30, width=4, rounds=8)


def rows(count: int = 400) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 2))


def test_a_regressor_is_the_same_far_from_zero() -> None:
    x = rows(120)
    y = 20 * x[:, 0]
    near = MorphogenRegressor(random_state=0).fit(x, y)
    far = MorphogenRegressor(random_state=0).fit(BASE + 20 * x, BASE + y)
    assert near.score(x, y) > 0.95
    assert far.score(BASE + 20 * x, BASE + y) == pytest.approx(near.score(x, y), abs=0.01)
    for model, shift, scale, kind in ((near, 0, 1, torch.float32), (far, BASE, 20, torch.float64)):
        network, columns = model.to_torch(), shift + scale * x
        with torch.no_grad():
            seen = network(torch.as_tensor(columns, dtype=kind))[:, 0].numpy()
        np.testing.assert_allclose(seen, model.predict(columns), rtol=0, atol=1e-3)


Ran = tuple[Fitted, Dataset, pd.DataFrame, Path]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run on a table with both: (what came out, the data, the table, the folder)."""
    x = rows(600)
    frame = pd.DataFrame(
        {"seen": BASE + 20 * x[:, 0], "other": x[:, 1], "due": BASE + 1e6 + 20 * x[:, 0] + x[:, 1]}
    )
    dataset, folder = from_frame(frame, "due"), tmp_path_factory.mktemp("far") / "run"
    fitted = fit(dataset, recipe=QUICK)
    export(fitted, dataset, fitted.report, folder)
    return fitted, dataset, frame, folder


def test_a_run_scores_in_the_target_s_own_spread(ran: Ran) -> None:
    fitted, dataset, _, _ = ran
    assert dataset.y_train.dtype == np.float64
    score = fitted.report.table[0].score
    assert score is not None
    assert score < 5  # of a spread of 20
    out = predict(fitted.plain, torch.as_tensor(dataset.x_test))[:, 0].numpy()
    assert np.sqrt(np.mean((out - dataset.y_test) ** 2)) == pytest.approx(score, rel=1e-3)


def test_the_files_of_a_run_predict_it_too(ran: Ran, tmp_path: Path) -> None:
    fitted, _, frame, folder = ran
    frame.to_csv(tmp_path / "t.csv", index=False)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import model, numpy, pandas, torch;"
        "x = torch.as_tensor(model.prepare(pandas.read_csv(sys.argv[2])));"
        "numpy.savez(sys.argv[3], x=x.numpy(), y=model.load()(x).detach().numpy())"
    )
    found = tmp_path / "found.npz"
    subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "t.csv"), str(found)], check=True
    )
    stored = np.load(found)
    assert stored["x"].dtype == np.float32
    assert stored["y"].dtype == np.float64
    assert r2_score(frame.due, stored["y"][:, 0]) > 0.9
    (seen,) = onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"input": stored["x"]})
    assert seen.dtype == np.float64
    np.testing.assert_allclose(seen, stored["y"], rtol=0, atol=1e-2)
    np.testing.assert_allclose(
        stored["y"], predict(fitted.plain, torch.as_tensor(stored["x"])).numpy(), rtol=0, atol=1e-6
    )


def test_compressed_it_is_still_there(ran: Ran) -> None:
    fitted, dataset, _, _ = ran
    smaller = compressed(fitted, dataset)
    x = torch.as_tensor(dataset.x_train)
    torch.testing.assert_close(
        predict(smaller.plain, x), predict(fitted.plain, x), rtol=0, atol=1e-4
    )
    first, last = fitted.report.table[0].score, smaller.report.table[-1].score
    assert last == pytest.approx(first, rel=1e-2)


def test_the_baselines_see_it(ran: Ran) -> None:
    _, dataset, _, _ = ran
    row = next(baselines(dataset, metric_for(None, "regression"), 0))
    assert row.score is not None
    assert row.score < 10


def test_arrays_that_float32_cannot_hold_are_refused_by_column() -> None:
    x = rows()
    far = np.stack([x[:, 0], BASE + 20 * x[:, 1]], 1)
    with pytest.raises(
        DataError,
        match=r"x_train\[:, 1\] has values about 1.7e\+09 that differ by about 19.9.*subtract",
    ):
        from_arrays(far, x[:, 0])
    kept = from_arrays(
        np.stack([x[:, 0], np.full(400, 0.1), np.full(400, BASE + 1), 1000 + x[:, 1]], 1),
        BASE + x[:, 0],
    )
    assert kept.x_train.dtype == np.float32
    assert kept.y_train.std() == pytest.approx(x[:, 0].std(), rel=1e-6)


def test_an_onnx_file_is_judged_by_the_spread_of_its_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        model[-1].bias += BASE
    x = torch.randn(20, 2, dtype=torch.float64)
    assert export_onnx(model, x, tmp_path / "good.onnx").max_error < 1e-5
    run_ = onnxruntime.InferenceSession.run
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *a, **k: [run_(*a, **k)[0] + 5])
    with pytest.raises(NotExact, match="onnx: outputs differ by 5"):
        export_onnx(model, x, tmp_path / "bad.onnx")
    assert not (tmp_path / "bad.onnx").exists()


def test_a_page_computes_in_the_network_s_own_type() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    room = {"__file__": "model.py", "__name__": "model"}
    exec(source(plain, title="t"), room)
    net = room["Net"]()
    net.load_state_dict({f"layers.{name}": t for name, t in plain.state_dict().items()})
    x = torch.randn(5, 2)
    assert torch.equal(net(x), plain(x.double()))
    plain[0].float()
    with pytest.raises(
        Unsupported, match=r"tensors of torch.float32, torch.float64; make them one"
    ):
        source(plain, title="t")


def test_float32_stays_where_it_is_enough() -> None:
    x = rows(200)
    data = from_arrays(x, 50 + 20 * x[:, 0])
    fitted = fit(data, recipe=replace(QUICK, epochs=1, rounds=1))
    assert all(p.dtype is torch.float32 for p in fitted.plain.parameters())
