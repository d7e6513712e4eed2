"""A network as a page of PyTorch source that a person could have written."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from morphogen.errors import Unsupported


def source(model: nn.Module, *, title: str, note: str = "", prepare: str = "", input_hint: str = "") -> str:
    """Python source of a class `Net` equal to `model`, a flat `nn.Sequential` of plain modules as `freeze` returns it.

    The page reads `model.safetensors` beside it and imports torch and safetensors only. title, note: its docstring.
    prepare: source of a function `prepare(table)` to be put before the network. input_hint: what the network expects.
    Raises `Unsupported` for a module that has no line in the table below.
    """
    if type(model) is not nn.Sequential:
        raise Unsupported(f"source: {type(model).__name__} is not a flat nn.Sequential; pass the result of freeze(model, x)")
    layers = [f"            {name}={_line(name, module)}," for name, module in model.named_children()]
    future, imports, body = _split_imports(prepare)
    return _PAGE.format(
        title=title,
        note=f"\n\n{note.strip()}" if note else "",
        future=future,
        imports="\n".join(
            sorted({"from collections import OrderedDict", "from pathlib import Path", *imports}, key=_import_order)
        ),
        prepare=f"{body.strip()}\n\n\n" if body.strip() else "",
        classes=_LEVELS if any(_is_levels(module) for module in model) else "",
        layers="\n".join(layers),
        input_hint=f"\n    {input_hint}\n    " if input_hint else "",
    )


_PAGE = '''"""{title}{note}
"""

{future}{imports}

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


{prepare}{classes}class Net(nn.Module):
    """The network. Input and output have a leading batch dimension.{input_hint}"""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(OrderedDict(
{layers}
        ))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def load(path: str | Path = Path(__file__).with_name("model.safetensors")) -> Net:
    """The network with its trained weights, in evaluation mode."""
    net = Net()
    net.layers.load_state_dict(load_file(path))
    return net.eval()


if __name__ == "__main__":
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


def _is_levels(module: nn.Module) -> bool:
    """Whether it is what `layers.dag_levels.by_levels` makes of a DAG that has a readout; copies have another class name."""
    return isinstance(module, GraphModule) and hasattr(module, "level1") and not hasattr(module, "order")


def _levels(module: GraphModule) -> str:
    sizes = [(layer.in_features, layer.out_features) for layer in module.children() if isinstance(layer, nn.Linear)]
    linked = any(node.target is torch.neg for node in module.graph.nodes)
    activation: Any = module.activation
    return f"Levels({sizes}, {_line('activation', activation)}{', linked=True' if linked else ''})"


def _line(name: str, module: nn.Module) -> str:
    if isinstance(module, GraphModule) and _is_levels(module):
        return _levels(module)
    for kind, write in _LINES.items():
        if type(module) is kind:
            return f"nn.{kind.__name__}({write(module)})"
    raise Unsupported(f"source: no line for {type(module).__name__} '{name}'; add one to morphogen.formats.source._LINES")


def _conv(m: Any) -> str:
    parts = [str(m.in_channels), str(m.out_channels), str(_square(m.kernel_size))]
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    parts += [f"{k}={_square(getattr(m, k))!r}" for k, default in defaults.items() if _square(getattr(m, k)) != default]
    return ", ".join(parts + ([] if m.bias is not None else ["bias=False"]))


def _square(value: Any) -> Any:
    """One number where all of a tuple are the same."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _linear(m: nn.Linear) -> str:
    return f"{m.in_features}, {m.out_features}" + ("" if m.bias is not None else ", bias=False")


def _norm(m: Any) -> str:
    return f"{m.num_features}" + ("" if m.eps == 1e-5 else f", eps={m.eps!r}")


def _pool(m: Any) -> str:
    extra = "" if m.stride == m.kernel_size else f", stride={m.stride!r}"
    return f"{m.kernel_size!r}{extra}" + ("" if m.padding == 0 else f", padding={m.padding!r}")


def _nothing(m: nn.Module) -> str:
    return ""


_LINES: dict[type[nn.Module], Callable[[Any], str]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.MaxPool1d: _pool,
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool2d: lambda m: repr(m.output_size),
    nn.Flatten: lambda m: "" if (m.start_dim, m.end_dim) == (1, -1) else f"{m.start_dim}, {m.end_dim}",
    **dict.fromkeys((nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.SELU, nn.Identity), _nothing),
    nn.ELU: lambda m: "" if m.alpha == 1.0 else f"alpha={m.alpha!r}",
    nn.GELU: lambda m: "" if m.approximate == "none" else f"approximate={m.approximate!r}",
    nn.LeakyReLU: lambda m: "" if m.negative_slope == 0.01 else repr(m.negative_slope),
}


def _split_imports(text: str) -> tuple[str, list[str], str]:
    """(future import, other import lines, the rest) of a piece of source, its module docstring left out."""
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
