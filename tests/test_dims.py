"""Units stand where linear layers and convolutions put them: right by default, asked for where two
readings are possible.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphogen as mg
from morphogen import Grow, LearnedWidth, ShapeError, Unsupported
from morphogen.formats.onnx import export_onnx
from morphogen.layers import linked
from morphogen.layers.linked import LKPReLU, LKReLU, LKSine, LKSwish
from morphogen.layers.posterior import DepthPosterior
from morphogen.layers.units import unit_dim
from morphogen.measures.dead import dead_units
from morphogen.transforms.link import link, unlink

KINDS = sorted(name for name in vars(linked) if name.startswith("LK"))
# shape with 6 units -> where
RANKS: dict[tuple[int, ...], int] = {(6,): 0, (2, 6): 1, (2, 6, 5, 4): 1, (2, 6, 3, 2, 2): 1}


@pytest.mark.parametrize("shape", RANKS)
def test_the_default_is_that_of_linear_layers_and_of_convolutions(shape: tuple[int, ...]) -> None:
    dim, x = RANKS[shape], torch.randn(shape)
    assert unit_dim(shape, None, "") == dim
    for name in KINDS:
        layer = getattr(linked, name)()
        assert torch.equal(layer(x), getattr(linked, name)(dim=dim)(x))
        assert layer(x).shape[dim] == 12
    width = LearnedWidth(6, 4.5)
    torch.testing.assert_close(width(x).movedim(dim, -1), x.movedim(dim, -1) * width.gates())


LAYERS = {name: getattr(linked, name) for name in KINDS} | {
    "LearnedWidth": lambda dim=None: LearnedWidth(4, 3.5, dim=dim)
}


@pytest.mark.parametrize("name", LAYERS)
def test_three_dimensions_are_asked_for(name: str) -> None:
    x = torch.randn(3, 4, 4)  # time and features agree in size
    with pytest.raises(
        ShapeError, match=rf"{name}: an input of shape \(3, 4, 4\) may be .*give dim=-1 .* dim=1"
    ):
        LAYERS[name]()(x)
    by_rows = torch.stack([LAYERS[name]()(rows) for rows in x])
    torch.testing.assert_close(LAYERS[name](dim=-1)(x), by_rows)
    torch.testing.assert_close(
        LAYERS[name](dim=1)(x), by_rows.new_tensor(0) + LAYERS[name](dim=-1)(x.mT).mT
    )
    for dim in (3, -4):
        with pytest.raises(ShapeError, match=f"dim={dim}"):
            LAYERS[name](dim=dim)(x)


def test_a_width_of_another_size_is_refused_instead_of_spread() -> None:
    for units, shape in ((4, (3, 1)), (1, (3, 4)), (4, (2, 1, 5, 5)), (4, (2, 5, 4, 4))):
        with pytest.raises(ShapeError, match=f"LearnedWidth: {units} units, but an input of shape"):
            LearnedWidth(units)(torch.randn(shape))
    with pytest.raises(ShapeError, match="4 units"):
        LearnedWidth(4, dim=1)(torch.randn(2, 5, 4))


def sequences(units: int = 6) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    layers = [
        nn.Linear(4, units),
        nn.ReLU(),
        LearnedWidth(units, 4.2, dim=-1),
        nn.Linear(units, 5),
        LKReLU(-1),
        nn.Linear(10, 5),
        LKSwish(dim=2),
        nn.Linear(10, 3),
    ]
    return nn.Sequential(*layers).double(), torch.randn(3, units, 4).double()


def test_sequences_are_resized_frozen_and_exported(tmp_path) -> None:
    model, x = sequences()
    by_rows = torch.stack([model(rows[None])[0] for rows in x])
    torch.testing.assert_close(model(x), by_rows, rtol=0, atol=1e-12)
    before = model(x)
    optimizer = torch.optim.Adam(model.parameters())
    assert mg.resize(
        model, [Grow("3", 2), Grow("5", 1)], example=x, optimizers=[optimizer]
    ).receipt.keeps
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    assert mg.adapt(model, optimizers=[optimizer], example=x) == [mg.Shrink("0", [5])]
    model[2].log_w.data.fill_(math.log(7.2))
    assert mg.adapt(model, optimizers=[optimizer], example=x) == [Grow("0", 3)]
    assert model[3].in_features == 8
    plain, certificate = mg.freeze(model, x)
    assert certificate.max_error <= 1e-10
    torch.testing.assert_close(plain(x), model.eval()(x), rtol=0, atol=1e-10)
    single = model.float()
    export_onnx(single, x.float(), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "layer",
    [lambda: LearnedWidth(6, 4.5, dim=1), lambda: LKReLU(1), lambda: LearnedWidth(6, 4.5, dim=-2)],
)
def test_freeze_refuses_units_that_are_not_the_features(layer) -> None:
    torch.manual_seed(0)
    beside = layer()
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), beside, nn.Linear(6, 3))
    if isinstance(beside, LKReLU):
        model = nn.Sequential(nn.Linear(4, 6), beside, nn.Linear(6, 3))
    with pytest.raises(Unsupported, match="freeze: .*(features|LKReLU)"):
        mg.freeze(model, torch.randn(3, 6, 4))
    with pytest.raises(Unsupported, match="freeze"):
        mg.freeze(
            nn.Sequential(nn.Conv2d(2, 6, 1), LearnedWidth(6, dim=2), nn.Conv2d(6, 2, 1)),
            torch.randn(1, 2, 6, 6),
        )


def test_a_link_in_a_network_of_sequences() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double(),
        torch.randn(3, 5, 4).double(),
    )
    before = model(x)
    link(model, x, init="preserve")
    assert model[1].dim == 2
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    unlink(model, x)
    assert type(model[1]) is nn.ReLU
    along_time = nn.Sequential(nn.Linear(4, 6), LKReLU(1), nn.Linear(6, 3)).double()
    with pytest.raises(
        Unsupported, match="its units are dimension 1, what reads it reads dimension 2"
    ):
        unlink(along_time, x)


def test_slopes_of_units_have_a_plain_form_along_dimension_1_alone() -> None:
    x = torch.randn(3, 6, 4)
    with pytest.raises(Unsupported, match="LKPReLU along dimension 2 has no plain form"):
        mg.freeze(nn.Sequential(nn.Linear(4, 3), LKPReLU(3, dim=-1), nn.Linear(6, 2)), x)
    for model in (
        nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 2)),
        nn.Sequential(nn.Linear(4, 6), LKPReLU(6, dim=2), nn.Linear(12, 2)),
    ):
        with pytest.raises(Unsupported, match="nn.PReLU has its slopes along dimension 1"):
            (link if isinstance(model[1], nn.PReLU) else unlink)(model, x)
    model = nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 2)).double()
    before = model(x.double())
    link(model, x.double(), init="preserve")
    torch.testing.assert_close(model(x.double()), before, rtol=0, atol=1e-12)


def test_dead_units_of_sequences() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2), LKSine(-1)),
        torch.randn(3, 5, 4),
    )
    model[0].bias.data[:2] = -100.0
    assert dead_units(model, x, dim=-1) == {"1": 0.4, "3": 0.0}
    with pytest.raises(ShapeError, match="dead_units of '1': .*give dim=-1"):
        dead_units(model, x)


# The distribution over depth
# ----------------------------------------------------------------------------------


@pytest.mark.parametrize("probabilities", [True, False])
@pytest.mark.parametrize("shape", [(4,), (7, 4), (7, 5, 4), (4, 5, 4), (2, 3, 5, 4)])
def test_the_mixture_is_over_depths_whatever_the_shape(
    shape: tuple[int, ...], probabilities: bool
) -> None:
    torch.manual_seed(0)
    model = DepthPosterior(
        lambda i: nn.Linear(4, 4), lambda: nn.Linear(4, 3), mean=2.0, probabilities=probabilities
    ).double()
    x = torch.randn(shape, dtype=torch.float64)
    assert len(model.blocks) == 4  # as many as the batch, once
    parts = [model.fixed(depth + 1)(x) for depth in range(4)]
    if probabilities:
        expected = sum(
            share * part.softmax(-1) for share, part in zip(model.q(), parts, strict=True)
        ).log()
    else:
        expected = sum(share * part for share, part in zip(model.q(), parts, strict=True))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "readout",
    [
        lambda: nn.Conv2d(4, 3, 1),
        lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(4, 3, 1)),
    ],
)
def test_classes_of_a_map_are_its_channels(readout) -> None:
    model = DepthPosterior(lambda i: nn.Conv2d(4, 4, 1), readout, mean=2.0)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(model(x).exp().sum(1), torch.ones(2, 3, 3))
    torch.testing.assert_close(model(x[0]), model(x)[0])


def test_classes_that_nothing_names_are_asked_for() -> None:
    build = lambda **how: DepthPosterior(  # noqa: E731
        lambda i: nn.Linear(4, 4), lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU()), **how
    )
    x = torch.randn(2, 5, 4)
    with pytest.raises(ShapeError, match=r"outputs of shape \(2, 5, 3\) from a ReLU; give dim="):
        build()(x)
    torch.testing.assert_close(build(dim=-1)(x).exp().sum(-1), torch.ones(2, 5))
    assert build(probabilities=False)(x).shape == (2, 5, 3)
    loss = lambda out, y: F.cross_entropy(out.mT, y, reduction="none").mean(1)  # noqa: E731
    assert build().losses(x, torch.randint(3, (2, 5)), loss, 10).isfinite()
