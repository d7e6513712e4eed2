"""By how much a verification passes its time, on networks that are too large for it.

    python bench/timeout.py [NAME...]   # three minutes; writes bench/results/timeout.{json,md}

A deep network, one of nothing but ReLUs (as modules and as a file), wide ones, convolutions, and an
attack with 1,024 restarts on a slow network, each with 1, 5 and 10 seconds, on one thread. Asked:
never more than 1 s or 10 % over. The tracer is loaded once before, as `import torch` is.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from fit import RESULTS, environment
from morphogen.bounds.box import Box, unit_cube
from morphogen.threads import threads
from morphogen.verification.unsafe import Unsafe
from morphogen.verification.verify import verify
from morphogen.verification.vnncomp import verify_file

LIMITS = (1.0, 5.0, 10.0)
ASKED = 1.0, 0.1  # seconds over, or this share of the limit


def bent(sizes: list[int], bend: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers = [part for a, b in pairwise(sizes[:-1]) for part in (nn.Linear(a, b), bend())]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def convolutions(planes: int, bend: type[nn.Module], last: nn.Module) -> nn.Sequential:
    layers = [
        part
        for a, b in ((3, planes), (planes, planes), (planes, planes))
        for part in (nn.Conv2d(a, b, 3, 1, 1), bend())
    ]
    model = nn.Sequential(*layers, last, nn.Flatten())
    return model.append(nn.Linear(model(torch.zeros(1, 3, 32, 32)).shape[1], 10))


# a network and the shape of an example
NETS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "5,000 linear layers and ReLUs": (lambda: bent([2] * 5_002), (2,)),
    "5,000 ReLUs": (
        lambda: nn.Sequential(nn.Linear(2, 2), *(nn.ReLU() for _ in range(5_000))),
        (2,),
    ),
    "300 linear layers and ReLUs": (lambda: bent([8] * 302), (8,)),
    "784-2048x6, ReLU": (lambda: bent([784, *[2048] * 6, 10]), (784,)),
    "784-2048x10, ReLU": (lambda: bent([784, *[2048] * 10, 10]), (784,)),
    "784-2048x6, sigmoid": (lambda: bent([784, *[2048] * 6, 10], nn.Sigmoid), (784,)),
    "5-2048x6, attack of 1,024 restarts": (lambda: bent([5, *[2048] * 6, 5]), (5,)),
    "3 convolutions of 64, ReLU": (lambda: convolutions(64, nn.ReLU, nn.Identity()), (3, 32, 32)),
    "3 convolutions of 32, tanh, max-pooling": (
        lambda: convolutions(32, nn.Tanh, nn.MaxPool2d(2)),
        (3, 32, 32),
    ),
}
FILE = "5,000 ReLUs, a file"


def of_modules(name: str) -> Iterator[tuple[float, float, str, float]]:
    """(limit, seconds, status, bound) for each limit."""
    torch.manual_seed(0)
    build, shape = NETS[name]
    model, x = build(), torch.rand(1, *shape)
    with torch.no_grad():
        y = model(x)[0]
    # far from what the network does here, and not far enough for its bounds
    box, unsafe = (
        Box(x - 0.05, x + 0.05),
        Unsafe(torch.ones(1, len(y)), (y.sum() - 1 - y.abs().sum())[None]),
    )
    for limit in LIMITS:
        began = time.perf_counter()
        result = verify(model, box, unsafe, limit)
        yield limit, time.perf_counter() - began, result.status, result.bound


def of_file() -> Iterator[tuple[float, float, str, float]]:
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(5_000)]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("v0", "v5000")
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "relus", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 13)],
    )
    with tempfile.TemporaryDirectory() as folder:
        net, prop = Path(folder) / "net.onnx", Path(folder) / "p.vnnlib"
        onnx.save(model, net)
        declared = "".join(f"(declare-const {kind}_{i} Real)" for kind in "XY" for i in range(2))
        box = "".join(f"(assert (and (>= X_{i} -1) (<= X_{i} 1)))" for i in range(2))
        prop.write_text(f"{declared}{box}(assert (<= Y_0 -1))")
        for limit in LIMITS:
            began = time.perf_counter()
            result = verify_file(net, prop, limit)
            yield limit, time.perf_counter() - began, result.status, result.bound


@threads(1)
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "names", nargs="*", default=[*NETS, FILE], metavar="NAME", help="; ".join([*NETS, FILE])
    )
    names = parser.parse_args().names
    verify(
        nn.Linear(1, 1),
        unit_cube(1),
        Unsafe(torch.ones(1, 1), -100 * torch.ones(1)),
    )
    rows = []
    for name in names:
        for limit, seconds, status, bound in of_file() if name == FILE else of_modules(name):
            rows.append(
                {
                    "network": name,
                    "limit s": limit,
                    "seconds": seconds,
                    "status": status,
                    "bound": str(bound),
                }
            )
            print(rows[-1], flush=True)
    stored = {"rows": rows, "environment": environment()}
    (RESULTS / "timeout.json").write_text(json.dumps(stored, indent=1) + "\n")
    (RESULTS / "timeout.md").write_text(table(stored))
    print(table(stored))


def table(stored: dict) -> str:
    """As Markdown."""
    lines = [
        "| network | limit s | seconds | over s | asked | status |",
        "|---|--:|--:|--:|--:|---|",
    ]
    late = 0
    for row in stored["rows"]:
        limit, over = row["limit s"], row["seconds"] - row["limit s"]
        asked = max(ASKED[0], ASKED[1] * limit)
        late += over > asked
        lines.append(
            f"| {row['network']} | {limit:g} | {row['seconds']:.2f} | {over:+.2f} | {asked:g} | "
            f"{row['status']} |"
        )
    told = "; ".join(f"{k} {v}" for k, v in stored["environment"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{late} of {len(stored['rows'])} are over by more than what is asked. {told}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
