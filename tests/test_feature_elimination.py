"""Input features that leave a trained network, and what takes over from them."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from morphogen import Grow, Shrink, freeze, plan, resize, trace, widths
from morphogen.data.dataset import Dataset, from_arrays
from morphogen.edit.ledger import replay
from morphogen.fitting.export import export
from morphogen.fitting.feature_elimination import _next, _path, eliminate, take_over
from morphogen.fitting.fit import fit
from morphogen.fitting.problem import Settings
from morphogen.layers.feature_selection import FeatureSelection, is_selection
from morphogen.models import mlp


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(count: int, columns: int) -> Tensor:
    return torch.randn(count, columns, generator=draw(), dtype=torch.float64)


def selecting(columns: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mlp(columns, 1, width=6, select=True).double()


def test_features_leave_with_what_reads_them_and_come_back() -> None:
    model = selecting(10)
    x = rows(20, 10)
    model(x)  # averages of its own
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    model.load_state_dict(before)
    with torch.no_grad():
        model.hidden.weight[:, [2, 7]] = 0
    wanted = model(x)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    done = resize(model, [Shrink("features", [2, 7])], example=x, optimizers=[optimizer])
    assert model.features.index.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert model.hidden.weight.shape == (6, 8)
    assert torch.allclose(model(x), wanted, atol=1e-12)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in model.parameters()
    }
    grown = resize(model, [Grow("features", 2)], example=x, optimizers=[optimizer])
    assert torch.allclose(model(x), wanted, atol=1e-12)  # a feature that is read twice, by zeros
    grown.undo()
    done.undo()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_the_width_is_found_through_any_index() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("order", torch.tensor([3, 1, 0]))
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.index_select(x, 1, self.order))

    model = Own()
    known = widths(trace(model, torch.randn(4, 5)))
    slots = {(slot.tensor, slot.role) for slot in known["order"].slots}
    assert slots == {("order", "index"), ("linear.weight", "in")}
    assert known["order"].size == 3
    assert not known["order"].fixed
    assert "order" in str(plan(model, known, [Shrink("order", [0])]))


def test_a_plain_network_selects_only_where_something_left() -> None:
    model = selecting(5).eval()
    whole, _ = freeze(model, rows(8, 5))
    assert not any(map(is_selection, whole.modules()))
    resize(model, [Shrink("features", [1])], example=rows(8, 5))
    part, _ = freeze(model, rows(8, 5))
    assert is_selection(part[0])
    assert part[0].index.tolist() == [0, 2, 3, 4]
    assert not any(type(m).__module__.startswith("morphogen") for m in part.modules())


def test_what_is_left_says_as_much_as_it_can() -> None:
    x = rows(400, 12)
    x[:, 6:] += x[:, :6]
    weight = rows(5, 12)
    fisher = rows(5, 1)[:, 0].square()
    centred = x - x.mean(0)
    errors = []
    for left, wanted in _path(x, weight, fisher):
        best = torch.linalg.lstsq(centred[:, left], centred @ weight.T).solution.T
        assert torch.allclose(wanted, best, atol=2e-2 * float(best.abs().max()))
        error = (centred @ weight.T - centred[:, left] @ wanted.T).square().mean(0)
        errors.append(float((fisher * error).sum()))
    assert len(errors) == 11
    assert errors == sorted(errors)
    # the first to leave is the one without which the others say most
    each = []
    for gone in range(12):
        left = [place for place in range(12) if place != gone]
        best = torch.linalg.lstsq(centred[:, left], centred @ weight.T).solution
        error = (centred @ weight.T - centred[:, left] @ best).square().mean(0)
        each.append(float((fisher * error).sum()))
    assert errors[0] == pytest.approx(min(each), rel=1e-2)


def test_of_two_that_say_the_same_one_stays() -> None:
    x = rows(300, 3)
    x = torch.cat([x, 1 - x[:, :1], 1 - x[:, 1:2]], 1)  # two pairs, each as good without one
    inverse = torch.linalg.inv(x.T @ x / 300 + 1e-6 * torch.eye(5))
    gone = _next(rows(4, 5), inverse, torch.ones(4, dtype=torch.float64), 2)
    assert {int(g) % 3 for g in gone} == {0, 1}


def learned(x: Tensor, y: Tensor) -> nn.Sequential:
    model = selecting(x.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(model(x)[:, 0], y).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("classification", [False, True])
def test_noise_and_copies_leave_and_the_model_stays_as_it_was(classification: bool) -> None:
    x = rows(500, 4)
    y = x[:, 0].abs() + x[:, 1]
    # two that matter, two of noise, three copies of what matters, a constant
    x = torch.cat([x, x[:, :1], 2 * x[:, 1:2] + 1, x[:, :1], torch.ones_like(x[:, :1])], 1)
    model = learned(x, y)
    if classification:
        model.append(nn.Linear(1, 2).double())
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def losses(m: nn.Module) -> Tensor:
        with torch.no_grad():
            out = m(x)[:, 0] if not classification else m[:-1](x)[:, 0]
        return (out - y).square() + 0.1

    fewer = eliminate(model, x, losses, 0.01, classification, draw())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert fewer is not None
    left = set(range(8)) - set(fewer.drop)
    assert len(left) == 2
    assert left & {0, 4, 6}
    assert left & {1, 5}
    assert fewer.weight.shape == (6, 2)
    # the rise that it names is what one finds
    loss = float(losses(model).mean())
    resize(model, [Shrink("features", fewer.drop)], example=x[:4])
    take_over(model, fewer)
    assert float(losses(model).mean()) == pytest.approx(loss + fewer.rise, rel=1e-9)
    assert abs(fewer.rise) < 0.05


def test_nothing_leaves_where_everything_matters_or_nothing_is_charged() -> None:
    x = rows(500, 4)
    model = learned(x, x @ torch.tensor([1.0, -1, 2, 1], dtype=torch.float64))

    def losses(m: nn.Module) -> Tensor:
        with torch.no_grad():
            return (m(x)[:, 0] - x @ torch.tensor([1.0, -1, 2, 1]).double()).square() + 1e-3

    assert eliminate(model, x, losses, 0.01, False, draw()) is None


def data() -> Dataset:
    """Two columns that matter, ten times each."""
    chance = np.random.default_rng(0)
    x = np.tile(chance.normal(size=(400, 2)), (1, 10)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] + chance.logistic(size=400) > 0).astype(np.int64)
    return from_arrays(x[:300], y[:300], x[300:], y[300:])


def test_a_found_network_reads_what_it_needs(tmp_path: Path) -> None:
    fitted = fit(data(), Settings(seed=1))
    assert is_selection(fitted.plain[0])
    index = fitted.plain[0].index
    assert {int(i) % 2 for i in index} == {0, 1}
    assert len(index) < 10
    edits = [edit for edit in fitted.ledger if edit.width == "features"]
    assert [type(edit) for edit in edits] == [Shrink]
    assert 20 - len(edits[0].drop) == len(index)
    base = mlp(20, 2, fitted.recipe.width, fitted.recipe.dropout, select=True)
    replay(base, fitted.ledger, torch.as_tensor(data().x_train[:8]))
    assert {n: t.shape for n, t in base.state_dict().items()} == {
        n: t.shape for n, t in fitted.model.state_dict().items()
    }
    change = next(c for c in fitted.report.changes if c.where == "features")
    assert (change.before, change.after) == (20, len(index))
    export(fitted, data(), fitted.report, tmp_path)
    spec = importlib.util.spec_from_file_location("page", tmp_path / "model.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    x = torch.as_tensor(data().x_test)
    assert torch.equal(page.load()(x), fitted.plain(x))
    assert "features.index" in load_file(tmp_path / "model.safetensors")


def test_all_features_stay_where_the_recipe_says_so() -> None:
    recipe = replace(fit(data(), Settings(seed=1, seconds=2)).recipe, feature_penalty=0.0)
    fitted = fit(data(), Settings(seed=1, seconds=2), recipe=recipe)
    assert isinstance(fitted.plain[0], nn.Linear)
    assert fitted.plain[0].in_features == 20
    assert not any(isinstance(m, FeatureSelection) for m in fitted.model.modules())


def test_a_loss_of_nothing_is_no_fault() -> None:
    x = rows(50, 4)
    model = selecting(4).eval()
    fewer = eliminate(model, x, lambda m: torch.zeros(50), 0.01, False, draw())
    assert fewer is not None
    assert len(fewer.drop) == 3
