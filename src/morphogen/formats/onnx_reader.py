"""A network from an ONNX file as a torch module: `read_onnx(path) -> OnnxNet`.

The operations are those of verification benchmarks; a table from ONNX operator to function, and an unknown one is named.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.errors import DataError, Unsupported
from morphogen.formats.compressed import read_bytes


@dataclass(frozen=True)
class Node:
    """One operation: names of what it reads and makes, attributes as plain values."""

    kind: str
    name: str
    reads: tuple[str, ...]
    makes: str
    attributes: dict[str, Any]


class OnnxNet(nn.Module):
    """(batch, *shape) -> (batch, ...): the graph's operations in order, its initializers as buffers.

    shape: of one example: the file's input without its leading dimension, or all of it where it has one dimension alone.
    """

    def __init__(
        self, nodes: tuple[Node, ...], constants: Mapping[str, np.ndarray], read: str, made: str, shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.nodes, self.read, self.made, self.shape = nodes, read, made, shape
        # whole numbers are sizes and places, which a tracer must see as such
        self.sizes = {name: tuple(value.ravel().tolist()) for name, value in constants.items() if value.dtype == np.int64}
        self.names = {name: f"tensor{number}" for number, name in enumerate(constants) if name not in self.sizes}
        for name, held in self.names.items():
            self.register_buffer(held, torch.from_numpy(constants[name].copy()))

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Any] = {"": None, self.read: x.reshape(len(x), *self.shape)}
        values |= {name: self.get_buffer(held) for name, held in self.names.items()} | self.sizes
        for node in self.nodes:
            values[node.makes] = OPERATIONS[node.kind](node.attributes, *(values[name] for name in node.reads))
        out: Tensor = values[self.made]
        return out


def read_onnx(path: str | Path) -> OnnxNet:
    """The network in a file, perhaps compressed (.gz), of one input and one output.

    Raises `DataError` for a file that is none, and `Unsupported` naming the operator that has no line in `OPERATIONS`.
    """
    path = Path(path)
    try:
        graph = onnx.load_from_string(read_bytes(path)).graph
    except Exception as error:  # protobuf raises kinds of its own
        raise DataError(f"{path}: cannot be read as ONNX ({str(error).splitlines()[0]})") from error
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inputs = [given for given in graph.input if given.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise Unsupported(f"{path}: {len(inputs)} inputs and {len(graph.output)} outputs; a network of one each can be read")
    nodes: list[Node] = []
    for number, node in enumerate(graph.node):
        attributes = {attribute.name: _plain(attribute) for attribute in node.attribute}
        if node.op_type == "Constant":
            constants[node.output[0]] = np.asarray(attributes["value"])
            continue
        if node.op_type not in OPERATIONS:
            raise Unsupported(
                f"{path}: operator {node.op_type} ('{node.name or number}') is unknown; known are {', '.join(OPERATIONS)}"
            )
        found = Node(node.op_type, node.name or str(number), tuple(node.input), node.output[0], attributes)
        found = _layer(found, constants)
        if found.kind == "Add" and nodes and (biased := _with_bias(nodes[-1], found, constants)):
            nodes[-1] = biased
        else:
            nodes.append(found)
    sizes = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    shape = tuple(sizes) if len(sizes) == 1 else tuple(sizes[1:])
    if not shape or any(size < 1 for size in shape):
        raise Unsupported(f"{path}: the input's shape {sizes} is not fixed beyond its first dimension")
    constants = {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in constants.items()}
    return OnnxNet(tuple(nodes), constants, inputs[0].name, graph.output[0].name, shape)


def _layer(node: Node, constants: Mapping[str, np.ndarray]) -> Node:
    """A product with a constant matrix as a layer. On its left the matrix acts on a vector, which has a batch before it."""
    if node.kind == "MatMul":
        for place, transposed in ((1, 0), (0, 1)):
            if node.reads[place] in constants and constants[node.reads[place]].ndim == 2:
                return replace(
                    node, kind="Gemm", reads=(node.reads[1 - place], node.reads[place]), attributes={"transB": transposed}
                )
    return node


def _with_bias(layer: Node, add: Node, constants: Mapping[str, np.ndarray]) -> Node | None:
    """A product and the constant added to it right after as one layer; None where they are something else."""
    bias = [name for name in add.reads if name in constants]
    if layer.kind != "Gemm" or len(layer.reads) != 2 or layer.makes not in add.reads or len(bias) != 1:
        return None
    return replace(layer, reads=(*layer.reads, bias[0]), makes=add.makes) if constants[bias[0]].ndim == 1 else None


def _plain(attribute: "onnx.AttributeProto") -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else tuple(value) if isinstance(value, list) else value


Attributes = dict[str, Any]


def _gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if a.get("transA"):
        raise Unsupported("Gemm with transA mixes examples")
    weight = a.get("alpha", 1.0) * (weight if a.get("transB") else weight.T)
    return F.linear(x, weight, None if bias is None else a.get("beta", 1.0) * bias)


def _pads(a: Attributes, spatial: int) -> tuple[int, ...]:
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unsupported(f"auto_pad={a['auto_pad']}; give pads")
    pads = a.get("pads", (0,) * (2 * spatial))
    if pads[:spatial] != pads[spatial:]:
        raise Unsupported(f"pads={pads}: more on one side than on the other")
    return tuple(pads[:spatial])


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    spatial = weight.dim() - 2
    run: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    strides, dilations = a.get("strides", (1,) * spatial), a.get("dilations", (1,) * spatial)
    return run(x, weight, bias, strides, _pads(a, spatial), dilations, a.get("group", 1))


def _pool(kind: str) -> Callable[..., Tensor]:
    def run(a: Attributes, x: Tensor) -> Tensor:
        spatial = x.dim() - 2
        pool: Any = getattr(F, f"{kind}_pool{spatial}d")
        options = {"ceil_mode": bool(a.get("ceil_mode", 0))}
        if kind == "avg":
            options["count_include_pad"] = bool(a.get("count_include_pad", 0))
        return pool(x, a["kernel_shape"], a.get("strides", (1,) * spatial), _pads(a, spatial), **options)  # type: ignore[no-any-return]

    return run


def _norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, a.get("epsilon", 1e-5))


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    if a.get("axis", 1) != 1:
        raise Unsupported(f"Flatten with axis={a['axis']} mixes examples")
    return x.flatten(1)


def _mean(a: Attributes, x: Tensor, axes: tuple[int, ...] = ()) -> Tensor:
    axes = tuple(a.get("axes", axes))
    if not axes or any(axis % x.dim() == 0 for axis in axes):
        raise Unsupported(f"ReduceMean with axes={axes} mixes examples")
    return x.mean(axes, keepdim=bool(a.get("keepdims", 1)))


def _reshape(a: Attributes, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    sizes = [x.shape[d] if size == 0 else size for d, size in enumerate(shape)]
    return x.reshape(len(x), *sizes[1:]) if len(sizes) > 1 else x.reshape(len(x), -1)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "Gemm": _gemm,
    "MatMul": lambda a, x, y: x @ y,
    "Conv": _conv,
    "BatchNormalization": _norm,
    "MaxPool": _pool("max"),
    "AveragePool": _pool("avg"),
    "GlobalAveragePool": lambda a, x: x.mean(tuple(range(2, x.dim())), keepdim=True),
    "ReduceMean": _mean,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "Neg": lambda a, x: -x,
    "Identity": lambda a, x: x,
    "Dropout": lambda a, x, *_: x,
    "Relu": lambda a, x: F.relu(x),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Sigmoid": lambda a, x: torch.sigmoid(x),
    "Tanh": lambda a, x: torch.tanh(x),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Softplus": lambda a, x: F.softplus(x),
}
