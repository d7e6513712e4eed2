"""What a resize costs: one width of ResNet-50 under Adam, beside one training step, Torch-Pruning
(shrink) and gromo (grow).

    python bench/resize.py                   # writes bench/results/resize.{json,md}
    pip install torch-pruning==1.6.1 gromo==0.1.0      # optional: their rows appear where they are
    installed

Times are medians of several runs in one process; the ratio to the training step is what matters.
"""

import copy
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

import morphogen as mg
from fit import RESULTS, environment

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from architectures import Bottleneck, ResNet

WIDTH, UNITS, RUNS = "layer3.0.conv1", 16, 5


def seconds(run: Callable[[], object], runs: int = RUNS) -> float:
    """Median wall time."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return median(times)


def main() -> None:
    torch.manual_seed(0)
    model = ResNet(Bottleneck, (3, 4, 6, 3), 4)
    optimizer = torch.optim.Adam(model.parameters())
    batch, labels = torch.randn(32, 3, 224, 224), torch.randint(10, (32,))
    example = torch.randn(2, 3, 64, 64)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()

    step()
    rows = {"one training step, batch 32, 224 x 224": seconds(step, 3)}
    rows["trace and widths, once"] = seconds(lambda: mg.widths(mg.trace(model, example)))
    ties = mg.widths(mg.trace(model, example))

    def grow(probe: torch.Tensor | None = None) -> None:
        mg.apply_(
            model,
            mg.plan(model, ties, [mg.Grow(WIDTH, UNITS)]),
            optimizers=[optimizer],
            example=probe,
        )

    rows[f"grow {WIDTH} by {UNITS}"] = seconds(grow)
    rows[f"grow {WIDTH} by {UNITS}, checked on an example"] = seconds(lambda: grow(example))
    shrink = [mg.Shrink(WIDTH, range(UNITS))]
    rows[f"shrink {WIDTH} by {UNITS}"] = seconds(
        lambda: mg.apply_(model, mg.plan(model, ties, shrink), optimizers=[optimizer])
    )
    rows["grow in one call, traced anew"] = seconds(
        lambda: mg.resize(model, [mg.Grow(WIDTH, UNITS)], optimizers=[optimizer], example=example)
    )
    rows |= torch_pruning(model, example) | gromo()
    unit = rows["one training step, batch 32, 224 x 224"]
    result = {"seconds": rows, "environment": environment()}
    (RESULTS / "resize.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["| ResNet-50 under Adam | seconds | of a training step |", "|---|---|---|"]
    lines += [f"| {name} | {value:.3f} | {value / unit:.4f} |" for name, value in rows.items()]
    lines += ["", "; ".join(f"{k} {v}" for k, v in environment().items())]
    (RESULTS / "resize.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def torch_pruning(model: torch.nn.Module, example: torch.Tensor) -> dict[str, float]:
    """The same shrink by Torch-Pruning, which leaves the optimizer as it was; {} where it is not
    installed.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        return {}
    tp = importlib.import_module("torch_pruning")
    copied = copy.deepcopy(model)
    traced = seconds(lambda: tp.DependencyGraph().build_dependency(copied, example_inputs=example))
    graph = tp.DependencyGraph().build_dependency(copied, example_inputs=example)
    layer = copied.get_submodule(WIDTH)

    def prune() -> None:
        graph.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=list(range(UNITS))).prune()

    return {
        "Torch-Pruning: graph, once": traced,
        f"Torch-Pruning: shrink {WIDTH} by {UNITS}, no optimizer": seconds(prune),
    }


def gromo() -> dict[str, float]:
    """The same growth between two convolutions of the same shapes, which must be gromo's own; {}
    where it is not installed.
    """
    if importlib.util.find_spec("gromo") is None:
        return {}
    make = importlib.import_module("gromo.modules.conv2d_growing_module").Conv2dGrowingModule
    first = make(512, 256, 1, use_bias=False, device=torch.device("cpu"))
    last = make(
        256,
        256,
        3,
        stride=2,
        padding=1,
        use_bias=False,
        previous_module=first,
        device=torch.device("cpu"),
    )

    def grow() -> None:
        last.create_layer_extensions(UNITS, input_extension_init="zeros")
        last.apply_change(scaling_factor=1.0, extension_size=UNITS)
        last.delete_update(include_previous=True)

    return {f"gromo: grow two layers of its own by {UNITS}, no norm, no optimizer": seconds(grow)}


if __name__ == "__main__":
    main()
