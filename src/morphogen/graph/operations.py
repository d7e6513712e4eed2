"""What each ATen operation says about widths: a table from operation to rule.

A rule reads the layouts of its arguments, ties the sizes that must agree (`ties.tie`), names what a dimension of a weight
is for (`ties.role`), and returns the layout of its result. A *layout* has one entry a dimension: a tuple of spans, or None
for a dimension that is no width (batch, height, width, time). An operation without a rule is refused by name.
"""

from collections.abc import Callable
from math import prod
from typing import Any, Protocol

from morphogen.errors import Unsupported
from morphogen.graph.trace import Node, Ref

Spans = tuple[tuple[int, int], ...]  # (variable, repeat): each of the variable's entries fills a block of `repeat`
Layout = tuple[Spans | None, ...]


class Ties(Protocol):
    """What a rule may do; implemented by the solver in `widths.py`."""

    def tie(self, a: Spans | None, b: Spans | None, why: str) -> None: ...
    def role(self, ref: Any, dim: int, role: str) -> None: ...
    def pin(self, spans: Spans | None, why: str) -> None: ...
    def layout(self, ref: Any) -> Layout: ...
    def shape(self, ref: Any) -> tuple[int, ...]: ...


Rule = Callable[[Node, Ties], Layout]


def _linear(node: Node, ties: Ties) -> Layout:
    x, weight = ties.layout(node.args[0]), ties.layout(node.args[1])
    ties.tie(x[-1], weight[1], node.name)
    ties.role(node.args[1], 1, "in")
    ties.role(node.args[1], 0, "out")
    _bias(node, 2, weight[0], ties)
    return (*x[:-1], weight[0])


def _conv(node: Node, ties: Ties) -> Layout:
    x, weight = ties.layout(node.args[0]), ties.layout(node.args[1])
    groups = node.args[6] if len(node.args) > 6 else 1
    if len(x) != len(weight):
        raise Unsupported(f"'{node.op}' at node '{node.name}': input without a batch dimension; add one")
    if groups == 1:
        ties.tie(x[1], weight[1], node.name)
        ties.role(node.args[1], 1, "in")
    else:
        for spans in (x[1], weight[0], weight[1]):
            ties.pin(spans, f"grouped convolution at '{node.name}'")
    ties.role(node.args[1], 0, "out")
    _bias(node, 2, weight[0], ties)
    return (x[0], weight[0], *(None for _ in x[2:]))


def _bias(node: Node, position: int, spans: Spans | None, ties: Ties) -> None:
    bias = node.args[position] if len(node.args) > position else None
    if isinstance(bias, Ref):
        ties.tie(ties.layout(bias)[0], spans, node.name)
        ties.role(bias, 0, "bias")


def _batch_norm(node: Node, ties: Ties) -> Layout:
    x = ties.layout(node.args[0])
    for argument, role in zip(node.args[1:5], ("scale", "bias", "mean", "variance"), strict=True):
        if isinstance(argument, Ref):
            ties.tie(ties.layout(argument)[0], x[1], node.name)
            ties.role(argument, 0, role)
    return x


def _layer_norm(node: Node, ties: Ties) -> Layout:
    x = ties.layout(node.args[0])
    if len(node.args[1]) != 1:
        for spans in x[-len(node.args[1]) :]:
            ties.pin(spans, f"normalised over several dimensions at '{node.name}'")
        return x
    for argument, role in zip(node.args[2:4], ("scale", "bias"), strict=False):
        if isinstance(argument, Ref):
            ties.tie(ties.layout(argument)[0], x[-1], node.name)
            ties.role(argument, 0, role)
    return x


def _prelu(node: Node, ties: Ties) -> Layout:
    x, (slope,) = ties.layout(node.args[0]), ties.layout(node.args[1])
    if ties.shape(node.args[1]) != (1,):
        ties.tie(slope, x[1] if len(x) > 1 else x[0], node.name)
        ties.role(node.args[1], 0, "slope")
    return x


def _same(node: Node, ties: Ties) -> Layout:
    return ties.layout(node.args[0])


def _broadcast(node: Node, ties: Ties) -> Layout:
    """Element-wise on two values: aligned from the right; a size of 1 stretches."""
    values = [(ties.shape(a), ties.layout(a)) for a in node.args[:2] if isinstance(a, Ref)]
    result: list[Spans | None] = []
    for back in range(len(node.shape), 0, -1):
        size = node.shape[-back]
        meeting = [layout[-back] for shape, layout in values if len(shape) >= back and shape[-back] == size]
        for other in meeting[1:]:
            if not (meeting[0] is None and other is None):
                ties.tie(meeting[0], other, node.name)
        result.append(None if None in meeting else meeting[0])
    return tuple(result)


def _pool(node: Node, ties: Ties) -> Layout:
    return tuple(s if i < 2 else None for i, s in enumerate(ties.layout(node.args[0])))


def _cat(node: Node, ties: Ties) -> Layout:
    layouts = [ties.layout(a) for a in node.args[0]]
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(node.shape)
    for other in layouts[1:]:
        for d, (a, b) in enumerate(zip(layouts[0], other, strict=True)):
            if d != dim and not (a is None and b is None):
                ties.tie(a, b, node.name)
    parts = [layout[dim] for layout in layouts]
    if any(p is None for p in parts):
        for p in parts:
            ties.pin(p, f"concatenated with a fixed size at '{node.name}'")
        joined = None
    else:
        joined = tuple(span for p in parts if p is not None for span in p)
    return tuple(joined if d == dim else s for d, s in enumerate(layouts[0]))


def _reshape(node: Node, ties: Ties) -> Layout:
    """Sizes are regrouped: a dimension that leads a merged group fills blocks of the size of what follows it."""
    before, layout, after = ties.shape(node.args[0]), ties.layout(node.args[0]), node.shape
    result: list[Spans | None] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        left, right = before[i : (i := i + 1)], after[j : (j := j + 1)]
        while prod(left) != prod(right):
            if prod(left) < prod(right):
                left += before[i : (i := i + 1)]
            else:
                right += after[j : (j := j + 1)]
        group = layout[i0:i]
        if len(left) == 1 and len(right) == 1:
            result.append(group[0])
        elif len(right) == 1 and group and all(s is None for s in group[1:]):
            block = prod(left[1:])
            result.append(None if group[0] is None else tuple((v, r * block) for v, r in group[0]))
        else:
            for spans in group:
                ties.pin(spans, f"split or interleaved by the reshape at '{node.name}'")
            result.extend([None] * (j - j0))
    return tuple(result)


def _permute(node: Node, ties: Ties) -> Layout:
    layout = ties.layout(node.args[0])
    return tuple(layout[d] for d in node.args[1])


def _transpose(node: Node, ties: Ties) -> Layout:
    layout = list(ties.layout(node.args[0]))
    a, b = node.args[1], node.args[2]
    layout[a], layout[b] = layout[b], layout[a]
    return tuple(layout)


def _reduce(node: Node, ties: Ties) -> Layout:
    layout = ties.layout(node.args[0])
    dims = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    gone = {d % len(layout) for d in dims}
    keep = bool(node.args[2]) if len(node.args) > 2 else False
    for d in gone:
        ties.pin(layout[d], f"reduced over at '{node.name}'")
    return tuple(None if d in gone else s for d, s in enumerate(layout) if keep or d not in gone)


def _softmax(node: Node, ties: Ties) -> Layout:
    layout = ties.layout(node.args[0])
    ties.pin(layout[node.args[1]], f"normalised over at '{node.name}'")
    return layout


def _embedding(node: Node, ties: Ties) -> Layout:
    rows, features = ties.layout(node.args[0])
    ties.pin(rows, f"looked up by index at '{node.name}'")
    ties.role(node.args[0], 1, "out")
    return (*ties.layout(node.args[1]), features)


def _unsqueeze(node: Node, ties: Ties) -> Layout:
    layout = list(ties.layout(node.args[0]))
    layout.insert(node.args[1] % (len(layout) + 1), None)
    return tuple(layout)


def _constant(node: Node, ties: Ties) -> Layout:
    """A value computed from fixed tensors (gates, tables): none of its dimensions is a width."""
    for argument in node.args:
        if isinstance(argument, Ref):
            for spans in ties.layout(argument):
                ties.pin(spans, f"used as a constant at '{node.name}'")
    return (None,) * len(node.shape)


_ELEMENTWISE = (
    "relu relu_ sigmoid tanh gelu silu silu_ elu selu leaky_relu leaky_relu_ softplus hardtanh hardswish "
    "hardsigmoid mish dropout dropout_ feature_dropout clone contiguous neg abs exp expm1 log sqrt square sin "
    "cos clamp clamp_min alias detach detach_ to _to_copy "
).split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _same),
    **dict.fromkeys("add add_ sub mul mul_ div maximum minimum rsub pow".split(), _broadcast),
    **dict.fromkeys("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d".split(), _pool),
    **dict.fromkeys("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d".split(), _pool),
    **dict.fromkeys("conv1d conv2d conv3d".split(), _conv),
    **dict.fromkeys("view reshape flatten _unsafe_view squeeze".split(), _reshape),
    **dict.fromkeys("mean sum amax".split(), _reduce),
    **dict.fromkeys("softmax log_softmax _softmax".split(), _softmax),
    **dict.fromkeys("arange select full _assert_tensor_metadata".split(), _constant),
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "prelu": _prelu,
    "cat": _cat,
    "permute": _permute,
    "transpose": _transpose,
    "embedding": _embedding,
    "unsqueeze": _unsqueeze,
}


def rule_of(node: Node) -> Rule:
    """The rule for a node's operation; overloads (`add.Tensor`, `add.Scalar`) share one."""
    rule = RULES.get(node.op.removeprefix("aten.").partition(".")[0])
    if rule is None:
        raise Unsupported(
            f"'{node.op}' at node '{node.name}': no rule says how it treats widths; "
            "add one to morphogen.graph.operations.RULES, or resize the part of the model that does without it"
        )
    return rule
