"""Every row of the table of activations, in every room that reads it."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen.activations import ACTIVATIONS, MODULES, Activation
from morphogen.bounds.box import Box
from morphogen.bounds.crown import crown
from morphogen.bounds.dual import dual
from morphogen.bounds.interval import interval
from morphogen.bounds.relaxation import linear_relaxation
from morphogen.bounds.rules import activation
from morphogen.bounds.techniques import TECHNIQUES
from morphogen.formats.modules import modules
from morphogen.formats.onnx import export_onnx
from morphogen.formats.onnx_reader import read_onnx
from morphogen.formats.source import source
from morphogen.tracing.program import program

# constructors of every module, options other than the usual ones included
CASES: dict[str, list[Callable[[], nn.Module]]] = {
    "ReLU": [nn.ReLU],
    "LeakyReLU": [nn.LeakyReLU, lambda: nn.LeakyReLU(0.3)],
    "PReLU": [nn.PReLU, lambda: sloped(nn.PReLU(4))],
    "ReLU6": [nn.ReLU6],
    "Hardtanh": [nn.Hardtanh, lambda: nn.Hardtanh(-0.5, 2.0)],
    "Hardsigmoid": [nn.Hardsigmoid],
    "Hardswish": [nn.Hardswish],
    "Sigmoid": [nn.Sigmoid],
    "Tanh": [nn.Tanh],
    "ELU": [nn.ELU, lambda: nn.ELU(0.7)],
    "CELU": [nn.CELU, lambda: nn.CELU(1.8)],
    "SELU": [nn.SELU],
    "GELU": [nn.GELU, lambda: nn.GELU("tanh")],
    "SiLU": [nn.SiLU],
    "Mish": [nn.Mish],
    "Softplus": [nn.Softplus, lambda: nn.Softplus(1.0, 5.0)],
    "Softsign": [nn.Softsign],
    "LogSigmoid": [nn.LogSigmoid],
}
EACH = [(name, number) for name, cases in CASES.items() for number in range(len(cases))]
KNOWN = {
    name: kind.of() for name, kind in ACTIVATIONS.items() if name not in ("prelu", "clamp_min")
}


def sloped(layer: nn.PReLU) -> nn.PReLU:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-0.2, 0.1, 0.5, 1.3]))
    return layer


def network(name: str, number: int) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), CASES[name][number](), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        net[0].weight.mul_(4)
    return net


def test_every_module_has_a_case() -> None:
    assert {module.__name__ for module in MODULES} == set(CASES)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_slope_is_the_derivative(name: str) -> None:
    kind = ACTIVATIONS[name]
    options = [0.3] * len(kind.options) if name.startswith("clamp_m") else []
    h = kind.of(torch.tensor(0.2)) if name == "prelu" else kind.of(*options)
    assert isinstance(h, Activation)
    z = torch.linspace(-9.97, 10.03, 4001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(h.value(z).sum(), z)
    # torch's own gradient of hardsigmoid is 1 / 6 in float32
    within = 1e-7 if name == "hardsigmoid" else 1e-9
    torch.testing.assert_close(h.slope(z.detach()), slope, rtol=within, atol=1e-12)
    if kind.homogeneous:
        torch.testing.assert_close(h.value(3 * z), 3 * h.value(z))
    assert not kind.nonnegative or bool((h.value(z) >= 0).all())
    assert not h.monotone or bool((h.value(z).diff() >= 0).all())


@pytest.mark.parametrize(("name", "number"), EACH)
def test_bounds_hold(name: str, number: int) -> None:
    net = network(name, number).double()
    draw = torch.Generator().manual_seed(1)
    steps = program(net, torch.zeros(2, 3))
    assert [step.kind for step in steps.steps if activation(step) is not None]
    hurried = {"alpha-CROWN": {"steps": 2}, "dual": {"steps": 20}}
    for reach in (0.1, 3.0):
        centre = 3 * torch.randn(4, 3, dtype=torch.float64, generator=draw)
        box = Box(centre - reach, centre + reach)
        share = torch.rand(200, 4, 3, dtype=torch.float64, generator=draw)
        share[:80].round_()
        x = box.lower + share * box.width
        y = net(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        for technique_name, technique in TECHNIQUES.items():
            bounds = technique.run(steps, box, **hurried.get(technique_name, {}))[steps.output]
            seen = technique.at(steps, x.flatten(0, 1))[steps.output].unflatten(0, x.shape[:2])
            # what the network's own run rounds; slopes are looked up in 17 places of an interval
            rounding = 1e-13 * (1 + seen.abs())
            room = 0.3 * reach if technique.bounds == "derivatives" else rounding
            assert bool(((seen >= bounds.lower - room) & (seen <= bounds.upper + room)).all())
        row = torch.tensor([1.0, -1.0]).double()
        least = dual(steps, crown(steps, box), row[None, None].expand(4, 1, 2)).bound[:, 0]
        assert bool(((y @ row) >= least - 1e-12).all())


@pytest.mark.parametrize(("name", "number"), EACH)
def test_a_file_of_ours_is_read_bounded_and_made_modules_again(
    name: str, number: int, tmp_path: Path
) -> None:
    # log(sigmoid(z)), as exporters write it, has no value far below 0
    net, x = network(name, number), torch.randn(64, 3)
    export_onnx(net, x, tmp_path / "net.onnx")
    read = read_onnx(tmp_path / "net.onnx")
    torch.testing.assert_close(read(x), net(x), rtol=1e-4, atol=1e-5)
    box = Box(x[:4].double() - 0.3, x[:4].double() + 0.3)
    there, here = (program(each, x) for each in (read, net.double()))
    for technique in (interval, crown):
        ours, theirs = technique(here, box)[here.output], technique(there, box)[there.output]
        torch.testing.assert_close(ours.lower, theirs.lower, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.upper, theirs.upper, rtol=1e-4, atol=1e-4)
    again = modules(there)
    torch.testing.assert_close(again(x.double()), net(x.double()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "number"), EACH)
def test_source_gives_it_back(name: str, number: int, tmp_path: Path) -> None:
    net, x = network(name, number), 3 * torch.randn(5, 3)
    page: dict[str, object] = {"__file__": str(tmp_path / "model.py"), "__name__": "page"}
    exec(source(net, title="t"), page)
    made = page["Net"]()  # type: ignore[operator]
    made.layers.load_state_dict(net.state_dict())
    assert torch.equal(made(x), net(x))


@pytest.mark.parametrize(("name", "number"), EACH)
def test_it_is_resized_frozen_and_linked(name: str, number: int) -> None:
    net, x = network(name, number).double(), torch.randn(5, 3).double()
    before = net(x)
    if name != "PReLU" or number == 0:
        grown = mg.resize(net, [mg.Grow("0", 3)], example=x)
        assert grown.receipt.keeps
    torch.testing.assert_close(net(x), before)
    plain, _ = mg.freeze(net, x)
    torch.testing.assert_close(plain(x), before)
    linked = mg.link(net, x, init="preserve")
    torch.testing.assert_close(net(x), before)
    assert linked.receipt.edits
    mg.unlink(net, x)
    torch.testing.assert_close(net(x), before)


@pytest.mark.parametrize("name", KNOWN)
def test_the_tightest_lines_hold_far_out_too(name: str) -> None:
    h = KNOWN[name]
    assert h is not None
    draw = torch.Generator().manual_seed(2)
    ends = (60 * torch.randn(2000, 2, dtype=torch.float64, generator=draw)).sort(1).values
    if name == "exp":
        ends = ends.clamp_max(30)
    box = Box(ends[None, :, 0], ends[None, :, 1])
    found = linear_relaxation(h, box)
    z = box.lower + box.width * torch.linspace(0, 1, 301, dtype=torch.float64)[:, None]
    z = z[:, None, None] if z.dim() == 2 else z
    value = h.value(z)
    size = 1e-13 * (1 + value.abs() + (found.lower_slope * z).abs() + (found.upper_slope * z).abs())
    assert bool((found.lower_slope * z + found.lower_bias <= value + size).all())
    assert bool((found.upper_slope * z + found.upper_bias >= value - size).all())


def test_options_that_are_not_understood_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.function = function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x)

    box = Box(-torch.ones(1, 3).double(), torch.ones(1, 3).double())
    for function in (
        lambda x: nn.functional.softplus(x, beta=2.0),
        lambda x: torch.ops.aten.elu(x, 1.0, 1.0, 2.0),
        lambda x: torch.clamp(x, -x.abs(), x.abs()),
    ):
        with pytest.raises(mg.Unsupported, match="no rule bounds"):
            crown(program(Odd(function), torch.randn(2, 3)), box)


def test_what_exporters_take_apart_is_put_together() -> None:
    class Apart(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = x * torch.sigmoid(x)
            b = a / (1.0 + a.abs())
            c = torch.log(torch.sigmoid(b))
            return torch.where(c > 0.5, c, nn.functional.softplus(c, 1.0, 40.0))

    net = program(Apart(), torch.randn(2, 3))
    assert [step.kind for step in net.steps] == ["silu", "softsign", "log_sigmoid", "softplus"]
    x = torch.randn(50, 3).double()
    torch.testing.assert_close(net(x), Apart()(x))
    assert math.isclose(net.steps[-1].args[-1], 0.5)

    class Near(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x + 1) + x / (2.0 + x.abs())

    kinds = [step.kind for step in program(Near(), torch.randn(2, 3)).steps]
    assert not {"silu", "softsign"} & set(kinds)
