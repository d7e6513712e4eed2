"""A search ends when its time has passed, wherever it is then: clocks here jump, whatever the speed
of the machine.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import morphogen as mg
from morphogen.bounds.alpha_crown import alpha_crown, optimised
from morphogen.bounds.box import Box
from morphogen.bounds.crown import crown, lower_bound
from morphogen.bounds.derivative import derivative
from morphogen.bounds.dual import dual
from morphogen.bounds.forward import forward
from morphogen.bounds.interval import interval
from morphogen.bounds.lp import lp_minimum
from morphogen.bounds.rounding import magnitudes
from morphogen.cli import verify as verb
from morphogen.deadline import NEVER, Deadline, OutOfTime, deadline
from morphogen.formats.onnx import export_onnx
from morphogen.formats.onnx_reader import read_onnx
from morphogen.formats.vnnlib import read_vnnlib
from morphogen.tracing.program import Program, program
from morphogen.tracing.trace import trace
from morphogen.verification import vnncomp
from morphogen.verification.input_split import split_inputs
from morphogen.verification.pgd import attack
from morphogen.verification.relu_split import split_relus
from morphogen.verification.unsafe import Unsafe
from morphogen.verification.vnncomp import verify_file


@dataclass
class Clock:
    """Stands still until it has been asked so often; right after that a day goes by. late: the
    operations of torch since.
    """

    asks: float = math.inf
    asked: int = 0
    late: list[str] = field(default_factory=list)

    def __call__(self) -> float:
        self.asked += 1
        return 0.0 if self.asked <= self.asks else 86_400.0

    @property
    def over(self) -> bool:
        return self.asked >= self.asks

    @property
    def told(self) -> bool:
        """Whether somebody knows."""
        return self.asked > self.asks

    def until(self) -> Deadline:
        return Deadline(60.0, self)


class Watch(TorchDispatchMode):
    """Notes what runs once a clock has jumped."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.clock.over:
            self.clock.late.append(str(func))
        return func(*args, **(kwargs or {}))


def chain(depth: int, bend: type[nn.Module] = nn.ReLU, inputs: int = 20) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [part for _ in range(depth) for part in (nn.Linear(inputs, inputs), bend())]
    model = nn.Sequential(*layers, nn.Linear(inputs, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def asks(run: Callable[[Deadline], object]) -> int:
    """How often a run that has all the time it wants asks the clock."""
    clock = Clock()
    run(clock.until())
    return clock.asked


def moments(run: Callable[[Deadline], object], count: int = 6) -> Iterator[Clock]:
    """The run, ended at as many moments, after the first and the last time that it asks too: a
    clock for each.
    """
    total = asks(run)
    assert total > 1, "it never asks the clock"
    for number in range(count):
        clock = Clock(1 + (total - 1) * number // (count - 1))
        with Watch(clock), suppress(OutOfTime):
            run(clock.until())
        yield clock


DEPTH = 20
# operations of torch for one step of a pass, with what is left to say then; a pass has many times
# as many
STEP = 150

BOX = Box(-torch.ones(1, 20).double(), torch.ones(1, 20).double())
ROW = torch.ones(1, 1, 2).double()


def techniques() -> dict[str, Callable[[Program], object]]:
    """All that is computed step by step."""
    plain = program(chain(DEPTH), torch.zeros(2, 20))
    boxes = interval(plain, BOX)
    rows, limits = ROW[0], torch.zeros(1).double()
    unsafe = Unsafe(rows, torch.full((1,), -1e9).double())
    return {
        "values": lambda net: net(BOX.lower),
        "interval": lambda net: interval(net, BOX),
        "forward": lambda net: forward(net, BOX),
        "linear": lambda net: crown(net, BOX),
        "lower_bound": lambda net: lower_bound(net, boxes, ROW),
        "magnitudes": lambda net: magnitudes(net, boxes),
        "alpha": lambda net: alpha_crown(net, BOX, 1),
        "optimised": lambda net: optimised(net, boxes, ROW, steps=3),
        "dual": lambda net: dual(net, boxes, ROW, steps=3),
        "derivative": lambda net: derivative(net, boxes),
        "attack": lambda net: attack(net, unsafe, BOX, 4, 3),
        "lp_minimum": lambda net: lp_minimum(net, boxes, rows, limits),
    }


@pytest.mark.parametrize("name", techniques())
def test_every_technique_stops_inside_a_pass(name: str) -> None:
    run, net = techniques()[name], program(chain(DEPTH), torch.zeros(2, 20))
    for clock in moments(lambda until: run(replace(net, until=until))):
        assert clock.over
        assert len(clock.late) <= STEP, clock.late


def test_a_step_on_the_way_back_asks_too() -> None:
    """Of a descent two thirds of the time are gradients."""
    net = program(chain(DEPTH), torch.zeros(2, 20))
    x = BOX.lower.clone().requires_grad_()
    clock = Clock()
    y = replace(net, until=clock.until())(x).sum()
    clock.asks = clock.asked + 3
    with pytest.raises(OutOfTime):
        torch.autograd.grad(y, x)


@pytest.mark.parametrize("stage", ["trace", "program"])
def test_tracing_stops(stage: str) -> None:
    model = chain(30)
    run = {
        "trace": lambda until: trace(model, torch.zeros(2, 20).double(), until=until),
        "program": lambda until: program(model, torch.zeros(2, 20), until=until),
    }[stage]
    total = asks(run)
    for part in (0.1, 0.5, 0.9):
        clock = Clock(int(total * part))
        with pytest.raises(OutOfTime):
            run(clock.until())
        assert clock.asked <= clock.asks + 2  # once to find out, once to say so
    assert len(trace(model, torch.zeros(2, 20).double()).nodes) == len(
        trace(model, torch.zeros(2, 20).double(), until=NEVER).nodes
    )
    assert model.training  # its modes are those that it had


@pytest.mark.parametrize(
    ("search", "model"),
    [
        (split_relus, chain(4)),
        (split_inputs, chain(2, inputs=3)),
        (split_inputs, chain(3, nn.Tanh, 3)),
    ],
)
def test_a_search_says_what_it_knows(search: Callable[..., object], model: nn.Sequential) -> None:
    inputs = model[0].in_features
    box = Box(-torch.ones(1, inputs).double(), torch.ones(1, inputs).double())
    net, rows = program(model, box.lower.repeat(2, 1)), torch.tensor([[1.0, -1.0]]).double()
    draw = torch.Generator().manual_seed(0)
    least = attack(net, Unsafe(rows, torch.zeros(1).fill_(-1e6)), box, 256, generator=draw)[1] - 1e6
    near = 0.2
    unsafe = [Unsafe(rows, torch.tensor([least - near - far]).double()) for far in (0.0, 1.0)]
    bounds = []
    for count in (0, 20, 60, 150, 400, 1_000, 3_000):
        clock = Clock(count)
        with Watch(clock):
            found = search(net, unsafe, box, clock.until())
        assert found.witness is None
        assert found.bound <= near + 1e-6  # it holds for the point that is known
        assert (found.status == "unknown") == clock.told
        assert len(clock.late) <= 2 * STEP, clock.late
        bounds.append(found.bound)
    assert bounds == sorted(bounds)  # with more time no worse one
    assert bounds[0] == -math.inf
    assert bounds[-1] > -100


def test_a_verdict_takes_the_time_that_is_given_from_tracing_on() -> None:
    model, unsafe = chain(6), Unsafe(torch.ones(1, 2), torch.full((1,), -1e9))
    statuses = []
    for count in (0, 10, 1_000, 20_000, math.inf):
        clock = Clock(count)
        statuses.append(mg.verify(model, BOX, unsafe, clock.until()).status)
    assert statuses[:2] == ["unknown"] * 2
    assert statuses[-1] == "unsat"
    assert mg.verify(model, BOX, unsafe, 0.0).bound == -math.inf


def test_a_listing_of_boxes_is_left_when_time_is_up(tmp_path: Path) -> None:
    export_onnx(chain(2, inputs=2).float(), torch.randn(3, 2), tmp_path / "net.onnx")
    names = "".join(f"(declare-const {kind}_{i} Real)" for kind in "XY" for i in range(2))
    parts = "".join(f"(and (>= X_0 {i}) (<= X_0 {i + 1}) (<= Y_0 -1e6))" for i in range(8))
    (tmp_path / "p.vnnlib").write_text(
        f"{names}(assert (and (>= X_1 0) (<= X_1 1)))(assert (or {parts}))"
    )
    run = lambda until: verify_file(tmp_path / "net.onnx", tmp_path / "p.vnnlib", until)  # noqa: E731
    total = asks(run)
    for part in (0.0, 0.5, 0.95):
        clock = Clock(int(total * part))
        found = run(clock.until())
        assert (found.status, found.witness) == ("unknown", None)
        assert clock.asked <= clock.asks + 5
    assert run(NEVER).status == "unsat"


def test_both_files_are_read_by_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, prop = tmp_path / "net.onnx", tmp_path / "p.vnnlib"
    export_onnx(chain(2, inputs=2).float(), torch.randn(3, 2), network)
    names = "".join(f"(declare-const {kind}_{i} Real)" for kind in "XY" for i in range(2))
    prop.write_text(f"{names}(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1) (<= Y_0 0)))")
    readers = {
        "network": lambda until: read_onnx(network, until),
        "property": lambda until: read_vnnlib(prop, until),
    }
    for read in readers.values():
        assert asks(read) > 1
        with pytest.raises(OutOfTime):
            read(Clock(1).until())
    given = []
    for name, read in (("read_onnx", read_onnx), ("read_vnnlib", read_vnnlib)):

        def noted(path: Path, until: Deadline = NEVER, *more: Any, read: Any = read) -> Any:
            given.append(until)
            return read(path, until, *more)

        monkeypatch.setattr(vnncomp, name, noted)
    until = Deadline.after(60)
    verify_file(network, prop, until)
    assert len(given) == 2
    assert all(each is until for each in given)
    clock = Clock(asks(readers["network"]) // 2)  # in the middle of the network
    assert verify_file(network, prop, clock.until()).status == "unknown"
    assert clock.asked <= clock.asks + 3


def test_the_command_ends_a_search_that_does_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(verb.os, "_exit", ended.append)
    monkeypatch.setattr(verb, "_GRACE", 0.0)

    class Held:
        """Its time is up at once, and whoever waits for it waits for the end."""

        def __enter__(self) -> None:
            self.wait = verb._ended(Deadline(0.0, lambda: 0.0))
            self.wait.__enter__()

        def __exit__(self, *error: object) -> None:
            while not ended:
                pass

    with CliRunner().isolation(), Held():
        pass
    assert ended == [3]


def test_a_deadline() -> None:
    clock = Clock(asks=3)
    until = Deadline.after(5.0, clock)
    assert until.left() == 5.0
    assert until.within(2.0).left() == 2.0 - 86_400 * clock.told
    with pytest.raises(OutOfTime):
        until.check()
    NEVER.check()
    assert NEVER.left() == math.inf
    assert deadline(until) is until
    assert NEVER.within(math.inf) is NEVER
