"""How fast a DAG of neurons is beside a perceptron that multiplies as often.

    python bench/dag.py                      # about ten minutes; writes bench/results/dag.{json,md}

Full wiring: forward and backward of n nodes over 784 inputs, batch 256, beside three dense layers
of equal multiplications, and beside the node-by-node loop (its forward pass; its backward pass as
autograd keeps it would need the memory of all prefixes). Sparse wiring: useful multiplications and
additions a second, forward and backward. Large: one step of n = 16,384, with the memory that it
takes beyond parameters, gradients and optimizer state. Times of one run, each beside its peer in
turns.
"""

import json
import math
import resource
import subprocess
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fit import RESULTS, environment
from morphogen.layers.dag.module import Dag
from morphogen.threads import threads
from turns import in_turns, ratio

INPUTS, BATCH = 784, 256
SIZES = (512, 1024, 2048, 4096)
FANS = (16, 64, 256)


def macs(model: Dag) -> int:
    """Multiplications of a forward pass for one row, the readout aside."""
    return model.weight.numel()


def perceptron(multiplications: int) -> nn.Sequential:
    """Three layers, INPUTS -> w -> w -> w, of about so many multiplications."""
    w = round((-INPUTS + math.sqrt(INPUTS**2 + 8 * multiplications)) / 4)
    return nn.Sequential(
        nn.Linear(INPUTS, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU()
    )


def forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def both(model: nn.Module, x: Tensor) -> None:
    out = model(x)
    torch.autograd.grad(out, list(model.parameters()), out)


def full(nodes: int) -> dict[str, float]:
    """Speeds over those of the peers: multiplications a second over the perceptron's, time of the
    loop over ours.
    """
    x = torch.randn(BATCH, INPUTS)
    dag = Dag(INPUTS, nodes)
    peer = perceptron(macs(dag))
    equal = sum(m.weight.numel() for m in peer if isinstance(m, nn.Linear)) / macs(dag)
    figures: dict[str, float] = {}
    for name, run in {"forward": forward, "forward and backward": both}.items():
        times = in_turns(
            {"dag": partial(run, dag, x), "peer": partial(run, peer, x)},
            turns=max(7, 40_000 // nodes),
        )
        figures[name] = ratio(times, "peer", "dag") / equal
        figures[f"GF/s, {name}"] = (
            (2 if run is forward else 6) * macs(dag) * BATCH / min(times["dag"]) / 1e9
        )
    loop = Dag(INPUTS, nodes, solver="loop")
    times = in_turns({"dag": partial(forward, dag, x), "loop": partial(forward, loop, x)}, turns=3)
    figures["loop"] = ratio(times, "loop", "dag")
    return figures


def sparse(fan_in: int, nodes: int = 4096) -> dict[str, float]:
    """Useful GF/s of a random wiring, and its time over that of the full wiring."""
    x = torch.randn(BATCH, INPUTS)
    dag, dense = Dag(INPUTS, nodes, wiring="random", fan_in=fan_in), Dag(INPUTS, nodes)
    figures: dict[str, float] = {"density": dag.density}
    for name, run in {"forward": forward, "forward and backward": both}.items():
        times = in_turns({"sparse": partial(run, dag, x), "dense": partial(run, dense, x)}, turns=5)
        figures[f"GF/s, {name}"] = (
            (2 if run is forward else 6) * macs(dag) * BATCH / min(times["sparse"]) / 1e9
        )
        figures[f"{name}, time / full wiring"] = ratio(times, "sparse", "dense")
    return figures


def large(nodes: int = 16_384) -> dict[str, float]:
    """In a process of its own: GiB beyond parameters, gradients and the state of SGD with
    momentum.
    """
    command = [sys.executable, __file__, "--large", str(nodes)]
    told: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return told


def trained(nodes: int) -> dict[str, float]:
    torch.manual_seed(0)
    dag, x = Dag(INPUTS, nodes, 10), torch.randn(BATCH, INPUTS)
    optimizer = torch.optim.SGD(dag.parameters(), 1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        dag(x).square().mean().backward()
        optimizer.step()

    step()
    times = in_turns({"step": step}, turns=2)
    size = sum(p.numel() for p in dag.parameters()) * 4
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # three tensors of the parameters' size: themselves, their gradients, their momenta
    return {
        "GiB beyond": (most - 3 * size) / 2**30,
        "GF/s": 6 * macs(dag) * BATCH / min(times["step"]) / 1e9,
    }


def main() -> None:
    if "--large" in sys.argv:
        print(json.dumps(trained(int(sys.argv[-1]))))
        return
    result: dict[str, Any] = {"environment": environment()}
    for count in (1, 2):
        with threads(count):
            torch.manual_seed(0)
            result[f"{count} threads"] = {
                "full": {n: full(n) for n in SIZES},
                "random": {fan_in: sparse(fan_in) for fan_in in FANS},
            }
    result["large"] = large()
    (RESULTS / "dag.json").write_text(json.dumps(result, indent=1) + "\n")
    text = table(result)
    (RESULTS / "dag.md").write_text(text)
    print(text)


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        "| full wiring, nodes | threads | speed / perceptron of equal multiplications: forward | "
        "forward and backward "
        "| GF/s forward and backward | loop's time / ours, forward |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for count in (1, 2):
        for nodes, f in result[f"{count} threads"]["full"].items():
            cells = (
                f["forward"],
                f["forward and backward"],
                f["GF/s, forward and backward"],
                f["loop"],
            )
            lines.append(
                f"| {nodes} | {count} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"
            )
    lines += ["| asked | | at least 0.85 | at least 0.85 | | at least 3 |", ""]
    lines.append(
        "| random, 4,096 nodes, fan-in | threads | useful GF/s forward | forward and backward | "
        "time / full wiring |"
    )
    lines.append("|--:|--:|--:|--:|--:|")
    for count in (1, 2):
        for fan_in, f in result[f"{count} threads"]["random"].items():
            cells = (
                f["GF/s, forward"],
                f["GF/s, forward and backward"],
                f["forward and backward, time / full wiring"],
            )
            lines.append(
                f"| {fan_in} | {count} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"
            )
    large = result["large"]
    lines += ["| asked | | at least 12 a core | at least 12 a core | |", ""]
    lines += [
        f"16,384 nodes: {large['GiB beyond']:.2f} GiB beyond parameters, gradients and "
        f"momenta (at most 4 asked), "
        f"{large['GF/s']:.0f} GF/s in a step.",
        "",
    ]
    return "\n".join([*lines, "; ".join(f"{k} {v}" for k, v in result["environment"].items()), ""])


if __name__ == "__main__":
    main()
