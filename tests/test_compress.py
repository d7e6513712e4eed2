"""A compressed network is the same function on the box, smaller by what can be proved, and nothing
else.
"""

import sys
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from morphogen import NotExact, ShapeError
from morphogen.bounds.box import Box
from morphogen.linear_regions.regions import regions
from morphogen.transforms.compress import RULES, collapse, compress, drop_dead, merge_duplicates
from morphogen.transforms.shallow.shallow import shallow


class Residual(nn.Module):
    """Two branches, of which one has units of its own, and a stream that keeps all of its."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.inner, self.outer, self.out = (
            nn.Linear(4, 6),
            nn.Linear(6, 12),
            nn.Linear(12, 6),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.into(x))
        return self.out(torch.relu(x + self.outer(torch.relu(self.inner(x)))))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (
        lambda: nn.Sequential(
            nn.Linear(4, 16),
            nn.ReLU(),
            nn.Linear(16, 12),
            nn.ReLU(),
            nn.Linear(12, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        ),
        (4,),
    ),
    "normed": (
        lambda: nn.Sequential(
            nn.Linear(4, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(16, 3, bias=False),
        ),
        (4,),
    ),
    "residual": (Residual, (4,)),
    "pooled": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.ReLU(),
            nn.Conv2d(6, 5, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(20, 6),
            nn.ReLU(),
            nn.Linear(6, 3),
        ),
        (1, 6, 6),
    ),
}


def drawn(name: str, seed: int) -> tuple[nn.Module, Box]:
    """A network whose units are active, inactive, twins or without weights more often than drawn
    ones.
    """
    torch.manual_seed(seed)
    build, shape = NETS[name]
    model = build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                kind = torch.randint(6, module.bias.shape)
                module.bias += 6.0 * (kind == 0) - 6.0 * (kind == 1)
                module.weight[kind == 2] = 0
                module.weight[kind == 3] = 2 * module.weight[:1]
                module.bias[kind == 3] = 2 * module.bias[0]
    lower = torch.rand(1, *shape).double() - 0.5
    return model, Box(lower, lower + torch.rand(1, *shape))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(6))
def test_a_compressed_network_is_the_same_on_the_box(name: str, seed: int) -> None:
    model, box = drawn(name, seed)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small, certificate = compress(model, box)
    x = box.lower + box.width * torch.rand(3000, *box.lower.shape[1:])
    x[:1000] = torch.where(torch.rand(x[:1000].shape) < 0.5, box.lower, box.upper)
    torch.testing.assert_close(small(x), model.eval().double()(x), rtol=0, atol=1e-9)
    assert all(
        torch.equal(value, before[key].to(value)) for key, value in model.state_dict().items()
    )
    assert certificate.proved
    assert certificate.max_error < 1e-9
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert len(certificate.steps) == len(set(certificate.steps)) > 0
    again, other = compress(small, box)
    assert other.steps == ()
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in small.parameters())


def test_each_rule_takes_out_what_it_should() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2)
    ).double()
    first, second, third = model[0], model[2], model[4]
    with torch.no_grad():
        first.bias.zero_()
        first.bias[:5] = 10.0  # active: five of rank three
        first.bias[5] = -10.0  # inactive
        first.weight[6], first.bias[6] = 0.0, 0.5  # constant
        first.weight[8] = 3 * first.weight[7]  # a multiple
        second.bias[:] = torch.tensor([-100.0, 1.0, 1.0, 1.0])
        second.weight[1:] *= 0.1
        third.weight[:, 1] = 0  # unread: gone once the network is frozen
    small, certificate = compress(model, Box(-torch.ones(1, 3), torch.ones(1, 3)))
    why = {step.partition(": ")[0]: step.partition(": ")[2] for step in certificate.steps}
    assert why["0[5]"].startswith("never above 0")
    assert why["0[6]"].startswith("constant")
    assert why["0[8]"].startswith("a multiple")
    assert why["2[0]"].startswith("never above 0")
    combined = [unit for unit, told in why.items() if told.startswith("a combination")]
    assert len(combined) == 2
    assert set(combined) <= {"0[0]", "0[1]", "0[2]", "0[3]", "0[4]"}
    assert small[0].out_features == 4
    assert small[2].out_features == 2


def test_a_layer_that_bends_nowhere_is_multiplied_into_the_next() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    ).double()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias += 100.0
    small, certificate = compress(model, Box(-torch.ones(1, 2), torch.ones(1, 2)))
    assert [type(layer) for layer in small] == [nn.Linear]
    assert [step.partition(" (")[2] for step in certificate.steps[-2:]] == [
        "multiplied into 2)",
        "multiplied into 4)",
    ]
    assert certificate.box == ((-1.0, -1.0), (1.0, 1.0))


def test_what_is_not_the_same_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model, box = drawn("plain", 0)
    module = sys.modules[compress.__module__]
    monkeypatch.setattr(module, "INACTIVE", module.ACTIVE)
    with pytest.raises(NotExact, match="compress: outputs differ by .* where rounding allows"):
        compress(model, box)


def test_units_that_are_no_multiples_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 100), nn.ReLU(), nn.Linear(100, 2))
    small, certificate = compress(model, Box(-torch.ones(1, 50), torch.ones(1, 50)))
    assert certificate.steps == ()
    assert small[0].out_features == 100


class Hand(nn.Module):
    """A forward pass of one's own around two linear layers, with units that are 0."""

    def __init__(self, between: Callable[[Tensor], Tensor], inputs: int, reads: int) -> None:
        super().__init__()
        self.a, self.c, self.between = nn.Linear(inputs, 8), nn.Linear(reads, 2), between
        with torch.no_grad():
            self.a.bias[:2] = -50.0

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.between(torch.relu(self.a(x))))


@pytest.mark.parametrize(
    ("between", "shape", "reads"),
    [
        (lambda h: h.mean(1), (2, 4), 8),  # units stand last
        (lambda h: h.mean(2), (8, 4), 8),
        (lambda h: h.mean(1, keepdim=True), (4,), 1),
        (lambda h: nn.functional.avg_pool1d(h, 3, 1, 1), (4,), 8),
        (lambda h: nn.functional.max_pool1d(h, 3, 1, 1), (4,), 8),
        (lambda h: h.transpose(1, 2).flatten(1), (8, 4), 64),
        (lambda h: torch.cat([h, -h], 1), (4,), 16),
    ],
)
def test_units_that_meet_each_other_on_the_way_stay(
    between: Callable[[Tensor], Tensor], shape: tuple, reads: int
) -> None:
    torch.manual_seed(0)
    model = Hand(between, shape[-1], reads)
    small, certificate = compress(model, Box(-torch.ones(1, *shape), torch.ones(1, *shape)))
    assert small.a.out_features == 8
    assert certificate.steps == ()


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(
            nn.BatchNorm1d(4),
            nn.Linear(4, 4),
            nn.ReLU(),
            nn.Linear(4, 4),
            nn.ReLU(),
            nn.Linear(4, 2),
        ),
        lambda: nn.Sequential(
            nn.Linear(4, 4),
            nn.ReLU(),
            nn.Linear(4, 4, bias=False),
            nn.ReLU(),
            nn.Linear(4, 2, bias=False),
        ),
        lambda: (lambda h: nn.Sequential(nn.Linear(4, 4), h, nn.Linear(4, 4), h, nn.Linear(4, 2)))(
            nn.ReLU()
        ),
    ],
)
def test_norms_missing_biases_and_a_module_in_two_places_are_no_hindrance(
    build: Callable[[], nn.Sequential],
) -> None:
    torch.manual_seed(0)
    model = build()
    first, second, _ = [m for m in model if isinstance(m, nn.Linear)]
    with torch.no_grad():
        first.weight[0], first.bias[0] = 0.0, 1.0
        second.weight[1] = 2 * second.weight[0]
        if second.bias is not None:
            second.bias[1] = 2 * second.bias[0]
    box = Box(-torch.ones(1, 4), torch.ones(1, 4))
    small, _ = compress(model, box)
    sizes = [m.out_features for m in small if isinstance(m, nn.Linear)]
    assert sizes[0] == 3
    assert sizes[1] <= 3
    x = 2 * torch.rand(100, 4).double() - 1
    torch.testing.assert_close(small(x), model.double().eval()(x), rtol=0, atol=1e-9)


def test_a_forward_pass_that_counts_its_layers_keeps_them() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
            nn.init.constant_(self.net[0].bias, 100.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.net[2](self.net[1](self.net[0](x)))

    small, certificate = compress(Counted(), Box(-torch.ones(1, 2), torch.ones(1, 2)))
    assert len(small.net) == 3
    assert small.net[0].out_features == 2
    assert all(step.partition(": ")[2].startswith("a combination") for step in certificate.steps)


def test_borders_keep_constants_where_they_are() -> None:
    """A constant channel is no bias of a convolution that reads zeros around it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.Conv2d(3, 2, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 2),
    )
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, 1.0
    small, _ = compress(model, Box(torch.zeros(1, 1, 6, 6), torch.ones(1, 1, 6, 6)))
    assert small[0].out_channels == 3


def leaky(seed: int, widths: tuple[int, ...] = (4, 12, 9, 3), slope: float = 0.1) -> nn.Sequential:
    """A network most of whose units are stable on the box from -1 to 1."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for reads, makes in pairwise(widths):
        layers += [nn.Linear(reads, makes), nn.LeakyReLU(slope) if slope else nn.ReLU()]
        with torch.no_grad():
            layers[-2].bias += torch.tensor([-9.0, 9.0, 0.0])[torch.randint(3, (makes,))]
    return nn.Sequential(*layers[:-1]).double()


CUBE = Box(-torch.ones(1, 4), torch.ones(1, 4))


@pytest.mark.parametrize("seed", range(6))
def test_leaky_units_below_zero_are_combined_and_not_dropped(seed: int) -> None:
    model = leaky(seed)
    small, certificate = compress(model, CUBE)
    x = 2 * torch.rand(3000, 4).double() - 1
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-9)
    assert not any("never above" in step for step in certificate.steps)
    assert any("combination of other stable units" in step for step in certificate.steps)
    assert compress(small, CUBE)[1].steps == ()


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_units_that_bend_nowhere_become_a_smaller_skip(slope: float) -> None:
    torch.manual_seed(1)
    bend = nn.LeakyReLU(slope) if slope else nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 30), bend, nn.Linear(30, 2)).double()
    with torch.no_grad():
        model[0].bias[:20] += 9.0
    skipped, _ = compress(model, CUBE, rules=("skip",))
    small, certificate = compress(
        model, CUBE, rules=(*(name for name in RULES if name != "dependent"),)
    )
    assert "a linear skip (20 stable units, past 10 that do, into 2)" in certificate.steps[-1]
    x = 2 * torch.rand(3000, 4).double() - 1
    for one in (skipped, small):
        torch.testing.assert_close(one(x), model(x), rtol=0, atol=1e-9)
    assert sum(p.numel() for p in small.parameters()) == 10 * 4 + 10 + 2 * 10 + 2 + 2 * 4
    again, other = compress(small, CUBE, rules=tuple(RULES))
    assert other.steps == ()
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=1e-9)


def test_inputs_that_the_box_fixes_go_into_biases() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        model[1].weight[:3, [0, 2]] = 0.0  # they read what is fixed, alone
    lower, upper = -torch.ones(1, 2, 2), torch.ones(1, 2, 2)
    lower[0, 0, 1] = upper[0, 0, 1] = 0.3
    lower[0, 1, 1] = upper[0, 1, 1] = -0.7
    box = Box(lower, upper)
    small, certificate = compress(model, box)
    assert certificate.reason.endswith("2 inputs that the box fixes went into biases")
    assert small[1].out_features <= 5
    x = box.lower + box.width * torch.rand(500, 2, 2)
    torch.testing.assert_close(small(x.double()), model(x.double()), rtol=0, atol=1e-9)


def test_the_log_leads_back() -> None:
    model, box = drawn("plain", 0)
    log: list[tuple[tuple[str, ...], nn.Module]] = []
    small, certificate = compress(model, box, log=log)
    assert [line for gone, _ in log for line in gone] == list(certificate.steps)
    x = box.lower + box.width * torch.rand(500, 4)
    sizes = [sum(p.numel() for p in net.parameters()) for _, net in log]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > sum(p.numel() for p in small.parameters())
    for _, before in log:
        torch.testing.assert_close(before(x), small(x), rtol=0, atol=1e-9)


def test_the_pieces_do_what_they_are_named_after() -> None:
    model, box = drawn("plain", 1)
    for piece, said in (
        (drop_dead, ("never above 0", "constant", "read by nothing")),
        (merge_duplicates, ("a multiple",)),
        (collapse, ("a stable layer",)),
    ):
        small, certificate = piece(model, box)
        assert all(step.partition(": ")[2].startswith(said) for step in certificate.steps)
        assert certificate.steps
        x = box.lower + box.width * torch.rand(500, 4)
        torch.testing.assert_close(small(x), model.double()(x), rtol=0, atol=1e-9)
    with pytest.raises(ShapeError, match="rules has 'magic'"):
        compress(model, box, rules=("magic",))


def test_units_without_weights_are_no_multiples() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1), nn.Sigmoid()).double()
    with torch.no_grad():
        model[0].weight[:2], model[0].bias[:2] = 0.0, 0.0
    small, _ = merge_duplicates(model, Box(-torch.ones(1, 2), torch.ones(1, 2)))
    x = torch.rand(9, 2).double()
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-12)


def test_a_box_of_other_inputs_is_refused_in_words() -> None:
    model, box = (
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)),
        Box(-torch.ones(1, 5), torch.ones(1, 5)),
    )
    for rewrite in (compress, regions, shallow):
        with pytest.raises(ShapeError, match=r"Sequential does not take an example \(2, 5\)"):
            rewrite(model, box)
