"""A network from an ONNX file as a torch module: `read_onnx(path) -> OnnxNet`.

What is understood stands in `onnx_operators`; anything else is refused by name. What was read is
compared with what onnxruntime makes of the file before anything is said about it
(`onnx_agreement`).
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.defs
import onnx.numpy_helper
import torch
from torch import Tensor, nn

from morphogen.deadline import NEVER, Deadline
from morphogen.errors import DataError, MorphogenError, Unsupported
from morphogen.formats.onnx_agreement import agree
from morphogen.formats.onnx_build import INPUT, Builder, Call, Value
from morphogen.formats.onnx_file import first_line, load, runner
from morphogen.formats.onnx_operators import OPERATORS, Operator, numbers


class OnnxNet(nn.Module):
    """(batch, *shape) -> (batch, ...): the file's operations in order, in its own precision, its
    constants as buffers.

    given, result: the shapes of the input and the output in the file, for one example: a first size
    of 1 where the batch is. shape: of one example, `given` without that. batch: how many the file
    takes at once, 0 for any number.
    """

    def __init__(
        self,
        calls: tuple[Call, ...],
        given: Value,
        made: Value,
        result: tuple[int, ...],
        batch: int,
    ) -> None:
        super().__init__()
        self.given = given.shape
        self.shape = given.inner
        self.dtype = given.dtype
        self.batch = batch
        self.calls = calls
        self.made = made.name
        self.result = result
        # by identity, since one constant may be read in several places
        self.held: dict[int, str] = {}
        for call in calls:
            for read in call.reads:
                if isinstance(read, Tensor) and id(read) not in self.held:
                    self.held[id(read)] = f"tensor{len(self.held)}"
                    self.register_buffer(self.held[id(read)], read)
        self.reads = [
            [read if isinstance(read, str) else self.held[id(read)] for read in call.reads]
            for call in calls
        ]

    def forward(self, x: Tensor) -> Tensor:
        values = {**dict(self.named_buffers()), INPUT: x.reshape(len(x), *self.shape)}
        for call, reads in zip(self.calls, self.reads, strict=True):
            values[call.makes] = call.run(*(values[name] for name in reads))
        return values[self.made]


def read_onnx(path: str | Path, until: Deadline = NEVER, whole: bool = False) -> OnnxNet:
    """The network in a file, perhaps compressed (.gz), of one input and one output.

    until: asked between operations, of ours and of onnxruntime's runs; `OutOfTime` is raised once
    it has passed.

    The first size is the batch where there are several and it is 1, free, or the file does the same
    to each of its examples; otherwise, and where `whole`, the input is one example with all of its
    sizes but a 1. Raises `DataError` for a file that is none, and `Unsupported` naming the
    operator, attribute or value that has no row in `OPERATORS`, and where onnxruntime makes
    something else of the file.
    """
    path = Path(path)
    model = load(path)
    until.check()
    refused: MorphogenError | None = None
    for as_one in (True,) if whole else (False, True):
        try:
            net = _read(model, as_one, until)
            agree(net, runner(model), until)
            return net
        except MorphogenError as error:
            refused = refused or type(error)(f"{path}: {error}")
            if not _several(model):
                break
    assert refused is not None
    raise refused


def _several(model: "onnx.ModelProto") -> bool:
    """Whether the input's first size is a number that may or may not be a batch."""
    sizes = [
        given.type.tensor_type.shape.dim
        for given in model.graph.input
        if given.type.HasField("tensor_type")
    ]
    return any(len(dims) > 1 and dims[0].dim_value > 1 for dims in sizes)


def _read(model: "onnx.ModelProto", whole: bool, until: Deadline) -> OnnxNet:
    """whole: whether the input is one example, whatever its first size."""
    graph = model.graph
    opset = _opset(model)
    if graph.sparse_initializer:
        raise Unsupported("it holds sparse tensors; write them in full")
    stored = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [given for given in graph.input if given.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise Unsupported(
            f"{len(inputs)} inputs and {len(graph.output)} outputs; a network of one each can be "
            "read"
        )
    output = graph.output[0].name
    builder = Builder()
    given, batch = _input(inputs[0], builder, whole)
    values: dict[str, Value] = {inputs[0].name: given}
    nodes = _needed(graph, output)
    uses = Counter(name for node in nodes.values() for name in node.input) + Counter([output])
    for place, node in nodes.items():
        until.check()
        builder.kind = node.op_type
        called = f"{node.op_type} ('{node.name or place}')"
        operator = _operator(node, opset, called)
        try:
            made = _made(
                builder,
                operator,
                _attributes(node, operator, called),
                _inputs(node, values, stored),
            )
        except MorphogenError as error:
            raise type(error)(f"{called}: {error}") from error
        # sizes that do not go together
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise DataError(f"{called}: {first_line(error)}") from error
        name = node.output[0]
        if name in values or name in stored:
            raise DataError(f"{called} makes '{name}', which is there already")
        values[name] = made
        builder.uses[made.name] += uses[name]
    last = values.get(output)
    if last is None or last.constant is not None:
        raise Unsupported(f"its output '{output}' does not depend on its input")
    if not last.dtype.is_floating_point:
        raise Unsupported(
            f"its output '{output}' is of type {last.dtype}; give one of floating numbers"
        )
    one = builder.reshape(last, last.shape or (1,))  # one number is a vector of one
    return OnnxNet(tuple(builder.calls), given, one, last.shape, batch)


def _opset(model: "onnx.ModelProto") -> int:
    """The version of the standard operators."""
    versions = {entry.version for entry in model.opset_import if entry.domain in _STANDARD}
    if len(versions) != 1:
        raise DataError(
            f"it names {len(versions)} versions of the standard operators; it must name one"
        )
    (version,) = versions
    if version > onnx.defs.onnx_opset_version():
        raise Unsupported(
            f"opset {version}; the newest that is known is {onnx.defs.onnx_opset_version()}"
        )
    return int(version)


_STANDARD = ("", "ai.onnx")
_FLOATING: Mapping[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
}


def _input(given: "onnx.ValueInfoProto", builder: Builder, whole: bool) -> tuple[Value, int]:
    """(the input, how many examples the file takes at once, 0 for any number)."""
    kind = given.type.tensor_type
    if kind.elem_type not in _FLOATING or not kind.HasField("shape"):
        raise Unsupported(
            f"its input '{given.name}' is no tensor of floating numbers with a shape; give such a "
            "network"
        )
    sizes = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in kind.shape.dim]
    if not sizes or min(sizes) < 0 or 0 in (sizes[1:] or sizes):
        raise Unsupported(
            f"the shape {sizes} of its input is not fixed beyond its first dimension (0: any); "
            "export it with sizes"
        )
    if len(sizes) == 1 or (whole and sizes[0] > 1):
        return builder.input(tuple(sizes), _FLOATING[kind.elem_type]), 1
    return builder.input((1, *sizes[1:]), _FLOATING[kind.elem_type]), sizes[0]


def _needed(graph: "onnx.GraphProto", output: str) -> dict[int, "onnx.NodeProto"]:
    """By place, the nodes that the output is computed from."""
    wanted = {output}
    producers = {}
    for place, node in reversed(list(enumerate(graph.node))):
        if wanted.intersection(node.output):
            wanted.update(name for name in node.input if name)  # "" stands for what is left out
            producers[place] = node
    return dict(reversed(producers.items()))


def _operator(node: "onnx.NodeProto", opset: int, called: str) -> Operator:
    """The row of a node's operator. Raises `Unsupported` where there is none for its domain and
    version.
    """
    if node.domain not in _STANDARD:
        raise Unsupported(
            f"operator {called} is of '{node.domain}', not a standard one; only those can be read"
        )
    if node.op_type not in OPERATORS:
        raise Unsupported(f"operator {called} is unknown; known are {', '.join(OPERATORS)}")
    operator = OPERATORS[node.op_type]
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        raise DataError(f"operator {called} does not exist in opset {opset}") from None
    first, last = operator.versions
    if not first <= schema.since_version <= last:
        raise Unsupported(
            f"operator {called} of version {schema.since_version} (opset {opset}); versions "
            f"{first} to {last} can be read"
        )
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise DataError(f"operator {called} has {len(node.input)} inputs")
    missing = [place for place in range(schema.min_input) if not node.input[place]]
    lacks = [
        name
        for name, a in schema.attributes.items()
        if a.required and name not in {b.name for b in node.attribute}
    ]
    if missing or lacks:
        raise DataError(
            f"operator {called} lacks {', '.join([f'input {place}' for place in missing] + lacks)}"
        )
    return operator


def _attributes(node: "onnx.NodeProto", operator: Operator, called: str) -> dict[str, Any]:
    """What the node says beside its inputs, all of it understood."""
    attributes = {attribute.name: _plain(attribute) for attribute in node.attribute}
    for name, value in attributes.items():
        if name not in operator.attributes or not operator.attributes[name](value):
            raise Unsupported(f"{name}={value!r} cannot be read")
    return attributes


def _inputs(
    node: "onnx.NodeProto", values: dict[str, Value], stored: Mapping[str, "onnx.TensorProto"]
) -> list[Value | None]:
    """The values that a node reads, None where it leaves one out. Stored tensors are read when they
    are needed.
    """
    for name in node.input:
        if name and name not in values:
            if name not in stored:
                raise DataError(
                    f"reads '{name}', which nothing before it makes; nodes must stand in order, "
                    "without a cycle"
                )
            values[name] = numbers(_array(stored[name]), f"'{name}'")
    return [values[name] if name else None for name in node.input]


def _array(tensor: "onnx.TensorProto") -> Any:
    try:
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # data that is absent, or not as much as its sizes say
        raise DataError(
            f"the tensor '{tensor.name}' cannot be read ({first_line(error)})"
        ) from error


def _made(
    builder: Builder, operator: Operator, attributes: dict[str, Any], inputs: list[Value | None]
) -> Value:
    """A node's first result; a constant where it reads constants alone."""
    given = [value for value in inputs if value is not None]
    if not given or any(value.constant is None for value in given):
        return operator.read(builder, attributes, *inputs)
    alone = Builder()
    first = alone.input(given[0].shape, given[0].dtype)
    held = given[0].constant
    assert held is not None
    value = operator.read(alone, attributes, first, *inputs[1:])
    return Value(
        "",
        value.shape,
        value.dtype,
        alone.evaluate(value, {first.name: held.reshape(1, *first.inner)}),
    )


def _plain(attribute: "onnx.AttributeProto") -> Any:
    if attribute.ref_attr_name:
        raise Unsupported(f"{attribute.name} is an argument of a function")
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _array(value)
    return (
        value.decode("utf-8", "replace")
        if isinstance(value, bytes)
        else tuple(value)
        if isinstance(value, list)
        else value
    )
