"""Parity of the first k of 8 bits: the harder the task, the deeper a learned depth gets.

Source: "Going Deeper: Infinite Deep Neural Networks", experiment A; settings and figures of the
released runs (a penalty of 1e-4 on w, where the text says 1e-5; dropout after batch norm).

All k, and all seeds, train side by side as one batch of networks; they share nothing. `Parities`
with one network is `LearnedDepth` (a test holds them equal); the batch is what makes nine networks
cost little more than one.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from morphogen.experiments.going_deeper.gates import gate_curves
from morphogen.experiments.shared.over_seeds import over_seeds
from morphogen.experiments.shared.page import Paper, page
from morphogen.layers.gate import exponential
from morphogen.record import Claim, Curve, Reproduction

BITS = 8
PAPER = Paper(
    "going-deeper-xor",
    "Learned depth on the parity of k of 8 bits",
    "Going Deeper: Infinite Deep Neural Networks, experiment A",
    {
        "depth": ("step", "w"),
        "accuracy": ("step", "validation accuracy"),
        "gates": ("step", f"gate, k = {BITS}"),
    },
)


@dataclass(frozen=True)
class Config:
    """faithful: five blocks from the start, all of them run in every step, closed ones too (their
    batch norms see data and their momenta decay); no floor. Otherwise only blocks that some network
    has open run, and w has a floor of 0.1.
    """

    seeds: int = 1
    steps: int = 100_000
    every: int = 100
    batch: int = 1_000
    validation: int = 10_000
    width: int = 24
    blocks: int = 5
    dropout: float = 0.1
    penalty: float = 1e-4  # of w^2
    scale_penalty: float = 1e-8  # of gate * gamma^2
    rate: float = 1e-3
    faithful: bool = True


SMOKE = Config(steps=300, every=100, batch=200, validation=1_000)

# w of the released run at these steps, for k = 0 .. 8; and the final w of all three published runs,
# two of them read from plots to within 0.05.
STEPS = (100, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 50_000, 100_000)
RELEASED = (
    (1.11, 1.10, 1.01, 0.93, 0.94, 0.94, 0.93, 0.95, 0.94),
    (1.46, 1.34, 1.43, 1.45, 1.49, 1.47, 1.16, 1.48, 1.28),
    (1.62, 1.43, 1.59, 1.76, 1.79, 1.90, 1.77, 2.03, 1.86),
    (1.78, 1.52, 1.74, 2.09, 2.20, 2.46, 2.56, 2.70, 2.62),
    (2.05, 1.65, 1.97, 2.46, 2.53, 2.84, 3.33, 3.37, 3.37),
    (2.10, 1.52, 2.14, 2.54, 2.68, 3.32, 3.88, 3.90, 3.94),
    (1.08, 0.69, 2.01, 2.34, 2.55, 3.31, 3.85, 4.36, 4.36),
    (0.46, 0.33, 1.32, 2.28, 2.46, 3.27, 3.74, 4.38, 4.42),
    (0.21, 0.24, 1.18, 2.21, 2.33, 3.20, 3.60, 4.35, 4.48),
    (0.122, 0.230, 1.109, 2.129, 2.230, 3.132, 3.460, 4.260, 4.406),
)
FINAL = (
    RELEASED[-1],
    (0.10, 0.39, 1.11, 2.15, 2.32, 3.22, 3.40, 3.50, 4.16),
    (0.11, 0.20, 1.10, 2.07, 2.33, 3.10, 3.35, 3.46, 4.33),
)
READING = 0.05
TIMED = 40_000  # steps within which all nine should be trained in 25 minutes


class Parities(nn.Module):
    """One network for each entry of `ks`: 8 -> frozen 24, ReLU -> learned depth of width 24 ->
    frozen 1.

    Input (networks, 8, batch), output (networks, batch): logits. Block i: linear, batch norm,
    dropout; the post-step is ReLU.
    """

    mask: Tensor
    read: Tensor
    write: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, ks: Sequence[int], config: Config) -> None:
        super().__init__()
        n = len(ks)
        width = config.width
        blocks = config.blocks
        self.config = config
        self.register_buffer(
            "mask", torch.tensor([[float(bit < k) for bit in range(BITS)] for k in ks])[:, :, None]
        )
        self.register_buffer("read", glorot(n, width, BITS))
        self.register_buffer("write", glorot(n, 1, width))
        self.w = nn.Parameter(torch.ones(n))
        self.weight = nn.Parameter(torch.stack([glorot(n, width, width) for _ in range(blocks)]))
        self.bias = nn.Parameter(torch.zeros(blocks, n, width, 1))
        self.gamma = nn.Parameter(torch.ones(blocks, n * width))
        self.beta = nn.Parameter(torch.zeros(blocks, n * width))
        self.register_buffer("mean", torch.zeros(blocks, n * width))
        self.register_buffer("variance", torch.ones(blocks, n * width))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Fresh examples for every network: bits (networks, 8, count), labels (networks, count)."""
        bits = torch.randint(
            2, (len(self.w), BITS, count), dtype=torch.float32, device=self.w.device
        )
        return bits, (bits * self.mask).sum(1) % 2

    def gates(self) -> Tensor:
        """Shape (networks, blocks)."""
        w = self.w if self.config.faithful else self.w + torch.relu(0.1 - self.w).detach()
        return exponential(w[:, None] - torch.arange(self.config.blocks, device=w.device))

    def open_blocks(self, gates: Tensor) -> int:
        """How many blocks run: those that any network has open."""
        return self.config.blocks if self.config.faithful else int((gates > 0).any(0).sum())

    def forward(self, bits: Tensor) -> Tensor:
        g = F.relu(torch.bmm(self.read, bits))
        gates = self.gates()
        for i in range(self.open_blocks(gates)):
            f = torch.baddbmm(self.bias[i], self.weight[i], g)
            f = F.batch_norm(
                f.view(1, -1, f.shape[-1]),
                self.mean[i],
                self.variance[i],
                self.gamma[i],
                self.beta[i],
                self.training,
                0.01,
                1e-3,
            ).view_as(g)
            share = gates[:, i, None, None]
            if self.training and self.config.dropout:
                f = f * kept(f, self.config.dropout)
                share = share / (1 - self.config.dropout)
            g = F.relu(torch.addcmul(g, share, f))
        return torch.bmm(self.write, g)[:, 0]

    def penalty(self) -> Tensor:
        """Of each network, shape (networks,)."""
        squares = self.gamma.view(self.config.blocks, len(self.w), -1).square().sum(-1)
        result: Tensor = self.config.penalty * self.w.square() + self.config.scale_penalty * (
            self.gates() * squares.T
        ).sum(1)
        return result


def kept(like: Tensor, dropout: float) -> Tensor:
    """1 where a unit stays and 0 where it is dropped, from 16 random bits each: a tenth of the time
    of `F.dropout` on a CPU.
    """
    bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(
        -(2**63), None
    )
    drawn = bits.view(torch.int16)[: like.numel()].view_as(like)
    return (drawn >= round(dropout * 2**16) - 2**15).to(like.dtype)


def glorot(n: int, rows: int, columns: int) -> Tensor:
    """n matrices, uniform in +-sqrt(6 / (rows + columns))."""
    bound = math.sqrt(6 / (rows + columns))
    return torch.empty(n, rows, columns).uniform_(-bound, bound)


@dataclass(frozen=True)
class Trace:
    """Of one network: w and validation accuracy at every recorded step."""

    k: int
    steps: tuple[int, ...]
    w: tuple[float, ...]
    accuracy: tuple[float, ...]
    seconds: tuple[float, ...]  # since the start, for all networks together


def run(config: Config) -> list[Trace]:
    """Train all k and seeds; one trace for each, k by k. Not by `training.train`: examples are
    drawn anew for every step, for all networks at once.
    """
    began = time.perf_counter()
    torch.manual_seed(1)
    ks = [k for k in range(BITS + 1) for _ in range(config.seeds)]
    model = Parities(ks, config)
    optimizer = Adam(model.parameters(), lr=config.rate, eps=1e-8, fused=True)
    records: list[tuple[int, list[float], list[float], float]] = []
    for step in range(1, config.steps + 1):
        bits, labels = model.draw(config.batch)
        optimizer.zero_grad()
        loss = (
            F.binary_cross_entropy_with_logits(model(bits), labels, reduction="none").mean(1)
            + model.penalty()
        )
        loss.sum().backward()
        optimizer.step()
        if step % config.every == 0:
            seconds = time.perf_counter() - began
            records.append((step, model.w.tolist(), accuracy(model, config.validation), seconds))
    steps, ws, scores, times = zip(*records, strict=True)
    return [
        Trace(k, steps, tuple(w[i] for w in ws), tuple(score[i] for score in scores), times)
        for i, k in enumerate(ks)
    ]


@torch.no_grad()
def accuracy(model: Parities, count: int) -> list[float]:
    """Of every network, on fresh examples."""
    model.eval()
    bits, labels = model.draw(count)
    score: list[float] = ((model(bits) > 0) == (labels > 0.5)).double().mean(1).tolist()
    model.train()
    return score


def published(k: int, step: int) -> float:
    """w of the released run, between its known steps in proportion to the logarithm of the step."""
    place = next(i for i, known in enumerate(STEPS) if known >= step)
    if STEPS[place] == step or place == 0:
        return RELEASED[place][k]
    share = math.log(step / STEPS[place - 1]) / math.log(STEPS[place] / STEPS[place - 1])
    return RELEASED[place - 1][k] * (1 - share) + RELEASED[place][k] * share


def depth_claims(config: Config, traces: Sequence[Trace]) -> list[Claim]:
    """Final w within the spread of the published runs, for each k."""
    claims = []
    for k in range(BITS + 1):
        target = published(k, config.steps)
        ends = [final[k] for final in FINAL]
        low = target - (RELEASED[-1][k] - min(ends)) - READING
        high = target + (max(ends) - RELEASED[-1][k]) + READING
        values = [trace.w[-1] for trace in traces if trace.k == k]
        name = f"k = {k}: w after {config.steps:,} steps"
        claims.append(over_seeds(name, values, target, low, high, "released run"))
    return claims


def rank_correlation(means: Sequence[float]) -> float:
    """Of the place in order and the values."""
    places = torch.arange(float(len(means)))
    ranks = torch.tensor(means).argsort().argsort().float()
    return float(torch.corrcoef(torch.stack([places, ranks]))[0, 1])


def minutes(config: Config, trace: Trace) -> float:
    """A set of nine, up to the steps that are timed."""
    timed = [
        seconds for step, seconds in zip(trace.steps, trace.seconds, strict=True) if step <= TIMED
    ]
    return timed[-1] / 60 / config.seeds


def claims(config: Config, traces: Sequence[Trace]) -> tuple[Claim, ...]:
    """Final w within the spread of the published runs, deeper for harder tasks, all of them
    solved.
    """
    depths = depth_claims(config, traces)
    within = sum(claim.met for claim in depths)
    rank = rank_correlation([claim.measured for claim in depths])
    best = min(max(trace.accuracy) for trace in traces)
    last = min(trace.accuracy[-1] for trace in traces)
    return (
        *depths,
        Claim(
            "depths within the published spread, of 9",
            9,
            within,
            low=8,
            source="three published runs, +-0.05 for reading",
        ),
        Claim(
            "rank correlation of k and depth",
            1.0,
            rank,
            low=0.98,
            source="harder tasks allocate more layers",
        ),
        Claim("least best accuracy of all k", 1.0, best, low=1.0, source="released run"),
        Claim("least final accuracy of all k", 1.0, last, low=0.999, source="released run"),
        Claim(
            f"minutes to {min(TIMED, config.steps):,} steps, a set of nine",
            25,
            minutes(config, traces[0]),
            high=25,
            source="promised",
        ),
    )


def drawn(config: Config, traces: Sequence[Trace]) -> list[Curve]:
    """The first network of each k; the released run's depths; the gates of the hardest task."""
    first = {trace.k: trace for trace in reversed(traces)}
    ks = sorted(first)
    curves = [Curve("depth", f"k = {k}", first[k].steps, first[k].w) for k in ks]
    curves += [Curve("accuracy", f"k = {k}", first[k].steps, first[k].accuracy) for k in ks]
    known = [i for i, step in enumerate(STEPS) if step <= config.steps]
    steps = tuple(STEPS[i] for i in known)
    for k in (0, 2, 5, 8):
        w = tuple(RELEASED[i][k] for i in known)
        curves.append(Curve("depth", f"published {k}", steps, w))
    return [*curves, *gate_curves(first[BITS].steps, first[BITS].w)]


def reproduce(faithful: bool = True, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """Run it and put the published figures beside it. smoke: a few seconds, to see that it runs;
    its claims are not met.
    """
    config = replace(SMOKE if smoke else Config(), seeds=seeds, faithful=faithful)
    began = time.perf_counter()
    traces = run(config)
    seconds = time.perf_counter() - began
    notes = (
        "all networks train side by side as one batch",
        f"{1000 * seconds / config.steps:.1f} ms a step for {len(traces)} networks",
    )
    curves = drawn(config, traces)
    return page(PAPER, config, began, claims(config, traces), curves, notes, faithful)
