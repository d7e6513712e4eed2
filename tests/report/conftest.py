"""A made-up run that looks like a real one: 40 rounds, layers that come, grow and shrink, 25
changes with their reasons.
"""

import math
from dataclasses import replace

import pytest

from morphogen.record import Change, Depth, Layer, Report, Round, TableRow

# round, where, before, after, reason
_STEPS = """
1 conv1 8 12 on trial at validation loss 1.8068
1 depth1 1 2 learned depth w = 1.04
2 conv2 8 12 on trial at validation loss 1.2410
3 hidden 8 12 on trial at validation loss 0.9672
4 conv1 12 16 validation loss -0.0813 by the last 4
5 conv2 12 20 validation loss -0.0544 by the last 4
6 hidden 12 20 validation loss -0.0310 by the last 4
7 depth1 2 3 learned depth w = 2.01
7 conv1 16 24 validation loss -0.0212 by the last 4
9 conv1 24 16 the last 8 did not pay: validation loss +0.0009 without them
9 conv2 20 28 validation loss -0.0198 by the last 8
10 hidden 20 28 validation loss -0.0087 by the last 8
12 depth1 3 2 learned depth w = 1.62
12 conv2 28 40 validation loss -0.0104 by the last 8
13 hidden 28 20 the last 8 did not pay: validation loss +0.0003 without them
15 conv2 40 28 the last 12 did not pay: validation loss +0.0011 without them
16 conv1 16 24 on trial at validation loss 0.1411
17 hidden 20 16 validation loss -0.0012 without its weakest 4
18 conv2 28 40 on trial at validation loss 0.1268
19 conv1 24 20 validation loss -0.0007 without its weakest 4
20 hidden 16 24 on trial at validation loss 0.1172
21 conv2 40 36 validation loss -0.0003 without its weakest 4
22 conv1 20 16 validation loss -0.0002 without its weakest 4
23 hidden 24 16 the last 8 did not pay: validation loss +0.0006 without them
24 conv2 36 32 validation loss -0.0001 without its weakest 4
"""


def _shape(sizes: dict[str, int]) -> tuple[Layer, ...]:
    blocks = tuple(Layer(f"conv1.{i}", "conv", sizes["conv1"]) for i in range(1, sizes["depth1"]))
    ends = (
        Layer("conv2", "conv", sizes["conv2"]),
        Layer("hidden", "linear", sizes["hidden"]),
        Layer("output", "output", 10),
    )
    return (Layer("conv1", "conv", sizes["conv1"]), *blocks, *ends)


def _parameters(shape: tuple[Layer, ...]) -> int:
    return sum(
        9 * a.units * b.units + b.units
        for a, b in zip((Layer("x", "conv", 1), *shape), shape, strict=False)
    )


def _depths(number: int) -> tuple[Depth, ...]:
    w = 1 + 1.2 * math.sin(min(number, 26) / 9)
    gates = tuple(1 - math.exp(i - w) for i in range(math.ceil(w)))
    return (Depth("conv1", w, gates), Depth("hidden", 0.6, (1 - math.exp(-0.6),)))


def make_report() -> Report:
    sizes = {"conv1": 8, "depth1": 1, "conv2": 8, "hidden": 8}
    steps = [line.split(maxsplit=4) for line in _STEPS.strip().splitlines()]
    rounds, changes = [], []
    for number in range(40):
        epoch, seconds, before = number * 0.8, 0.1 + number * 0.35, _parameters(_shape(sizes))
        for _, where, old, new, reason in (step for step in steps if int(step[0]) == number):
            sizes[where] = int(new)
            after = _parameters(_shape(sizes))
            changes.append(
                Change(number, epoch, where, int(old), int(new), reason, (before, after))
            )
            before = after
        wave, phase = (
            0.03 * math.sin(3 * number) / (1 + number / 8),
            "grow" if number < 26 else "anneal",
        )
        train = 0.07 + 2.2 * math.exp(-number / 4.5) + wave if number else math.nan
        valid, score = (
            0.09 + 2.1 * math.exp(-number / 4.8) - wave * 0.7,
            0.1 + 0.881 * (1 - math.exp(-number / 4)),
        )
        rounds.append(
            Round(
                number,
                epoch,
                60 * number,
                seconds,
                phase,
                train,
                valid,
                score,
                before,
                _shape(sizes),
                _depths(number),
            )
        )
    table = (
        TableRow("found by morphogen", 0.9792, rounds[-1].parameters, 13.8, loss=0.0712),
        TableRow("same shape from scratch", 0.9778, rounds[-1].parameters, 12.9),
        TableRow("MLP(100)", 0.9694, 7510, 1.2, "scikit-learn"),
        TableRow("gradient boosting", 0.9667, None, 4.31, "stopped after 40 of 100", 0.1234),
        TableRow(
            "best of 12 MLPs",
            0.9722,
            85002,
            41.9,
            "{'alpha': 0.01, 'hidden_layer_sizes': (256, 256)}",
        ),
    )
    notes = (
        "1,437 rows to train with, 360 to test with; 287 of the first are held out for every "
        "decision.",
    )
    environment = {
        "morphogen": "0.1.0",
        "python": "3.11.2",
        "torch": "2.9.1+cpu",
        "device": "cpu",
        "commit": "f3c1be1",
        "hardware": "Intel(R) Xeon(R) Processor, 2 cores",
    }
    return Report(
        "digits",
        "digits",
        "classification",
        "accuracy",
        0,
        tuple(rounds),
        tuple(changes),
        table,
        notes,
        environment,
    )


@pytest.fixture
def report() -> Report:
    return make_report()


@pytest.fixture
def hostile(report: Report) -> Report:
    """The same run with text in it that tries to leave its place, and numbers that are none."""
    evil = "</script><img src=x onerror=alert(1)>{{css}} $x & \"q\" 'a' | [red]% _ \\"
    first, *rest = report.rounds
    rounds = (
        replace(first, valid_loss=math.inf, valid_score=math.nan, shape=(Layer(evil, "conv", 3),)),
        *rest,
    )
    changes = (replace(report.changes[0], where=evil, reason=evil), *report.changes[1:])
    return replace(
        report,
        name=evil,
        data=evil,
        rounds=rounds,
        changes=changes,
        table=(TableRow(evil, None, None, None, evil),),
        notes=(evil,),
        environment={evil: evil},
    )
