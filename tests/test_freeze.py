"""Frozen equals trained, in plain modules only."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from morphogen import AddBlock, LearnedDepth, Unsupported, freeze, resize
from morphogen.layers.posterior import DepthPosterior
from morphogen.transforms import TRANSFORMS
from morphogen.transforms.freeze import fold_batchnorm
from problems import problem


@pytest.mark.parametrize("name", ["convnet", "mlp"])
@pytest.mark.parametrize("w", [-0.3, 0.4, 1.0, 1.8])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_frozen_equals_trained(name: str, w: float, dtype: torch.dtype, allowed: float) -> None:
    model, x = problem(name, dtype)
    depth = next(m for m in model.modules() if isinstance(m, LearnedDepth))
    resize(model, [AddBlock("depth1" if name == "convnet" else "depth")], example=x)
    depth.w.data.fill_(w)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    plain, certificate = freeze(model, x)
    expected = model.eval()(x)
    error = float((plain(x) - expected).detach().abs().max())
    assert error <= allowed * max(1.0, float(expected.abs().max()))
    assert certificate.max_error == pytest.approx(error, abs=1e-12)
    assert (certificate.kind, certificate.proved) == ("exact", True)
    assert all(type(m).__module__.startswith("torch.nn") for m in plain.modules())
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in plain.modules())
    # the given model is untouched
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_dead_units_leave() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[2].weight[:, 4] = 0  # nothing reads it
        model[0].weight[1], model[0].bias[1] = 0, 0  # nothing feeds it
    x = torch.randn(5, 3, dtype=torch.float64)
    plain, certificate = freeze(model, x)
    assert plain[0].out_features == 4
    assert "2 dead units dropped" in certificate.reason
    torch.testing.assert_close(plain(x), model(x), rtol=0, atol=1e-12)


def test_a_constant_unit_with_a_bias_stays() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0  # sigmoid(0) is 1/2, not 0
    plain, _ = freeze(model, torch.randn(5, 3, dtype=torch.float64))
    assert plain[0].out_features == 4


class _Shifted(nn.Module):
    def __init__(self, shift: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.shift = nn.Linear(3, 4), nn.Linear(4, 2), shift

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.shift(self.a(x)))


@pytest.mark.parametrize(
    ("shift", "left"), [(torch.sigmoid, 4), (lambda x: x + 1, 4), (torch.cos, 4), (torch.tanh, 3)]
)
def test_activations_that_are_no_modules_decide_what_is_dead_too(
    shift: Callable[[Tensor], Tensor], left: int
) -> None:
    model = _Shifted(shift).double()
    with torch.no_grad():
        model.a.weight[1], model.a.bias[1] = 0, 0
    plain, _ = freeze(model, torch.randn(5, 3, dtype=torch.float64))
    assert plain.a.out_features == left


def test_a_distribution_over_depth_is_refused() -> None:
    layer = DepthPosterior(lambda i: nn.Linear(3, 3), lambda: nn.Linear(3, 2))
    with pytest.raises(Unsupported, match="DepthPosterior has no single depth yet"):
        freeze(nn.Sequential(layer), torch.randn(4, 3))


def test_a_block_that_is_not_affine_is_refused_by_name() -> None:
    model = nn.Sequential(
        LearnedDepth(lambda i: nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)))
    )
    with pytest.raises(
        Unsupported, match="a block of Linear, ReLU, Linear is not one affine layer"
    ):
        freeze(model, torch.randn(2, 3))


def test_a_convolution_that_changes_the_size_is_refused() -> None:
    model = nn.Sequential(LearnedDepth(lambda i: nn.Conv2d(2, 2, 1, padding=1)))
    with pytest.raises((Unsupported, RuntimeError), match=r"changes the map's size|must match"):
        freeze(model, torch.randn(2, 2, 4, 4))


def test_several_outputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, 2 * x

    with pytest.raises(Unsupported, match="returns a tuple; give one that returns a single tensor"):
        freeze(Two(), torch.randn(2, 3))


def test_batch_norms_are_folded_wherever_they_stand() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv, self.late = (
                nn.BatchNorm2d(4),
                nn.Conv2d(1, 4, 3),
                nn.BatchNorm2d(4),
            )
            self.out = nn.Sequential(nn.Linear(64, 5), nn.BatchNorm1d(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.late(self.norm(self.conv(x)).relu()).flatten(1))

    torch.manual_seed(0)
    model = Apart()
    model(torch.randn(50, 1, 6, 6))
    x = torch.randn(7, 1, 6, 6)
    small, certificate = fold_batchnorm(model, x)
    assert isinstance(small.norm, nn.Identity)
    assert isinstance(small.late, nn.BatchNorm2d)  # behind a ReLU
    assert isinstance(small.out[1], nn.Identity)
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert certificate.max_error < 1e-5
    assert certificate.reason.startswith("2 batch norms")
    torch.testing.assert_close(small(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_every_transform_is_listed() -> None:
    assert set(TRANSFORMS) == {
        "approximate_shallow",
        "collapse",
        "compress",
        "drop_dead",
        "fold_batchnorm",
        "freeze",
        "merge_duplicates",
        "shallow",
    }, "add a case for the new transform"
