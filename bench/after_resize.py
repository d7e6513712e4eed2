"""What happens after a resize: the same questions to several ways of changing a width in the middle
of training.

    python bench/after_resize.py             # writes bench/results/after_resize.json and
    docs/after_a_resize.md
    pip install torch-pruning==1.6.1 gromo==0.1.0      # optional: their rows are measured anew
    where they are installed

A network 10 -> 16 -> 4 is trained with Adam for 50 steps, its hidden width changes (by 8 units
more, or 8 fewer where a library only shrinks), and training goes on with the same optimizer for 50
steps. Nothing is said that was not measured here.
"""

import importlib
import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import morphogen as mg
from fit import RESULTS, environment

PAGE = Path(__file__).parents[1] / "docs" / "after_a_resize.md"
Resize = Callable[[nn.Module, torch.optim.Optimizer, Tensor, int], None]
Way = tuple[Callable[[], nn.Module], Resize]


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 4))


def by_morphogen(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, units: int) -> None:
    mg.resize(model, [mg.Grow("0", units)], optimizers=[optimizer], example=x)


def by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, units: int) -> None:
    """As tutorials do it: larger layers, the old weights copied in."""
    assert isinstance(model, nn.Sequential)
    old = len(model[0].weight)
    first, last = nn.Linear(10, old + units), nn.Linear(old + units, 4)
    with torch.no_grad():
        first.weight[:old], first.bias[:old] = model[0].weight, model[0].bias
        last.weight.zero_()
        last.weight[:, :old] = model[2].weight
        last.bias.copy_(model[2].bias)
    model[0], model[2] = first, last


def by_torch_pruning(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, units: int
) -> None:
    assert isinstance(model, nn.Sequential)
    tp = importlib.import_module("torch_pruning")
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    graph.get_pruning_group(
        model[0],
        tp.prune_linear_out_channels,
        idxs=list(range(len(model[0].weight) - units, len(model[0].weight))),
    ).prune()


def growing() -> nn.Module:
    module = importlib.import_module("gromo.containers.growing_mlp")
    torch.manual_seed(0)
    return module.GrowingMLP(10, 4, 16, 1, activation=nn.Tanh(), device=torch.device("cpu"))  # type: ignore[no-any-return]


def by_gromo(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, units: int) -> None:
    last: Any = model.layers[-1]  # type: ignore[index,union-attr]
    last.create_layer_extensions(units, input_extension_init="zeros")
    last.apply_change(scaling_factor=1.0, extension_size=units)
    last.delete_update(include_previous=True)


def masked(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, units: int) -> None:
    assert isinstance(model, nn.Sequential)
    prune.ln_structured(model[0], "weight", amount=units, n=2, dim=0)


WAYS: dict[str, tuple[str, str, Way]] = {
    "Morphogen": ("", "grow", (plain, by_morphogen)),
    "by hand": ("", "grow", (plain, by_hand)),
    "torch.nn.utils.prune": ("", "mask", (plain, masked)),
    "Torch-Pruning 1.6.1": ("torch_pruning", "shrink", (plain, by_torch_pruning)),
    "gromo 0.1.0": ("gromo", "grow", (growing, by_gromo)),
}

QUESTIONS = {
    "parameters": "parameters before -> after",
    "stale": "stale tensors in the optimizer / live ones it misses",
    "kept": "of the kept entries, Adam state as before",
    "trains": "the next 50 steps with the same optimizer",
    "loads": "saved, and loaded into a fresh model, nothing pickled",
    "compiled": "compiled model after six resizes by 1",
    "exported": "`torch.export`, after",
}


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(64, 10, generator=draw)
    return x, x[:, :4].sin() + x[:, 4:8]


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x, y = data()
    for _ in range(50):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def answers(way: Way) -> dict[str, str]:
    """The row of one way."""
    build, resize = way
    x, _ = data()
    model = build()
    optimizer = torch.optim.Adam(list(model.parameters()), lr=1e-2)
    train(model, optimizer)
    held = {name: optimizer.state[p]["exp_avg_sq"].clone() for name, p in model.named_parameters()}
    before = sum(p.numel() for p in model.parameters())
    resize(model, optimizer, x, 8)
    live = list(model.parameters())
    in_optimizer = [p for group in optimizer.param_groups for p in group["params"]]
    stale = sum(all(p is not q for q in live) for p in in_optimizer)
    missed = sum(all(p is not q for q in in_optimizer) for p in live)
    row = {
        "parameters": f"{before} -> {sum(p.numel() for p in live)}",
        "stale": f"{stale} / {missed}",
        "kept": kept(model, optimizer, held),
        "compiled": compiled(build, resize),
        "exported": exported(model),
        "loads": loads(model, optimizer, build, resize),
    }
    weights = [p.detach().clone() for p in live]
    try:
        train(model, optimizer)
    except RuntimeError as error:
        row["trains"] = f"error: {first_line(error)}"
    else:
        moved = sum(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
        row["trains"] = f"{moved} of {len(live)} tensors move" + (
            ", no error" if moved < len(live) else ""
        )
    return row


def kept(model: nn.Module, optimizer: torch.optim.Optimizer, old: dict[str, Tensor]) -> str:
    """Share of the old entries still in the network whose state the optimizer still has."""
    same = total = 0
    for name, parameter in model.named_parameters():
        before = old[name.removesuffix("_orig")]
        corner = tuple(
            slice(0, min(a, b)) for a, b in zip(parameter.shape, before.shape, strict=True)
        )
        total += before[corner].numel()
        after = optimizer.state.get(parameter, {}).get("exp_avg_sq")
        if after is not None and after.shape == parameter.shape:
            same += int((after[corner] == before[corner]).sum())
    return f"{100 * same / total:.0f} %"


def loads(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    build: Callable[[], nn.Module],
    resize: Resize,
) -> str:
    """By the library's own way where it has one, else by `state_dict`."""

    def restored() -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            if resize is by_morphogen:
                mg.save(model, f"{folder}/run", optimizers=[optimizer])
                return mg.load(
                    f"{folder}/run",
                    lambda: (fresh := build(), torch.optim.Adam(fresh.parameters())),
                )[0]
            torch.save(model.state_dict(), f"{folder}/run")
            fresh = build()
            fresh.load_state_dict(torch.load(f"{folder}/run", weights_only=True))
            return fresh

    x, _ = data()
    return attempt(lambda: "yes" if torch.equal(restored()(x), model(x)) else "WRONG")


def compiled(build: Callable[[], nn.Module], resize: Resize) -> str:
    x, _ = data()
    torch._dynamo.reset()
    counted = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal counted
        counted += 1
        return graph.forward

    def run() -> str:
        model = build()
        fast = (
            mg.compiled(model, backend=count)
            if resize is by_morphogen
            else torch.compile(model, backend=count)
        )
        optimizer = torch.optim.Adam(list(model.parameters()), lr=1e-2)
        fast(x)
        first, right = counted, True
        for _ in range(6):
            resize(model, optimizer, x, 1)
            right &= torch.allclose(fast(x), model(x), atol=1e-6)
        return f"{'right' if right else 'WRONG'}, {counted - first} recompilations"

    with torch._dynamo.config.patch(
        force_parameter_static_shapes=True, force_nn_module_property_static_shapes=True
    ):
        return attempt(run)


def exported(model: nn.Module) -> str:
    x, _ = data()
    return attempt(
        lambda: "yes" if torch.allclose(export(model, x)(x), model(x), atol=1e-6) else "WRONG"
    )


def export(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.export.export(model, (x,), strict=False).module()  # type: ignore[return-value]


def attempt(run: Callable[[], str]) -> str:
    try:
        return run()
    except Exception as error:
        return f"no: {first_line(error)}"


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next(
        (line for line in lines if "size mismatch" in line or "Missing key" in line),
        [*lines, type(error).__name__][0],
    )
    return line.partition(":")[0][:80].replace("|", "/")


def main() -> None:
    path = RESULTS / "after_resize.json"
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    for name, (package, kind, way) in WAYS.items():
        if not package or importlib.util.find_spec(package):
            stored["rows"][name] = {"does": kind, **answers(way)}
    stored["environment"] = environment()
    path.write_text(json.dumps(stored, indent=1) + "\n")
    PAGE.write_text(page(stored), encoding="utf-8")
    print(page(stored))


def page(stored: dict[str, Any]) -> str:
    """The documentation page."""
    names = [name for name in WAYS if name in stored["rows"]]
    lines = [
        "# What happens after a resize",
        "",
        "A network 10 -> 16 -> 4 is trained with Adam for 50 steps; then its hidden width "
        "changes by 8; then training goes on",
        "with the same optimizer. Printed by `python bench/after_resize.py`; every cell is "
        "measured.",
        "",
        f"| | {' | '.join(names)} |",
        "|---|" + "---|" * len(names),
        f"| does | {' | '.join(stored['rows'][name]['does'] for name in names)} |",
    ]
    lines += [
        f"| {text} | {' | '.join(stored['rows'][name][key] for name in names)} |"
        for key, text in QUESTIONS.items()
    ]
    lines += [
        "",
        "Stale tensors are what an optimizer goes on stepping although the network no longer has "
        "them; live ones that it",
        "misses do not train, and no error says so. A resized `state_dict` fits no freshly built "
        "model by itself;",
        "`morphogen.save` and `morphogen.load` rebuild it, the optimizer's state included. "
        "Morphogen's column compiles with",
        "`morphogen.compiled`, the others with `torch.compile`, which gives up after eight with "
        "a line in a log.",
        "",
        "; ".join(f"{k} {v}" for k, v in stored["environment"].items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
