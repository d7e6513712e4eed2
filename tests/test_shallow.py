"""A shallow form is the network on the box, and above or below it everywhere, whatever terms it
has.
"""

import pytest
import torch
from torch import nn

from morphogen import NotExact, ShapeError, Unsupported
from morphogen.linear_regions.piecewise import piecewise
from morphogen.linear_regions.regions import regions
from morphogen.transforms.shallow import maximum as maximum_form
from morphogen.transforms.shallow.approximate import approximate_shallow
from morphogen.transforms.shallow.difference import difference, formal_terms
from morphogen.transforms.shallow.form import relu_tree
from morphogen.transforms.shallow.shallow import FORMS, shallow
from piecewise_nets import BUILD, Residual, cube, drawn, plain

DEEP = {"deep", "residual", "residual, leaky"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BUILD)
def test_a_form_is_the_network(name: str, form: str) -> None:
    model, box = drawn(name, 0)
    if form == "split" and name in DEEP:
        with pytest.raises(Unsupported, match="two hidden layers"):
            shallow(model, box, form)
        return
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made, certificate = shallow(model, box, form)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert (certificate.kind, certificate.proved) == ("exact", True)
    assert certificate.max_error < 1e-12
    inside = box.lower + box.width * torch.rand(2000, box.lower.shape[1], dtype=torch.float64)
    outside = 20 * torch.randn(2000, box.lower.shape[1], dtype=torch.float64)
    pruned = made.prune()
    assert pruned.n_terms <= made.n_terms
    for one in (made, pruned):
        torch.testing.assert_close(one(inside), model(inside), rtol=0, atol=1e-12)
        for x in (inside, outside):
            assert float((one.lower(x) - model(x)).max()) < 1e-11
            assert float((model(x) - one.upper(x)).max()) < 1e-11
        out = one.to_torch()
        torch.testing.assert_close(out(outside), one(outside), rtol=0, atol=1e-10)
        tree = relu_tree(out)
        assert all(isinstance(module, (nn.Flatten, nn.Linear, nn.ReLU)) for module in tree)
        torch.testing.assert_close(tree(inside), model(inside), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("form", ["maximum", "minimum", "max-min"])
def test_some_terms_are_bounds_everywhere(name: str, form: str) -> None:
    model, box = drawn(name, 1)
    made, certificate = shallow(model, box, form, max_cells=3)
    assert (certificate.kind, certificate.proved) == ("bounds", True)
    assert "stopped at 3" in certificate.reason
    x = 10 * torch.randn(5000, box.lower.shape[1], dtype=torch.float64)
    assert float((made.lower(x) - model(x)).max()) < 1e-11
    assert float((model(x) - made.upper(x)).max()) < 1e-11
    near = made.net.box.lower + made.net.box.width * torch.rand(
        5000, made.net.inputs, dtype=torch.float64
    )
    known = (
        (made.net.pattern(near)[:, None] == regions(made.net, max_cells=3).patterns).all(2).any(1)
    )
    for bound in {"maximum": [made.lower], "minimum": [made.upper]}.get(
        form, [made.lower, made.upper]
    ):
        torch.testing.assert_close(bound(near[known]), model(near[known]), rtol=0, atol=1e-12)


def test_terms_of_a_walk_are_pruned_by_programs() -> None:
    model = plain(2, (6, 4), 1).double().requires_grad_(False)
    model[2].weight.abs_()
    model[4].weight.abs_()  # convex: one term each of the different functions is enough
    cells = regions(model, cube(2), method="reverse search")
    made = maximum_form.maximum(cells.net, cells, 20.0)
    assert made.n_units == 0
    pruned = made.prune()
    assert pruned.n_terms <= cells.n_pieces
    x = 3 * (2 * torch.rand(2000, 2, dtype=torch.float64) - 1)
    torch.testing.assert_close(pruned(x), model(x), rtol=0, atol=1e-11)


def test_a_form_without_its_penalties_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    true = maximum_form.penalties
    monkeypatch.setattr(maximum_form, "penalties", lambda *given: 0.5 * true(*given))
    with pytest.raises(NotExact, match="shallow: outputs differ"):
        shallow(*drawn("residual", 0))


def test_formal_terms_follow_the_closed_form() -> None:
    # s, of P and Q together, is 1 on the second layer, then n s + 1, with skips (n + 1) s + 1
    for skip, growth in ((False, 4), (True, 5)):
        model = Residual(2, 4, 4, 1).double() if skip else plain(2, (4, 4, 4, 4), 1).double()
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                torch.nn.init.ones_(layer.weight)
                layer.weight.data[:, : layer.in_features // 2] = -1.0
        net = piecewise(model, cube(2))
        s = 1
        for _ in range(2):
            s = growth * s + 1
        total = formal_terms(net)
        if not skip:  # half of the weights are positive, so the output has P and Q of 2 s each
            assert total == pytest.approx(2 * s + 1)
        else:
            assert total > 2 * growth * growth


def test_too_many_terms_are_refused_before_any_is_built() -> None:
    torch.manual_seed(0)
    model = Residual(2, 2, 6, 1).double().requires_grad_(False)
    with pytest.raises(
        Unsupported, match=r"'difference' would have 2\^\d+\.\d terms, and the limit is 2\^20"
    ):
        shallow(model, cube(2), "difference")
    with pytest.raises(Unsupported, match="max-min"):
        shallow(*drawn("residual", 0), "max-min", limit=2.0)
    with pytest.raises(ShapeError, match="'flat'"):
        shallow(model, cube(2), "flat")


def test_an_unpruned_difference_is_the_network_everywhere() -> None:
    model, box = drawn("plain", 2)
    net = piecewise(model, box)
    made = difference(net, regions(net, max_cells=1), 20.0, prune=False)
    x = 30 * torch.randn(2000, 2, dtype=torch.float64)
    torch.testing.assert_close(made.lower(x), model(x), rtol=0, atol=1e-10)
    small = made.prune()
    assert small.n_terms <= made.n_terms <= 2**made.log2_formal + 1
    torch.testing.assert_close(small(x / 30), model(x / 30), rtol=0, atol=1e-11)
    assert float(small.lower(x)[0, 0]) == -torch.inf


def test_an_approximation_is_exact_but_in_thin_tubes() -> None:
    model, box = drawn("deep", 0)
    made = [approximate_shallow(model, box, kappa) for kappa in (1e2, 1e4)]
    x = box.lower + box.width * torch.rand(5000, 2, dtype=torch.float64)
    off = [(net(x) - model(x)).detach().abs().amax(1) for net, _ in made]
    assert float(off[1].mean()) < float(off[0].mean()) / 20
    assert float((off[1] < 1e-8).double().mean()) > 0.99
    assert {(c.kind, c.proved) for _, c in made} == {("measured", False)}
    sizes = [[m.out_features for m in net if isinstance(m, nn.Linear)] for net, _ in made]
    assert sizes[0] == sizes[1]
    with pytest.raises(Unsupported, match="more than 2 cells"):
        approximate_shallow(model, box, 1e3, max_cells=2)
    with pytest.raises(ShapeError, match="kappa=0"):
        approximate_shallow(model, box, 0)


def test_examples_keep_their_shape() -> None:
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2)).double().requires_grad_(False)
    )
    box = cube(9)
    box = type(box)(box.lower.view(1, 1, 3, 3).clone(), box.upper.view(1, 1, 3, 3).clone())
    middle = torch.randn(1, 3, 3, dtype=torch.float64)
    for place in ((0, 0, 1), (0, 1, 1), (0, 2, 0), (0, 2, 2), (0, 0, 2), (0, 1, 0), (0, 0, 0)):
        box.lower[0][place] = box.upper[0][place] = middle[place]
    made, _ = shallow(model, box)
    x = box.lower + box.width * torch.rand(100, 1, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(made(x), model(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(made.prune().to_torch()(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_one_number_an_example(form: str) -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain(2, (4, 3), 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x).squeeze(1)

    torch.manual_seed(0)
    model, x = Squeezed().double().requires_grad_(False), torch.rand(50, 2).double()
    made, _ = shallow(model, cube(2), form)
    torch.testing.assert_close(made(x), model(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(made.to_torch()(x), model(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(relu_tree(made.to_torch())(x), model(x), rtol=0, atol=1e-12)
    assert approximate_shallow(model, cube(2), 1e3)[0](x).shape == (50,)


def test_small_outputs_are_pruned_as_large_ones() -> None:
    model, box = drawn("plain", 0)
    terms = shallow(model, box, prune=True)[0].n_terms
    model[4].weight *= 1e-11
    model[4].bias *= 1e-11
    made, _ = shallow(model, box, prune=True)
    assert made.n_terms == terms
    x = box.lower + box.width * torch.rand(500, 2, dtype=torch.float64)
    torch.testing.assert_close(1e11 * made(x), 1e11 * model(x), rtol=0, atol=1e-9)
