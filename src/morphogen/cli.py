"""The command: `morphogen fit DATA`."""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Annotated, Any

# Before torch is imported: its CPU threads then wait without spinning, which other processes on the machine would pay for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
from rich.console import Console
from rich.table import Table

from morphogen.data.load import load
from morphogen.deadline import Deadline
from morphogen.errors import DataError, MorphogenError, NotExact
from morphogen.fit import environment
from morphogen.folder import claimed, claimed_free
from morphogen.record import Certificate
from morphogen.resize.structure import diff as difference
from morphogen.run import run

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


class Task(StrEnum):
    """What the target column asks for."""

    classification = "classification"
    regression = "regression"


@app.callback()
def root() -> None:
    """Networks that find their own shape."""


@app.command()
def fit(
    data: Annotated[
        str, typer.Argument(help="digits, mnist, fashion-mnist, cifar10, adult, california-housing, or a CSV or Parquet file")
    ],
    target: Annotated[str | None, typer.Option(help="column to predict (files)")] = None,
    task: Annotated[Task | None, typer.Option(help="override what the target column suggests")] = None,
    test: Annotated[str | None, typer.Option(help="file with the test rows; otherwise a fifth is set aside")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="most parameters")] = None,
    seed: Annotated[int, typer.Option(min=0, help="random seed")] = 0,
    time_limit: Annotated[float | None, typer.Option(min=1, help="seconds for the search (the control comes after it)")] = None,
    out: Annotated[Path | None, typer.Option(help="output folder; default runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in the output folder")] = False,
    device: Annotated[str, typer.Option(help="torch device, such as cpu or cuda")] = "cpu",
    policy: Annotated[str, typer.Option(help="trial, prune-expand, gradmax or natural")] = "trial",
    wiring: Annotated[str, typer.Option(help="layers, or dag: every neuron reads every earlier one")] = "layers",
    baselines: Annotated[
        bool, typer.Option("--baselines", help="also run scikit-learn's MLP, a grid of 12 and gradient boosting")
    ] = False,
    control: Annotated[bool, typer.Option(help="also train the found shape from scratch")] = True,
    compress: Annotated[
        bool, typer.Option("--compress", help="make it smaller at the end, exactly equal on the range of the training rows")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but errors")] = False,
) -> None:
    """Learn a network of the right shape for DATA and write it, with a report, to a folder."""
    dataset = load(data, target=target, task=task.value if task else None, test=test, seed=seed)
    run(
        dataset,
        out=out,
        resume=resume,
        baselines=baselines,
        control=control,
        compress=compress,
        quiet=quiet,
        budget=budget,
        seed=seed,
        time_limit=time_limit,
        device=device,
        policy=policy,
        wiring=wiring,
    )


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="the experiment; see --help for the list")],
    faithful: Annotated[bool, typer.Option("--faithful", help="the original's settings, quirks included")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="a few seconds, to see that it runs")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds")] = 1,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="keep the trained networks, where it has any")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="write the curves as TensorBoard summaries too")] = False,
    out: Annotated[Path | None, typer.Option(help="output folder; default runs/reproduce/NAME")] = None,
) -> None:
    """Run a paper's experiment again and put its published figures beside what came out."""
    experiments = import_module("morphogen.experiments").EXPERIMENTS
    if name not in experiments:
        raise MorphogenError(f"reproduce {name!r}: unknown; choose one of {', '.join(experiments)}")
    with claimed_free(Path("runs") / "reproduce" / name) if out is None else claimed(out) as folder:
        _reproduce(name, folder, faithful, smoke, seeds, checkpoints, tensorboard)


def _reproduce(name: str, folder: Path, faithful: bool, smoke: bool, seeds: int, checkpoints: bool, tensorboard: bool) -> None:
    experiments = import_module("morphogen.experiments").EXPERIMENTS
    summaries = import_module("morphogen.report.summaries")
    if tensorboard:
        summaries.needed()  # before the run, which may take hours
    result = replace(experiments[name](faithful, smoke, seeds), environment=environment("cpu"))
    write = import_module("morphogen.report.reproduction")
    write.write(result if checkpoints else replace(result, files={}), folder)
    if tensorboard:
        summaries.write_summaries(result, folder)
    console, table = Console(), Table(*write.HEADER[:-1])
    for claim in result.claims:
        table.add_row(*write.cells(claim)[:-1], style="yellow" if claim.verdict == "missed" else None)
    console.print(table)
    console.print(f"{write.summary(result)}; written to {folder}/")


@app.command()
def verify(
    network: Annotated[Path | None, typer.Argument(help="an ONNX file")] = None,
    prop: Annotated[Path | None, typer.Argument(metavar="PROPERTY", help="a VNN-LIB 1.0 file: what is unsafe")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, help="seconds from reading the files on, then it is unknown; 60, or as listed")
    ] = None,
    instances: Annotated[Path | None, typer.Option(help="a CSV of network, property, seconds: verify them all")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="processes, with --instances")] = 1,
    out: Annotated[Path, typer.Option(help="the table of results, with --instances; only errors in it are run again")] = Path(
        "results.csv"
    ),
) -> None:
    """Prove that NETWORK has no unsafe input, or find one: sat (with the input), unsat or unknown; exit codes 0, 1 and 3."""
    if instances is not None:
        if network is not None:
            raise DataError("verify: --instances names the networks; leave NETWORK and PROPERTY away")
        _verify_all(instances, out, timeout, jobs)
        return
    if network is None or prop is None:
        raise DataError("verify: give NETWORK and PROPERTY, or --instances instances.csv")
    until = Deadline.after(timeout or 60.0)
    console, began, last = Console(stderr=True), time.perf_counter(), [0.0]
    with console.status("bounding") as status:
        search = import_module("morphogen.bounds.files").verify_file

        def told(bound: float, count: int) -> None:
            line, spent = f"least bound {bound:.4g}, {count:,} parts open", time.perf_counter() - began
            status.update(line)
            if spent > 2 * last[0] + 1:  # 1 s, 3 s, 7 s, 15 s, ...
                last[0] = spent
                console.print(f"{spent:6.1f} s  {line}", highlight=False)

        with _ended(until):
            found = search(network, prop, until, told)
    typer.echo(found.status)
    if found.witness is not None:
        pairs = [f"(X_{i} {text})" for i, text in enumerate(found.written)]
        pairs += [f"(Y_{i} {value:.9g})" for i, value in enumerate(found.output)]
        typer.echo("(" + "\n ".join(pairs) + ")")
    console.print(f"bound {found.bound:.6g}, {found.boxes:,} parts, {found.seconds:.1f} s", highlight=False)
    raise typer.Exit({"sat": 0, "unsat": 1, "unknown": 3}[found.status])


_GRACE = 0.7  # seconds after its end in which a search says what it knows


@contextmanager
def _ended(until: Deadline) -> Iterator[None]:
    """End the process as unknown where a search does not stop by itself: what reads, traces and bounds asks the deadline
    between its steps, but nothing can ask it in the middle of one, such as of loading a module or a file."""
    told = threading.Lock()  # by whoever gets it

    def give_up() -> None:
        if told.acquire(blocking=False):
            sys.stdout.write("unknown\n")
            sys.stdout.flush()
            os._exit(3)

    timer = threading.Timer(until.left() + _GRACE, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
        told.acquire()
    finally:
        timer.cancel()


def _verify_all(listing: Path, out: Path, timeout: float | None, jobs: int) -> None:
    """Every problem of a listing, with a line each and a count at the end."""
    console = Console(soft_wrap=True, highlight=False)

    def told(result: Any, left: int) -> None:
        said = f"  {result.said}" if result.said else ""
        console.print(f"{result.status:8}{result.seconds:7.1f} s  {result.network}  {result.prop}  ({left} left){said}")

    results = import_module("morphogen.bounds.instances").run_instances(listing, out, timeout, jobs, told)
    counts = Counter(result.status for result in results)
    table = Table("status", "problems", "median s", "longest s")
    for status, count in counts.most_common():
        times = [result.seconds for result in results if result.status == status]
        table.add_row(status, str(count), f"{median(times):.2f}", f"{max(times):.1f}")
    console.print(table)
    console.print(f"{len(results)} results in {out}")


Network = Annotated[Path, typer.Argument(metavar="MODEL", help="a .onnx file, or a .pt2 file of torch.export.save")]
Trust = Annotated[bool, typer.Option("--trust", help="read a .pt2 file even where that may run code which is in it")]
Domain = Annotated[
    str, typer.Option(help="the set of inputs: LOW,HIGH for each of them, or a CSV file whose rows it just holds")
]


@app.command()
def compress(
    model: Network,
    domain: Domain = "0,1",
    out: Annotated[Path | None, typer.Option(help="the smaller network, .onnx or .pt2; default MODEL-small.onnx")] = None,
    skips: Annotated[bool, typer.Option("--skips", help="also put linear skips past units that bend nowhere")] = False,
    tolerance: Annotated[float, typer.Option(help="by which outputs may differ, relative to the largest, in float64")] = 1e-9,
    seconds: Annotated[float, typer.Option(help="for linear programs in each pass")] = 60.0,
    steps: Annotated[bool, typer.Option("--steps", help="print every unit that went, with its proof")] = False,
    trust: Trust = False,
) -> None:
    """Make MODEL smaller without changing what it does on a domain; writes the network and its certificate."""
    files, rewrites = import_module("morphogen.transforms.files"), import_module("morphogen.transforms.compress")
    read = files.read(model, trust)
    box, samples = files.domain(domain, read.shape)
    rules = [name for name in rewrites.RULES if name != "skip" or skips]
    small, certificate = _certified(lambda: rewrites.compress(read.model, box, samples, seconds, rules))
    console = Console(soft_wrap=True, highlight=False)
    if steps:
        console.print("\n".join(certificate.steps) or "nothing to take out", markup=False)
    target = out or model.with_name(f"{_stem(model)}-small.onnx")
    _write(small.to(read.dtype), read.model, read.shape, target, certificate, box, tolerance)


@app.command()
def shallow(
    model: Network,
    domain: Domain = "0,1",
    form: Annotated[str, typer.Option(help="maximum, minimum, max-min, split or difference")] = "maximum",
    out: Annotated[Path | None, typer.Option(help="the shallow network, .onnx or .pt2; none is written unless given")] = None,
    relus: Annotated[bool, typer.Option("--relus", help="maxima as layers of ReLUs")] = False,
    budget: Annotated[
        int, typer.Option(min=1, help="linear regions, at most; with fewer it is a lower or upper bound")
    ] = 100_000,
    tolerance: Annotated[float, typer.Option(help="by which outputs may differ, relative to the largest, in float64")] = 1e-9,
    trust: Trust = False,
) -> None:
    """Write MODEL as one maximum of networks with a single hidden layer, or another shallow form, exact on a domain."""
    files, rewrites = import_module("morphogen.transforms.files"), import_module("morphogen.transforms.shallow")
    read = files.read(model, trust)
    box, _ = files.domain(domain, read.shape)
    made, certificate = _certified(lambda: rewrites.shallow(read.model, box, form, budget=budget, prune=True))
    network = made.to_torch()
    if relus:
        network = import_module("morphogen.transforms.form").relu_tree(network)
    _write(network, read.model, read.shape, out, certificate, box, tolerance)


@app.command()
def regions(
    model: Network,
    domain: Domain = "0,1",
    through: Annotated[
        Path | None,
        typer.Option(help="a CSV file of d + 1 inputs: only on the plane through them; DOMAIN is of its coefficients"),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="stop after so many")] = 1_000_000,
    seconds: Annotated[float, typer.Option(help="stop after so long")] = 60.0,
    picture: Annotated[Path | None, typer.Option(help="where to draw them, with two free inputs: .png, .svg or .pdf")] = None,
    trust: Trust = False,
) -> None:
    """Count the linear regions of MODEL on a domain, exactly, and draw those of a plane; exit code 3 where it was stopped."""
    files, count = import_module("morphogen.transforms.files"), import_module("morphogen.transforms.regions").regions
    read = files.read(model, trust)
    along = None
    if through is not None:
        rows = files.points(through, read.shape).unique(dim=0, sorted=False)
        along = rows[0], rows[1:] - rows[0]
    box, _ = files.domain(domain, read.shape if along is None else (len(along[1]),))
    began = time.perf_counter()
    found = count(read.model, box, along, budget, seconds)
    Console(soft_wrap=True, highlight=False).print(f"{found} ({time.perf_counter() - began:.2f} s)")
    if picture is not None:
        draw = import_module("morphogen.report.tiling").tiled
        draw(found.picture(f"linear regions of {model.name}")).savefig(picture, dpi=150)
        typer.echo(f"drawn to {picture}")
    if not found.complete:
        raise typer.Exit(3)


def _certified(rewrite: Callable[[], tuple[Any, Certificate]]) -> tuple[Any, Certificate]:
    """What a rewrite returns; where it is not exact, exit code 1 and no file."""
    try:
        return rewrite()
    except NotExact as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(1) from None


def _write(
    network: Any, original: Any, shape: tuple[int, ...], out: Path | None, certificate: Certificate, box: Any, tolerance: float
) -> None:
    """Print a certificate, and write it with the network unless it fails the tolerance: then exit code 1, and no file."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"[bold]{certificate.kind}[/] on the domain: {certificate.reason}")
    console.print(f"largest difference {certificate.max_error:.1e} at 10,000 points and corners, in float64")
    files = import_module("morphogen.transforms.files")
    if certificate.kind == "exact" and not certificate.max_error <= tolerance * files.size(original, box):
        sys.stderr.write(f"the difference exceeds --tolerance {tolerance:g}; no file was written\n")
        raise typer.Exit(1)
    if out is not None:
        seen = files.write(network, original, shape, out, certificate, box)
        console.print(f"written to {out} and {out.name}.certificate.json; {seen.reason}: {seen.max_error:.1e} off")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0]


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="a structure.json, or a checkpoint that morphogen.save wrote")],
    after: Annotated[Path, typer.Argument(help="another")],
) -> None:
    """Print what changed between two structures, a line a module."""
    typer.echo(difference(before, after) or "no difference")


def main() -> None:
    """Run the command. An error that was raised on purpose is one line on standard error and exit code 2."""
    try:
        app()
    except MorphogenError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print("[bold red]error:[/] ", end="")
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; go on with --resume\n")
        sys.exit(130)
