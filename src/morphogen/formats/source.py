"""A network as a page of PyTorch source that a person could have written."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from morphogen.activations import MODULES
from morphogen.errors import Unsupported
from morphogen.layers.ensemble import Ensemble
from morphogen.layers.feature_selection import Select, is_selection


def source(
    model: nn.Module,
    *,
    title: str,
    note: str = "",
    prepare: str = "",
    input_hint: str = "",
    targets: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> str:
    """Python source of a class `Net` equal to `model`, a flat `nn.Sequential` of plain modules as
    `freeze` returns it.

    The page reads `model.safetensors` beside it and imports torch and safetensors only. title,
    note: its docstring, any text. prepare: source of a function `prepare(table)` to be put before
    the network; then the page also has `predict(table)` and scores a file that it is started with.
    input_hint: what the network expects. targets: columns that are predicted. classes: in the
    order of the outputs; none for a regression. Raises `Unsupported` for a module that is not
    in the table below, and for a value that has no plain way to be written.
    """
    if type(model) is not nn.Sequential:
        raise Unsupported(
            f"source: {type(model).__name__} is not a flat nn.Sequential; pass the result of "
            "freeze(model, x)"
        )
    layers = [f"            ({_literal(name)}, {line})," for name, line in _lines(model)]
    future, imports, body = _split_imports(prepare)
    kind = _dtype(model)
    scores = _SCORES if body.strip() else _SHOWS
    if body.strip():
        imports += _SCORES_IMPORTS
    if _has(model, _is_ensemble):
        imports += ["import math"]
    return _PAGE.format(
        cast="" if kind is torch.float32 else f".to({kind})",
        title=_text(title),
        note=f"\n\n{_text(note.strip())}" if note else "",
        future=future,
        imports="\n".join(
            sorted(
                {"from collections import OrderedDict", "from pathlib import Path", *imports},
                key=_import_order,
            )
        ),
        prepare=f"{body.strip()}\n\n\n" if body.strip() else "",
        classes=_classes(model),
        layers="\n".join(layers),
        input_hint=f"\n    {_text(input_hint)}\n    " if input_hint else "",
        constants=_constants(targets, classes),
        scores=scores,
    )


_PAGE = '''"""{title}{note}
"""

{future}{imports}

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


{constants}{prepare}{classes}class Net(nn.Module):
    """The network. Input and output have a leading batch dimension.{input_hint}"""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(OrderedDict([
{layers}
        ])){cast}

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x{cast})


def load(path: str | Path = Path(__file__).with_name("model.safetensors")) -> Net:
    """The network with its trained weights, in evaluation mode."""
    net = Net()
    net.layers.load_state_dict(load_file(path))
    return net.eval()


{scores}'''


_SHOWS = """if __name__ == "__main__":
    net = load()
    print(net)
    print(sum(p.numel() for p in net.parameters()), "parameters")
"""

_SCORES_IMPORTS = ["import argparse", "import sys"]

_SCORES = '''def predict(table: pd.DataFrame, proba: bool = False) -> pd.DataFrame:
    """A column named after the target; with `proba` the probability of each class, a column a class.

    What cannot be read as training did is a gap, which is said on standard error; further columns are ignored.
    """
    constants = json.loads(Path(__file__).with_name("preparation.json").read_text(encoding="utf-8"))
    table = readable(table, constants)
    x = torch.as_tensor(prepare(table, constants))
    for name, (count, first) in unread(table, constants).items():
        print(f"note: column {name!r}: {count:,} cells that cannot be read, such as {first!r}: read as missing", file=sys.stderr)
    with torch.no_grad():
        out = load()(x)
    if not CLASSES:
        return pd.DataFrame(out.numpy(), columns=list(TARGETS), index=table.index)
    if proba:
        chances = out.softmax(1)[:, : len(CLASSES)].numpy()
        return pd.DataFrame(chances, columns=list(CLASSES), index=table.index)
    names = np.array(CLASSES, dtype=object)[out.argmax(1).numpy()]
    return pd.DataFrame(names, columns=list(TARGETS), index=table.index)


def read(path: str) -> pd.DataFrame:
    """A Parquet file, or CSV with one of four separators: the one that makes most columns of the header."""
    if path.endswith(".parquet"):
        return pd.read_parquet(path)
    constants = json.loads(Path(__file__).with_name("preparation.json").read_text(encoding="utf-8"))
    names = {column["name"] for kind in ("categories", "hashed", "words") for column in constants[kind]}
    how = {"encoding": "utf-8-sig", "skipinitialspace": True, "na_values": ["?"]}
    headers = {sep: pd.read_csv(path, sep=sep, nrows=0, **how).columns for sep in ",;\\t|"}
    sep = max(headers, key=lambda sep: len(headers[sep]))
    texts = {name: str for name in headers[sep] if name.strip() in names}
    table = pd.read_csv(path, sep=sep, dtype=texts, low_memory=False, **how)
    return table.rename(columns=str.strip)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Predict each row of a table, as CSV.")
    parser.add_argument("table", nargs="?", help="a CSV or Parquet file; without one the network is shown")
    parser.add_argument("--proba", action="store_true", help="the probability of each class")
    options = parser.parse_args()
    if options.table:
        predict(read(options.table), options.proba).to_csv(sys.stdout, index=False)
    else:
        net = load()
        print(net)
        print(sum(p.numel() for p in net.parameters()), "parameters")
'''


_LEVELS = '''class Levels(nn.Module):
    """Linear layers, each of which reads the input and what all levels before it put out."""

    def __init__(self, sizes: list[tuple[int, int]], activation: nn.Module, linked: bool = False) -> None:
        super().__init__()
        for number, (reads, makes) in enumerate(sizes, start=1):
            self.add_module(f"level{number}", nn.Linear(reads, makes))
        self.activation, self.linked, self.count = activation, linked, len(sizes)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, self.count + 1):
            z = self.get_submodule(f"level{number}")(x)
            x = torch.cat([x, self.activation(z), *([self.activation(-z)] if self.linked else [])], -1)
        return x


'''


def _constants(targets: Sequence[str], classes: Sequence[str]) -> str:
    """What the outputs are, as data."""
    lines = [f"TARGETS = {_literal(tuple(targets))}"] if targets else []
    if classes:
        names = "".join(f"    {_literal(name)},\n" for name in classes)
        lines.append(f"CLASSES = (\n{names})  # in the order of the outputs")
    elif targets:
        lines.append("CLASSES = ()  # none: the output is the target in its own unit")
    return "\n".join(lines) + "\n\n\n" if lines else ""


def _dtype(model: nn.Module) -> torch.dtype:
    """Of all numbers; the page would be another network where they differed."""
    kinds: set[torch.dtype] = {
        t.dtype for t in model.state_dict().values() if t.is_floating_point()
    } or {torch.float32}
    if len(kinds) > 1:
        raise Unsupported(
            f"source: tensors of {', '.join(sorted(map(str, kinds)))}; make them one with "
            ".to(dtype)"
        )
    return kinds.pop()


def _is_levels(module: nn.Module) -> bool:
    """Whether it is what `layers.dag.unrolled.by_levels` makes of a DAG that has a readout; copies
    have another class name.
    """
    return (
        isinstance(module, GraphModule)
        and hasattr(module, "level1")
        and not hasattr(module, "order")
    )


def _is_ensemble(module: nn.Module) -> bool:
    return type(module) is Ensemble


def _has(model: nn.Module, kind: Callable[[nn.Module], bool]) -> bool:
    return any(map(kind, model.modules()))


def _classes(model: nn.Module) -> str:
    """Classes that a page defines where the network has one."""
    levels = _LEVELS if _has(model, _is_levels) else ""
    own = ((Select, is_selection), (Ensemble, _is_ensemble))
    return levels + "".join(
        f"{inspect.getsource(kind)}\n\n" for kind, is_one in own if _has(model, is_one)
    )


def _ensemble(ensemble: Ensemble) -> str:
    members = []
    for member in ensemble.members:
        if type(member) is not nn.Sequential:
            raise Unsupported(
                f"source: a member of the ensemble is {type(member).__name__}, not a flat "
                "nn.Sequential; pass what freeze(member, x) gives"
            )
        pairs = ", ".join(f"({_literal(name)}, {line})" for name, line in _lines(member))
        members.append(f"                nn.Sequential(OrderedDict([{pairs}])),")
    lines = "\n".join(members)
    return f"Ensemble([\n{lines}\n            ], probabilities={ensemble.probabilities})"


def _levels(module: GraphModule) -> str:
    sizes = [
        (layer.in_features, layer.out_features)
        for layer in module.children()
        if isinstance(layer, nn.Linear)
    ]
    linked = any(node.target is torch.neg for node in module.graph.nodes)
    activation: Any = module.activation
    return (
        f"Levels({_literal(sizes)}, "
        f"{_line('activation', activation)}{', linked=True' if linked else ''})"
    )


def _lines(model: nn.Sequential) -> list[tuple[str, str]]:
    """(name, source) of its layers."""
    # not `named_children`, which has a module that stands in two places once
    return [(name, _line(name, module)) for name, module in model._modules.items() if module]


def _line(name: str, module: nn.Module) -> str:
    if module._forward_hooks or module._forward_pre_hooks:
        raise Unsupported(
            f"source: {type(module).__name__} '{name}' has hooks, which no source shows; remove "
            "them"
        )
    if isinstance(module, GraphModule) and _is_levels(module):
        return _levels(module)
    if is_selection(module):
        return f"Select({len(module.get_buffer('index'))})"
    if type(module) is Ensemble:
        return _ensemble(module)
    if type(module) not in _KINDS:
        raise Unsupported(
            f"source: no line for {type(module).__name__} '{name}'; add it to "
            "morphogen.formats.source._KINDS"
        )
    return f"nn.{type(module).__name__}({', '.join(_arguments(name, module))})"


_KINDS = frozenset(
    {
        nn.Linear,
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.MaxPool1d,
        nn.MaxPool2d,
        nn.AvgPool2d,
        nn.AdaptiveAvgPool2d,
        nn.Flatten,
        nn.Identity,
        nn.Softmax,
        nn.LogSoftmax,
        *MODULES,
    }
)
"""Modules that keep what they were built with under the names of their constructor's arguments."""


def _arguments(name: str, module: nn.Module) -> Iterator[str]:
    """All of what it was built with: what has no default by position, the rest by name where it is
    not the default.
    """
    for argument in inspect.signature(type(module)).parameters.values():
        elsewhere = ("device", "dtype", "min_value", "max_value")  # the last two are old names
        if argument.kind is not argument.POSITIONAL_OR_KEYWORD or argument.name in elsewhere:
            continue
        value = _square(getattr(module, argument.name))
        default = argument.default
        if argument.name == "bias":
            value = value is not None
        if argument.name == "stride" and default is None:
            default = _square(module.kernel_size)  # of pooling
        of = f" ({argument.name} of {type(module).__name__} {name!r})"
        if default is argument.empty:
            yield _literal(value, of)
        elif value != default:
            yield f"{argument.name}={_literal(value, of)}"


def _square(value: Any) -> Any:
    """One number where all of a tuple are the same."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _literal(value: Any, of: str = "") -> str:
    """A value as Python source that gives it back. Everything of a network that goes into the page
    goes through here.
    """
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, str):
        return repr(str(value))
    if isinstance(value, Integral):
        return repr(int(value))
    if isinstance(value, Real) and math.isfinite(value):
        return repr(float(value))
    if isinstance(value, (tuple, list)):
        inner = ", ".join(_literal(part, of) for part in value)
        return (
            f"[{inner}]"
            if isinstance(value, list)
            else f"({inner},)"
            if len(value) == 1
            else f"({inner})"
        )
    raise Unsupported(f"source: {value!r}{of} cannot be written as Python")


def _text(text: str) -> str:
    """Any text as what stands between three double quotes and reads as that text, whatever is in
    it.

    Line by line what `repr` makes of it, so that it stays legible.
    """
    return "\n".join(repr(line)[1:-1].replace('"', r"\"") for line in text.split("\n"))


def _split_imports(text: str) -> tuple[str, list[str], str]:
    """(future import, other import lines, the rest) of a piece of source, its module docstring left
    out.
    """
    if not text:
        return "", [], ""
    lines = text.splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    body = "\n".join(line for line in lines if line not in imports)
    if body.lstrip().startswith('"""'):
        body = body.lstrip()[3:].split('"""', 1)[1]
    future = [line for line in imports if line.startswith("from __future__")]
    return "".join(f"{line}\n\n" for line in future), [i for i in imports if i not in future], body


def _import_order(line: str) -> tuple[bool, str]:
    return line.startswith("from "), line
