"""Ten tasks in a row: DEN on permuted and on rotated MNIST, beside nets that cannot grow.

A task is ten yes-or-no questions, one for each digit, about images whose pixels are permuted, or
that are rotated, in a way of its own; the first task's are as they are. Which task is asked is
known. Controls, all of the size that DEN starts from: a net for each task (STL), a net for all
tasks at once (MTL), and nets that learn task after task: fine-tuned, tied to the last task's
weights (L2), or to those of all tasks by how much they mattered (EWC). How strongly they are tied
is chosen on held-out rows.

Source: Yoon, Yang, Lee & Hwang 2018 (arXiv 1708.01547), section 4; the settings of its official
code, which permutes MNIST. The published figures are of MNIST-Variation, harder data (rotated
digits on noise, 1,000 training rows a class), for reference. EWC: Kirkpatrick et al. 2017 (arXiv
1612.00796), eq. 3.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from statistics import mean

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim import Adam

from morphogen.data.load import load_data
from morphogen.edit.apply import count_parameters
from morphogen.experiments.shared.claims import Row, claimed
from morphogen.experiments.shared.page import Paper, page
from morphogen.lifelong.den import DEN, Learned, Rows, descend, learn
from morphogen.lifelong.network import Lifelong, used
from morphogen.record import Claim, Curve, Reproduction
from morphogen.threads import threads
from morphogen.training.train import generator

# Mean AUROC over tasks after the tenth, and DEN's share of STL's parameters.
PUBLISHED = {
    "STL": 0.7963,
    "MTL": 0.8047,
    "fine-tuned": 0.6785,
    "L2": 0.7440,
    "EWC": 0.7480,
    "DEN": 0.8131,
}
SHARE = 0.18
VARIATION = "first version, a figure; MNIST-Variation"
LATER = "last version, MNIST-Variation"
OURS = ", bound ours"
PAPER = Paper(
    "den-mnist",
    "Ten tasks in a row: DEN",
    "Lifelong Learning with Dynamically Expandable Networks (arXiv 1708.01547)",
)
NOTE = (
    "a control stops by the same rule as a phase of DEN; STL and MTL see no order of tasks: no "
    "forgetting"
)


@dataclass(frozen=True)
class Config:
    """rows: of a task, of which `held` are not trained on. degrees: between a rotated task and the
    next. phases: the steps that a control may take on a task, in phases of DEN, which takes up to
    four. l2, ewc: strengths of the ties to choose from.
    """

    den: DEN
    data: str = "mnist"
    seeds: int = 1
    sequences: tuple[str, ...] = ("permuted", "rotated")
    tasks: int = 10
    rows: int = 6000
    held: int = 1000
    degrees: float = 20.0
    hidden: tuple[int, ...] = (128, 64)
    phases: int = 4
    l2: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    ewc: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)


# the rate and the penalties: chosen on held-out rows of the first three tasks of both sequences
DEFAULT = Config(
    DEN(sparsity=1e-3, l1=0.1, drift=0.1, rate=3e-3, batch=128, iterations=600, check=50, window=3)
)
FAITHFUL = Config(DEN(), rows=60_000, held=5000, hidden=(312, 128), phases=1)
SMOKE = Config(
    DEN(drift=0.1, units=2, rate=0.01, batch=32, iterations=20, check=5, window=2),
    data="digits", tasks=3, rows=400, held=100, hidden=(16, 8), phases=1, l2=(0.1,), ewc=(100.0,),
)  # fmt: skip


@dataclass(frozen=True)
class Tasks:
    """Inputs and targets of each part, (tasks, rows, features) and (tasks, rows, classes)."""

    train: Rows
    held: Rows
    test: Rows

    def __len__(self) -> int:
        return len(self.test[0])


def prepared(kind: str, config: Config, seed: int) -> Tasks:
    """Each task has training rows of its own draw; the test part is whole, changed as the task's
    rows are.
    """
    dataset = load_data(config.data)
    x = torch.as_tensor(dataset.x_train)
    test = torch.as_tensor(dataset.x_test)
    y = one_hot(dataset.y_train)
    answers = one_hot(dataset.y_test)
    features = x[0].numel()
    xs = torch.empty(config.tasks, config.rows, features)
    ys = torch.empty(config.tasks, config.rows, y.shape[1])
    tests = torch.empty(config.tasks, len(test), features)
    for task in range(config.tasks):
        draw = generator(seed, 1, task)
        rows = torch.randperm(len(x), generator=draw)[: config.rows]
        pixels = torch.randperm(features, generator=draw)
        change = partial(changed, kind, task, config.degrees, pixels)
        xs[task] = change(x[rows])
        ys[task] = y[rows]
        tests[task] = change(test)
    cut = config.held
    return Tasks(
        (xs[:, cut:], ys[:, cut:]),
        (xs[:, :cut], ys[:, :cut]),
        (tests, answers.expand(config.tasks, -1, -1)),
    )


def one_hot(labels: object) -> Tensor:
    return F.one_hot(torch.as_tensor(labels).long()).float()


def changed(kind: str, task: int, degrees: float, pixels: Tensor, images: Tensor) -> Tensor:
    """Images (n, 1, size, size) as a task has them, as rows (n, features)."""
    if kind == "rotated":
        return rotated(images, task * degrees)
    rows = images.flatten(1)
    return rows[:, pixels] if kind == "permuted" and task else rows


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images (n, 1, size, size), rotated about their middle with bilinear interpolation, as rows
    (n, features).
    """
    angle = torch.tensor(degrees).deg2rad()
    turn = torch.stack(
        [
            torch.stack([angle.cos(), -angle.sin(), angle * 0]),
            torch.stack([angle.sin(), angle.cos(), angle * 0]),
        ]
    )
    grid = F.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).flatten(1)


def of(part: Rows, task: int) -> Rows:
    """One task's rows."""
    return part[0][task], part[1][task]


def auroc(net: Lifelong, task: int, rows: Rows, stamped: bool = True) -> float:
    """Mean over classes of one against the rest."""
    return float(
        roc_auc_score(
            rows[1].numpy(), net.predict(rows[0], task, stamped).double().numpy(), average="macro"
        )
    )


@dataclass(frozen=True)
class Fit:
    """path: after each task, the test AUROC of each task so far. parameters: after each task, those
    that are not zero; stored: all, in the end. held: mean AUROC in the end on held-out rows.
    """

    path: tuple[tuple[float, ...], ...]
    parameters: tuple[int, ...]
    stored: int
    seconds: float
    held: float = 0.0
    note: str = ""

    @property
    def average(self) -> float:
        return mean(self.path[-1])

    @property
    def forgetting(self) -> float:
        """Mean over all but the last task: AUROC when it was learned, less that in the end."""
        return mean(self.path[task][task] - final for task, final in enumerate(self.path[-1][:-1]))


def minimise(
    loss: Callable[..., Tensor],
    parameters: Sequence[Tensor],
    train: Sequence[Tensor],
    held: Sequence[Tensor],
    config: Config,
    draw: torch.Generator,
    pull: Callable[[], None] = lambda: None,
    tasks: int = 1,
) -> None:
    """Train all of a control on loss(*rows of train), for so many tasks at once, with the l2 of
    DEN's settings.
    """
    den = config.den
    settings = replace(
        den, iterations=tasks * config.phases * den.iterations, check=tasks * den.check
    )

    @torch.no_grad()
    def look() -> float:
        return float(loss(*held))

    def pulled() -> None:
        for p in parameters:
            p.grad.add_(p, alpha=settings.l2)  # type: ignore[union-attr]
        pull()

    optimizer = Adam(parameters, settings.rate, fused=True)
    everything = {p: torch.ones_like(p, dtype=torch.bool) for p in parameters}
    batch = lambda rows: loss(*(part[rows] for part in train))  # noqa: E731
    descend(settings, optimizer, everything, batch, look, len(train[0]), draw, pulled)


def learn_all(
    net: Lifelong,
    task: int,
    tasks: Tasks,
    number: int,
    config: Config,
    seed: int,
    pull: Callable[[], None] = lambda: None,
) -> None:
    """Fit all hidden weights and one head of a control to the task of that number."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net.logits(x, task, stamped=False), y)

    parameters = [*net.hidden.parameters(), *net.head(task).parameters()]
    minimise(
        loss,
        parameters,
        of(tasks.train, number),
        of(tasks.held, number),
        config,
        generator(seed, 3, number),
        pull,
    )


def fresh(tasks: Tasks, config: Config, seed: int, *key: int) -> Lifelong:
    torch.manual_seed(generator(seed, 2, *key).initial_seed())
    return Lifelong(tasks.test[0].shape[2], config.hidden)


def alone(tasks: Tasks, config: Config, seed: int) -> Fit:
    """STL: a network for each task."""
    began = time.perf_counter()
    scores = []
    parameters = [0]
    for task in range(len(tasks)):
        net = fresh(tasks, config, seed, task)
        net.add_head(tasks.train[1][task].mean(0))
        learn_all(net, 0, tasks, task, config, seed)
        scores.append(auroc(net, 0, of(tasks.test, task)))
        parameters.append(parameters[-1] + count_parameters(net))
    path = tuple(tuple(scores[: task + 1]) for task in range(len(tasks)))
    return Fit(path, tuple(parameters[1:]), parameters[-1], time.perf_counter() - began)


def together(tasks: Tasks, config: Config, seed: int) -> Fit:
    """MTL: one network with all heads, on the rows of all tasks in one order."""
    began = time.perf_counter()
    count = len(tasks)
    net = fresh(tasks, config, seed)
    for y in tasks.train[1]:
        net.add_head(y.mean(0))

    def loss(x: Tensor, y: Tensor, task: Tensor) -> Tensor:
        seen = net.features(x)
        logits = torch.stack([net.head(k)(seen) for k in range(count)])
        return F.binary_cross_entropy_with_logits(logits[task, torch.arange(len(x))], y)

    def joined(part: Rows) -> list[Tensor]:
        return [
            *(t.flatten(0, 1) for t in part),
            torch.arange(count).repeat_interleave(part[0].shape[1]),
        ]

    draw = generator(seed, 3)
    parameters = list(net.parameters())
    minimise(loss, parameters, joined(tasks.train), joined(tasks.held), config, draw, tasks=count)
    scores = tuple(auroc(net, task, of(tasks.test, task)) for task in range(count))
    size = count_parameters(net)
    path = tuple(scores[: task + 1] for task in range(count))
    return Fit(path, (size,) * count, size, time.perf_counter() - began)


def fisher(net: Lifelong, x: Tensor, task: int, draw: torch.Generator) -> list[Tensor]:
    """The diagonal of the Fisher information of each hidden parameter at one task's rows, answers
    drawn by the network.
    """
    seen = [x]
    sums = []
    for layer in net.layers:
        sums.append(layer.linear(seen[-1]))
        seen.append(sums[-1].relu())
    logits = net.head(task)(seen[-1])
    answers = torch.bernoulli(logits.detach().sigmoid(), generator=draw)
    loss = F.binary_cross_entropy_with_logits(logits, answers, reduction="sum")
    # the gradient of one row's weights is an outer product, so its square is one too
    slopes = [slope.square() / len(x) for slope in torch.autograd.grad(loss, sums)]
    pairs = [
        (slope.T @ inputs.detach().square(), slope.sum(0))
        for slope, inputs in zip(slopes, seen, strict=False)
    ]
    return list(chain.from_iterable(pairs))


@dataclass
class Ties:
    """What holds parameters to earlier tasks: sum of weight (p - center)^2 over tasks is, up to a
    constant, what two sums give, of the weights and of weight * center.
    """

    parameters: list[nn.Parameter]
    weights: list[Tensor]
    centers: list[Tensor]

    def pull(self, strength: float) -> None:
        """Adds their gradients."""
        for p, weight, center in zip(self.parameters, self.weights, self.centers, strict=True):
            p.grad.add_(weight * p - center, alpha=strength)  # type: ignore[union-attr]

    def to_last(self) -> None:
        """Only the last task counts, each parameter as much as another (L2)."""
        self.weights = [torch.ones_like(p) for p in self.parameters]
        self.centers = [p.detach().clone() for p in self.parameters]

    def add(self, matters: Sequence[Tensor]) -> None:
        """One more task, each parameter by how much it matters there (EWC)."""
        for p, weight, center, matter in zip(
            self.parameters, self.weights, self.centers, matters, strict=True
        ):
            weight += matter
            center += matter * p.detach()


def in_turn(tasks: Tasks, config: Config, seed: int, method: str, strength: float = 0.0) -> Fit:
    """One network of fixed size learns task after task: "fine-tuned", "L2" or "EWC"."""
    began = time.perf_counter()
    path = []
    net = fresh(tasks, config, seed)
    shared = list(net.hidden.parameters())
    zeros = [[torch.zeros_like(p) for p in shared] for _ in range(2)]
    ties = Ties(shared, *zeros)
    pull = lambda: ties.pull(strength)  # noqa: E731
    for task in range(len(tasks)):
        net.add_head(tasks.train[1][task].mean(0))
        learn_all(net, task, tasks, task, config, seed, pull)
        path.append(tuple(auroc(net, k, of(tasks.test, k)) for k in range(task + 1)))
        if method == "L2":
            ties.to_last()
        if method == "EWC":
            ties.add(fisher(net, tasks.train[0][task], task, generator(seed, 4, task)))
    size = count_parameters(net)
    kept = mean(auroc(net, task, of(tasks.held, task)) for task in range(len(tasks)))
    note = f"{method} with {strength:g}" if strength else ""
    return Fit(tuple(path), (size,) * len(tasks), size, time.perf_counter() - began, kept, note)


def expanding(tasks: Tasks, config: Config, seed: int) -> tuple[Fit, Fit, list[Learned]]:
    """DEN; its fits with time stamps and without, and what each task did."""
    began = time.perf_counter()
    lessons = []
    parameters = []
    paths: dict[bool, list[tuple[float, ...]]] = {True: [], False: []}
    net = fresh(tasks, config, seed)
    for task in range(len(tasks)):
        train = of(tasks.train, task)
        held = of(tasks.held, task)
        lessons.append(learn(net, config.den, train, held, generator(seed, 3, task)))
        for stamped, path in paths.items():
            path.append(tuple(auroc(net, k, of(tasks.test, k), stamped) for k in range(task + 1)))
        parameters.append(used(net))
    sizes = tuple(parameters)
    stored = count_parameters(net)
    seconds = time.perf_counter() - began
    return (
        Fit(tuple(paths[True]), sizes, stored, seconds),
        Fit(tuple(paths[False]), sizes, stored, seconds),
        lessons,
    )


def compared(kind: str, config: Config, seed: int) -> tuple[dict[str, Fit], list[Learned]]:
    """All methods on one sequence of tasks."""
    tasks = prepared(kind, config, seed)
    tied = {"L2": config.l2, "EWC": config.ewc}
    fits = {"STL": alone(tasks, config, seed), "MTL": together(tasks, config, seed)}
    fits["fine-tuned"] = in_turn(tasks, config, seed, "fine-tuned")
    for method, strengths in tied.items():
        tried = [in_turn(tasks, config, seed, method, strength) for strength in strengths]
        fits[method] = max(tried, key=lambda fit: fit.held)
    fits["DEN"], fits["DEN without stamps"], lessons = expanding(tasks, config, seed)
    return fits, lessons


def average(key: str) -> Row:
    source = VARIATION if key in PUBLISHED else ""
    name = f"average AUROC, {key}"
    return Row(name, lambda run: run[key].average, PUBLISHED.get(key), source=source)


def lead(other: str, low: float | None = None) -> Row:
    """Of DEN, over paired seeds."""
    return Row(
        f"average AUROC of DEN less {other}",
        lambda run: run["DEN"].average - run[other].average,
        PUBLISHED["DEN"] - PUBLISHED[other],
        low,
        source=VARIATION if low is None else VARIATION + OURS,
    )


def forgetting(key: str) -> Row:
    return Row(f"forgetting, {key}", lambda run: run[key].forgetting)


# what DEN promises
LEADS = (*(lead(other, 0.0) for other in ("fine-tuned", "L2", "EWC")), lead("STL"), lead("MTL"))
SIZES = (
    Row(
        "parameters of DEN that are not zero / of STL",
        lambda run: run["DEN"].parameters[-1] / run["STL"].stored,
        SHARE,
        high=0.5,
        source=LATER + OURS,
    ),
    Row(
        "parameters of DEN, zeros included / of STL",
        lambda run: run["DEN"].stored / run["STL"].stored,
        SHARE,
        source=LATER,
    ),
)
STAMPS = Row(
    "forgetting with stamps less without",
    lambda run: run["DEN"].forgetting - run["DEN without stamps"].forgetting,
    high=1e-4,
    source="promised, but for rounding",
)


def claims(kind: str, runs: Sequence[dict[str, Fit]]) -> list[Claim]:
    """One sequence: averages, then DEN's promises over paired seeds."""
    averages = [average(key) for key in runs[0]]
    forgot = [forgetting(key) for key in runs[0] if key not in ("STL", "MTL")]
    return claimed([*averages, *LEADS, *SIZES, *forgot, STAMPS], runs, f"{kind}: ")


def drawn(kind: str, fits: dict[str, Fit]) -> list[Curve]:
    """Averages, and capacities beside that of a net for each task, by tasks learned."""
    count = tuple(range(1, len(fits["DEN"].path) + 1))
    curves = [Curve(kind, key, count, tuple(map(mean, fit.path))) for key, fit in fits.items()]
    for key in ("STL", "DEN"):
        sizes = tuple(size / fits["STL"].stored for size in fits[key].parameters)
        curves.append(Curve("capacity", f"{kind}, {key}", count, sizes))
    return curves


def told(kind: str, fits: dict[str, Fit], lessons: Sequence[Learned]) -> list[str]:
    """What a reader must know of the first seed: seconds, and what each task did."""
    notes = [
        f"{kind}, seed 0, {key}: {fit.seconds:.0f} s{', ' * bool(fit.note)}{fit.note}"
        for key, fit in fits.items()
    ]
    for did in lessons:
        losses = ", ".join(f"{phase} {loss:.4f}" for phase, loss in did.losses.items())
        notes.append(
            f"{kind}, seed 0, task {did.task + 1}: the head reads {did.selected}, {did.added} new "
            f"stayed, {did.split} split, layers {did.sizes}, held-out loss {losses}"
        )
    return notes


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """Both sequences. faithful: the layers, rows and settings of the official code, less its
    faults. smoke: three tasks of scikit-learn's digits.
    """
    config = replace(SMOKE if smoke else FAITHFUL if faithful else DEFAULT, seeds=seeds)
    began = time.perf_counter()
    judged: list[Claim] = []
    curves: list[Curve] = []
    notes: list[str] = []
    for kind in config.sequences:
        with threads(1):
            runs = [compared(kind, config, seed) for seed in range(seeds)]
        judged += claims(kind, [fits for fits, _ in runs])
        curves += drawn(kind, runs[0][0])
        notes += told(kind, *runs[0])
    axes = dict.fromkeys(config.sequences, ("tasks learned", "average AUROC of these"))
    axes["capacity"] = ("tasks learned", "parameters / of all STL nets")
    paper = replace(PAPER, axes=axes)
    return page(paper, config, began, judged, curves, [*notes, NOTE], faithful)
