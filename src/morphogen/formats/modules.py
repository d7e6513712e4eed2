"""A network from anywhere as ordinary modules: `modules(program) -> nn.Module`.

What a file says in operations and numbers becomes `nn.Linear`, convolutions, norms and activations,
which can be resized and rewritten; a chain becomes a `nn.Sequential`, anything else a module of
`torch.fx` around the same layers.
"""

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.fx import Node as FxNode

from morphogen.activations import ACTIVATIONS, Kind
from morphogen.random_state import undrawn
from morphogen.tracing.program import RESHAPES, Program, Step
from morphogen.tracing.trace import Ref, refs


@torch.no_grad()
def modules(net: Program) -> nn.Module:
    """The program's function as modules in its precision, with a free batch size."""
    graph = Graph()
    layers = dict[str, nn.Module | Tensor]()
    names = Counter[str]()
    values: dict[str, FxNode] = {net.input: graph.placeholder("x")}
    shapes = {net.input: net.shapes[net.input]}
    chain = [net.input]
    for step in net.steps:
        shapes[step.name] = step.shape
        made = _module(step, shapes)
        if made is None and _nothing(step, shapes):
            values[step.name] = values[step.reads[0]]
            chain = [step.name if name == step.reads[0] else name for name in chain]
            continue
        if made is None:
            arguments = _arguments(step.args, values, layers, graph)
            values[step.name] = graph.call_function(step.op, arguments, step.kwargs)
            chain = []
            continue
        kind = type(made).__name__.lower()
        names[kind] += 1
        layers[f"{kind}{names[kind]}"] = made
        values[step.name] = graph.call_module(f"{kind}{names[kind]}", (values[step.reads[0]],))
        chain = [*chain, step.name] if chain and step.reads == (chain[-1],) else []
    graph.output(values[net.output])
    held = [layer for layer in layers.values() if isinstance(layer, nn.Module)]
    if chain and len(held) == len(layers):
        return nn.Sequential(*held).eval()
    return GraphModule(layers, graph).eval()


def _module(step: Step, shapes: dict[str, tuple[int, ...]]) -> nn.Module | None:
    """The layer that a step is, if it is one."""
    make = _MAKERS.get(step.kind)
    if (
        len(step.reads) == 1
        and step.kind in RESHAPES
        and len(step.shape) == 1
        and len(shapes[step.reads[0]]) > 1
    ):
        return nn.Flatten()
    if (
        make is None
        or len(step.reads) != 1
        or not isinstance(step.args[0], Ref)
        or any(refs(step.args[1:]))
    ):
        return None
    if step.kind in ("linear", "matmul", "mm") and step.args[1].dim() != 2:
        return None
    return (
        make(*step.args[1:], **step.kwargs)
        if step.kind not in _SIZED
        else make(step.shape, *step.args[1:])
    )


def _nothing(step: Step, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a step leaves every value where and as it is."""
    if len(step.reads) != 1:
        return False
    same = step.shape == shapes[step.reads[0]]
    if step.kind in RESHAPES | {"dropout"}:
        return same
    kept = {"add": 0, "sub": 0, "mul": 1, "div": 1}.get(step.kind)
    if (
        kept is None
        or not same
        or step.kwargs
        or not isinstance(step.args[0], Ref)
        or any(refs(step.args[1:]))
    ):
        return False
    return bool((torch.as_tensor(step.args[1]) == kept).all())


def _arguments(
    arg: Any, values: dict[str, FxNode], layers: dict[str, nn.Module | Tensor], graph: Graph
) -> Any:
    """A step's arguments as nodes; constant tensors become buffers."""
    if isinstance(arg, Ref):
        return values[arg.name]
    if isinstance(arg, Tensor):
        name = f"constant{sum(key.startswith('constant') for key in layers) + 1}"
        layers[name] = arg.clone()
        return graph.get_attr(name)
    return (
        type(arg)(_arguments(part, values, layers, graph) for part in arg)
        if isinstance(arg, (list, tuple))
        else arg
    )


@torch.no_grad()
def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A layer of these, in their precision."""
    layer = undrawn(
        nn.Linear, weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype
    )
    _filled(layer, weight, bias)
    return layer


def _conv(kind: type[Any]) -> Callable[..., nn.Module]:
    def make(
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> nn.Module:
        planes, inputs = weight.shape[:2]
        sizes = [
            tuple(part) if isinstance(part, (list, tuple)) else part
            for part in (stride, padding, dilation)
        ]
        given = (inputs * groups, planes, tuple(weight.shape[2:]), *sizes, groups, bias is not None)
        layer = undrawn(kind, *given, dtype=weight.dtype)
        return _filled(layer, weight, bias)

    return make


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer  # type: ignore[no-any-return]


def _norm(
    shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> nn.Module:
    kind: type[Any] = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[
        len(shape) - 1
    ]
    layer = kind(shape[0], eps, affine=weight is not None, dtype=mean.dtype)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
    return layer if weight is None else _filled(layer, weight, bias)


def _tuple(option: Any) -> Any:
    return tuple(option) if isinstance(option, list) else option


def _pool(kind: type[Any]) -> Callable[..., nn.Module]:
    def make(size: Any, stride: Any = None, padding: Any = 0, *options: Any) -> nn.Module:
        # max: dilation, then ceil_mode; avg: ceil_mode, count_include_pad, divisor
        names = (
            ("dilation", "ceil_mode")
            if kind.__name__.startswith("Max")
            else ("ceil_mode", "count_include_pad", "divisor_override")
        )
        more = dict(zip(names, map(_tuple, options), strict=False))
        return kind(_tuple(size), _tuple(stride) or None, _tuple(padding), **more)  # type: ignore[no-any-return]

    return make


def _activation(kind: Kind) -> Callable[..., nn.Module | None]:
    """The module with a step's options; None where it has one that the module cannot have."""

    def make(*given: Any, **named: Any) -> nn.Module | None:
        options = dict(zip(kind.options, given, strict=False)) | named
        if "weight" in options:  # a slope for each channel
            return _prelu(options["weight"])
        module: Any = kind.module
        of_module = inspect.signature(module).parameters
        if any(
            value != kind.options[key] for key, value in options.items() if key not in of_module
        ):
            return None
        made: nn.Module = module(**{k: v for k, v in options.items() if k in of_module})
        return made

    return make


def _prelu(slopes: Tensor) -> nn.Module:
    layer = nn.PReLU(slopes.numel(), dtype=slopes.dtype)
    with torch.no_grad():
        layer.weight.copy_(slopes.flatten())
    return layer


_MAKERS: dict[str, Callable[..., nn.Module | None]] = {
    "linear": linear,
    "matmul": lambda weight: linear(weight.T),
    "mm": lambda weight: linear(weight.T),
    "conv1d": _conv(nn.Conv1d),
    "conv2d": _conv(nn.Conv2d),
    "conv3d": _conv(nn.Conv3d),
    **{name: _activation(kind) for name, kind in ACTIVATIONS.items() if kind.module},
    "batch_norm": _norm,
    **{
        f"{kind.lower()}_pool{d}d": _pool(getattr(nn, f"{kind}Pool{d}d"))
        for kind in ("Max", "Avg")
        for d in (1, 2, 3)
    },
}
_SIZED = {"batch_norm"}
