"""A search that ends in a linear model, where nothing more is to be learned."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn

from morphogen.data.from_frame import from_frame
from morphogen.fitting.fit import Fitted, fit
from morphogen.fitting.linear import closest
from morphogen.fitting.problem import Settings
from morphogen.fitting.run import Options, run
from morphogen.policies import POLICIES


def table(classification: bool = False, curved: float = 0.0) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(600, 4))
    y = x @ [3.0, -2.0, 1.0, 0.5] + curved * x[:, 0] * x[:, 1]
    if classification:
        y = np.where(y + 2 * draw.logistic(size=600) > 0, "yes", "no")
    else:
        y = 20 + y + 0.1 * draw.normal(size=600)
    return pd.DataFrame(x, columns=list("abcd")).assign(y=y)


def found(frame: pd.DataFrame, **settings) -> tuple[Fitted, np.ndarray]:
    """With what it says of the test rows."""
    data = from_frame(frame[:400], "y", test=frame[400:])
    fitted = fit(data, Settings(**settings))
    kind = next(fitted.plain.parameters()).dtype
    with torch.no_grad():
        return fitted, fitted.plain(torch.as_tensor(data.x_test).to(kind)).double().numpy()


@pytest.mark.parametrize("regression", [False, True])
def test_it_is_the_closest(regression: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator)
    y = x[:, :2] * 2 + 1 + torch.randn(300, 2, generator=generator)
    weight = torch.rand(300, generator=generator) + 0.1
    layer = closest(x, y if regression else y.softmax(1), regression, weight, generator)
    assert layer is not None
    if regression:
        peer = LinearRegression().fit(x, y, weight)
        assert np.allclose(layer.weight.detach(), peer.coef_, atol=1e-3)
        assert np.allclose(layer.bias.detach(), peer.intercept_, atol=1e-3)
    else:
        shares = y.softmax(1)
        peer = LogisticRegression(C=1e6).fit(
            x.repeat(2, 1),
            np.repeat([0, 1], 300),
            (weight * shares.T).reshape(-1),
        )
        said = layer(x).softmax(1)[:, 1].detach()
        assert np.allclose(said, peer.predict_proba(x)[:, 1], atol=5e-3)


def test_too_many_features_have_none() -> None:
    generator = torch.Generator()
    assert closest(torch.zeros(3, 2001), torch.zeros(3, 1), True, None, generator) is None


def test_linear_data_get_the_linear_model() -> None:
    frame = table()
    fitted, said = found(frame)
    assert [layer.kind for layer in fitted.report.result.shape] == ["output"]
    peer = LinearRegression().fit(frame[list("abcd")][:400], frame.y[:400])
    theirs = peer.predict(frame[list("abcd")][400:])
    wrong, peers = (np.sqrt(np.mean((v - frame.y[400:]) ** 2)) for v in (said[:, 0], theirs))
    assert wrong < 1.05 * peers
    assert sum(p.numel() for p in fitted.plain.parameters()) <= 10
    assert any("no hidden layer" in note for note in fitted.report.notes)


def test_classes_that_are_linear_too() -> None:
    fitted, said = found(table(classification=True))
    assert [layer.kind for layer in fitted.report.result.shape] == ["output"]
    truth = torch.tensor([cell == "yes" for cell in table(classification=True).y[400:]]).long()
    assert float(F.cross_entropy(torch.as_tensor(said), truth)) < 0.55


def test_what_is_curved_gets_a_hidden_layer() -> None:
    fitted, _ = found(table(curved=3.0))
    assert isinstance(fitted.plain[-2], nn.ReLU)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_leaves_it_alone(policy: str) -> None:
    fitted, _ = found(table(), policy=policy)
    assert [layer.kind for layer in fitted.report.result.shape] == ["output"]


def test_a_run_of_one_leaves_all_its_files_and_goes_on(tmp_path: Path) -> None:
    frame = table()
    data = from_frame(frame[:400], "y", test=frame[400:])
    options = Options(quiet=True, compress=True)
    fitted, report = run(data, options, out=tmp_path / "run")
    again, _ = run(data, Options(quiet=True, compress=True, resume=True), out=tmp_path / "run")
    for ours, theirs in zip(fitted.plain.parameters(), again.plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    names = [row.name for row in report.table]
    assert names[0] == "found by morphogen"
    assert "same shape from scratch" in names
    room = {"__file__": str(tmp_path / "run" / "model.py"), "__name__": "page"}
    exec((tmp_path / "run" / "model.py").read_text(), room)
    x = torch.as_tensor(data.x_test)
    assert torch.equal(room["load"]()(x), fitted.plain(x))
