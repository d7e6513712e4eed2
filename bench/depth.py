"""What a learned depth costs, and what it may not do: cheat.

    python bench/depth.py                    # about two minutes; writes
    bench/results/depth.{json,md}

Cost: a training step of a `LearnedDepth` with n open blocks beside a plain residual stack of n
blocks, taken in turns; and the forward pass after `freeze` beside a chain of the same layers.

Cheat: a block can scale itself up by 1/gate instead of paying for a larger w. Parity of 5 bits is
learned with a high price of depth, without and with the penalty of gains above 1.
"""

import json
from collections.abc import Callable
from functools import partial
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphogen as mg
from fit import RESULTS, environment
from morphogen.experiments.going_deeper.spirals import Fixed
from morphogen.experiments.going_deeper.spirals import block as dense
from morphogen.layers.penalty import last_affine, penalty, quadratic, scale_penalty
from morphogen.threads import threads
from turns import in_turns, ratio


def conv(channels: int, _: int = 0) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
    )


CASES: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "4 convolutions, 32 channels, 16 x 16, batch 64": (partial(conv, 32), (64, 32, 16, 16)),
    "4 dense, 256 units, batch 512": (partial(dense, 256), (512, 256)),
}
BLOCKS = 4


def cost(block: Callable[[int], nn.Module], shape: tuple[int, ...]) -> dict[str, float]:
    """Medians of the ratios in each turn: a training step, and the forward pass after freezing."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    learned, plain = mg.LearnedDepth(block, w=BLOCKS - 0.1), Fixed(block, BLOCKS)
    runs = {}
    for name, model in (("learned", learned), ("plain", plain)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        runs[name] = partial(step, model, optimizer, x)
    trained = in_turns(runs)
    frozen, _ = mg.freeze(nn.Sequential(learned), x)
    chain = nn.Sequential(*(layer for i in range(BLOCKS) for layer in (block(i)[0], nn.ReLU())))  # type: ignore[index]
    with torch.no_grad():
        runs = {
            "frozen": partial(frozen.eval(), x),
            "chain": partial(chain.eval(), x),
            "plain": partial(plain.eval(), x),
        }
        forward = in_turns(runs)
    return {
        "training step": ratio(trained, "learned", "plain"),
        "frozen / chain": ratio(forward, "frozen", "chain"),
        "frozen / stack": ratio(forward, "frozen", "plain"),
    }


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def cheat(factor: float, seed: int) -> dict[str, float]:
    """Parity of 5 of 8 bits with a price of 3e-3 on w^2; factor: of the penalty on squared gains
    above 1.
    """
    torch.manual_seed(seed)

    def price(layer: mg.LearnedDepth) -> Tensor:
        return quadratic(layer, 3e-3) + scale_penalty(layer, factor, free=1.0)

    deep = mg.LearnedDepth(partial(dense, 24), penalty=price, floor=0.1)
    model = nn.Sequential(
        nn.Linear(8, 24).requires_grad_(False),
        nn.ReLU(),
        deep,
        nn.Linear(24, 1).requires_grad_(False),
    )
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for number in range(4_000):
        bits = torch.randint(2, (500, 8)).float()
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(bits)[:, 0], bits[:, :5].sum(1) % 2)
        (loss + penalty(model)).backward()
        optimizer.step()
        if number % 50 == 0:
            mg.adapt(model, optimizers=[optimizer])
    model.eval()
    bits = torch.randint(2, (5_000, 8)).float()
    gains = [
        float(last_affine(block).detach().square().mean().sqrt())
        for block in list(deep.blocks)[: deep.active_blocks]
    ]
    return {
        "w": deep.depth,
        "largest gain": max(gains),
        "accuracy": float(
            ((model(bits)[:, 0] > 0) == (bits[:, :5].sum(1) % 2 > 0.5)).double().mean()
        ),
    }


@threads(1)
def main() -> None:
    costs = {name: cost(*case) for name, case in CASES.items()}
    cheats = {
        factor: [cheat(factor, seed) for seed in range(3)] for factor in (0.0, 1e-4, 1e-3, 1e-2)
    }
    result = {
        "cost": costs,
        "cheat": {str(k): v for k, v in cheats.items()},
        "environment": environment(),
    }
    (RESULTS / "depth.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = [
        "| | training step / plain stack | frozen / chain of its layers | frozen / plain stack |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {' | '.join(f'{value:.3f}' for value in ratios.values())} |"
        for name, ratios in costs.items()
    ]
    lines += ["", "| penalty of gains above 1 | w | largest gain | accuracy |", "|---|---|---|---|"]
    for factor, runs in cheats.items():
        w, largest, right = (
            mean(run[key] for run in runs) for key in ("w", "largest gain", "accuracy")
        )
        lines.append(f"| {factor:g} | {w:.2f} | {largest:.2f} | {100 * right:.2f} % |")
    about = (
        "To reach: 1.05 and 1.00. Gain: root mean square of a block's last gamma. Parity of "
        "5 of 8 bits, 3e-3 w^2, 3 seeds."
    )
    lines += ["", about, "", "; ".join(f"{k} {v}" for k, v in environment().items())]
    (RESULTS / "depth.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
