"""What each ATen operation says about widths: a table from operation to rule.

A rule reads the layouts of its arguments, ties the sizes that must agree (`ties.tie`), names what a
dimension of a weight is for (`ties.role`), and returns the layout of its result. A *layout* has one
entry a dimension: a tuple of spans, or None for a dimension that is no width (batch, height, width,
time). An operation without a rule is refused by name.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol

from morphogen.activations import ACTIVATIONS
from morphogen.errors import Unsupported
from morphogen.tracing.trace import Node, Ref
from morphogen.tracing.traits import traits_of

Spans = tuple[tuple[int, int], ...]
"""Consecutive (variable, repeat): each of the variable's entries fills a block of `repeat`. A
variable may come several times: eight heads of d channels are ((d, 1),) * 8.
"""
Layout = tuple[Spans | None, ...]
Result = Layout | list[Layout]
"""A list where the operation returns several values."""


class Ties(Protocol):
    """What a rule may do; implemented by the solver in `widths.py`."""

    def tie(self, a: Spans | None, b: Spans | None, why: str) -> None: ...
    def role(self, ref: Any, dim: int, role: str) -> None: ...
    def fix(self, spans: Spans | None, why: str) -> None: ...
    def not_preserved(self, spans: Spans | None, why: str) -> None: ...
    def entangled(self, ref: Any) -> None: ...
    def constant(self, size: int, why: str) -> Spans: ...
    def flat(self, ref: Any, spans: Spans | None, why: str) -> None: ...
    def weight(self, ref: Any) -> bool: ...
    def is_fixed(self, spans: Spans | None) -> bool: ...
    def layout(self, ref: Any) -> Layout: ...
    def outputs(self, ref: Any) -> list[Layout]: ...
    def shape(self, ref: Any) -> tuple[int, ...]: ...
    def divide(self, spans: Spans | None, sizes: Sequence[int], why: str) -> list[Spans | None]: ...
    def copies(self, spans: Spans | None, count: int, why: str) -> Spans | None: ...
    def blocks(self, spans: Spans | None, block: int, why: str) -> Spans | None: ...
    def repeats(self, spans: Spans) -> tuple[int, ...]: ...
    def divide_repeat(self, spans: Spans, by: int) -> Spans: ...


Rule = Callable[[Node, Ties], Result]


def _linear(node: Node, ties: Ties) -> Layout:
    x = ties.layout(node.args[0])
    weight = ties.layout(node.args[1])
    ties.tie(x[-1], weight[1], node.name)
    if not ties.weight(node.args[1]):
        ties.not_preserved(x[-1], f"read by a weight that is computed at '{node.name}'")
    ties.role(node.args[1], 1, "in")
    ties.role(node.args[1], 0, "out")
    _bias(node, 2, weight[0], ties)
    return (*x[:-1], weight[0])


def _conv(node: Node, ties: Ties) -> Layout:
    return _convolved(node, ties, inner=1, groups=node.args[6] if len(node.args) > 6 else 1)


def _conv_transpose(node: Node, ties: Ties) -> Layout:
    return _convolved(node, ties, inner=0, groups=node.args[6] if len(node.args) > 6 else 1)


def _convolved(node: Node, ties: Ties, inner: int, groups: int) -> Layout:
    """`inner`: the dimension of the weight that reads. With groups, one of the weight's two
    dimensions is one group's.
    """
    x = ties.layout(node.args[0])
    weight = ties.layout(node.args[1])
    ref = node.args[1]
    if len(x) != len(weight):
        raise Unsupported(
            f"'{node.op}' at node '{node.name}': input without a batch dimension; add one"
        )
    reads = weight[inner]
    makes = weight[1 - inner]
    if groups == 1:
        ties.tie(x[1], reads, node.name)
        ties.role(ref, inner, "in")
        ties.role(ref, 1 - inner, "out")
        result = makes
    elif inner == 1 and ties.shape(ref)[1] == 1:
        # depthwise: each channel makes its own `multiple`
        ties.fix(reads, f"one channel a group at '{node.name}'")
        multiple = ties.shape(ref)[0] // groups
        ties.tie(
            makes, None if x[1] is None else tuple((v, r * multiple) for v, r in x[1]), node.name
        )
        ties.role(ref, 0, "own")
        result = makes
    elif inner == 1:
        ties.tie(x[1], ties.copies(reads, groups, node.name), node.name)
        ties.copies(makes, -groups, node.name)
        ties.role(ref, 1, "in a group")
        ties.role(ref, 0, "out")
        result = makes
    else:
        for spans in (x[1], reads, makes):
            ties.fix(spans, f"transposed convolution in groups at '{node.name}'")
        result = None
    _bias(node, 2, result, ties)
    return (x[0], result, *(None for _ in x[2:]))


def _bias(node: Node, position: int, spans: Spans | None, ties: Ties) -> None:
    bias = node.args[position] if len(node.args) > position else None
    if isinstance(bias, Ref):
        ties.tie(ties.layout(bias)[0], spans, node.name)
        ties.role(bias, 0, "bias")


def _group_norm(node: Node, ties: Ties) -> Layout:
    x = ties.layout(node.args[0])
    groups = node.args[1]
    if groups > 1:
        ties.copies(x[1], -groups, node.name)
    ties.not_preserved(x[1], f"normalised over its groups at '{node.name}'")
    _affine(node, node.args[2:4], x[1], ties)
    return x


def _running_norm(node: Node, ties: Ties) -> Layout:
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
            ties.fix(spans, f"normalised over several dimensions at '{node.name}'")
        return x
    ties.not_preserved(x[-1], f"normalised over at '{node.name}'")
    _affine(node, node.args[2:4], x[-1], ties)
    return x


def _affine(node: Node, arguments: Sequence[Any], spans: Spans | None, ties: Ties) -> None:
    for argument, role in zip(arguments, ("scale", "bias"), strict=False):
        if isinstance(argument, Ref):
            ties.tie(ties.layout(argument)[0], spans, node.name)
            ties.role(argument, 0, role)


def _prelu(node: Node, ties: Ties) -> Layout:
    x, (slope,) = ties.layout(node.args[0]), ties.layout(node.args[1])
    if ties.shape(node.args[1]) != (1,):
        ties.tie(slope, x[1] if len(x) > 1 else x[0], node.name)
        ties.role(node.args[1], 0, "slope")
    return x


def _same(node: Node, ties: Ties) -> Layout:
    return ties.layout(node.args[0])


def _broadcast(node: Node, ties: Ties) -> Layout:
    """Element-wise on several values: aligned from the right; a size of 1 stretches."""
    values = [(ties.shape(a), ties.layout(a)) for a in node.args if isinstance(a, Ref)]
    result: list[Spans | None] = []
    for back in range(len(node.shape), 0, -1):
        size = node.shape[-back]
        meeting = [
            layout[-back] for shape, layout in values if len(shape) >= back and shape[-back] == size
        ]
        for other in meeting[1:]:
            if not (meeting[0] is None and other is None):
                ties.tie(meeting[0], other, node.name)
        result.append(None if None in meeting else meeting[0])
    role = "scale" if "mul" in node.op or "div" in node.op else "bias"
    for argument in node.args:
        if isinstance(argument, Ref):
            for d, size in enumerate(ties.shape(argument)):
                if size > 1:
                    ties.role(argument, d, role)
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
            ties.fix(p, f"concatenated with a fixed size at '{node.name}'")
        joined = None
    else:
        joined = tuple(span for p in parts if p is not None for span in p)
    return tuple(joined if d == dim else s for d, s in enumerate(layouts[0]))


def _reshape(node: Node, ties: Ties) -> Layout:
    """Sizes are regrouped; in each group of dimensions that merge or split, at most one is a
    width.
    """
    before = ties.shape(node.args[0])
    layout = ties.layout(node.args[0])
    after = node.shape
    result: list[Spans | None] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0 = i
        left = before[i : (i := i + 1)]
        right = after[j : (j := j + 1)]
        while prod(left) != prod(right):
            if prod(left) < prod(right):
                left += before[i : (i := i + 1)]
            else:
                right += after[j : (j := j + 1)]
        result += _regrouped(left, layout[i0:i], right, node.name, ties)
    return tuple(result)


def _regrouped(
    left: tuple[int, ...], group: Layout, right: tuple[int, ...], why: str, ties: Ties
) -> list[Spans | None]:
    fixed: list[Spans | None] = [None] * len(right)
    # a fixed size beside a free one is as good as a number
    sized = [d for d, spans in enumerate(group) if spans is not None and left[d] != 1]
    places = [d for d in sized if not ties.is_fixed(group[d])] or sized
    if not places:
        ones = [spans for spans in group if spans is not None]  # of one unit each
        return (
            [tuple((v, r * right[0]) for v, r in ones[0])]
            if len(ones) == len(right) == 1
            else fixed
        )
    if len(places) == 1:
        place = places[0]
        spans = group[place] or ()
        outer = prod(left[:place])
        inner = prod(left[place + 1 :])
        if len(right) == 1:
            return [tuple((v, r * inner) for v, r in spans) * outer]
        # the dimension of the result that starts and ends where this one does
        for d, size in enumerate(right):
            if size == left[place] and prod(right[:d]) == outer:
                return [*fixed[:d], spans, *fixed[d + 1 :]]
        # a flatten is taken back: whole blocks of `repeat` become the dimensions behind the width
        for d in range(len(right)):
            block = prod(right[d + 1 :])
            if (
                outer == prod(right[:d])
                and block > inner
                and all(r % (block // inner) == 0 for r in ties.repeats(spans))
            ):
                divided = ties.divide_repeat(spans, block // inner)
                return [*fixed[:d], divided, *fixed[d + 1 :]]
        # heads come together again
        if inner == 1 and right[-1] % left[place] == 0:
            return [*fixed[:-1], spans * (right[-1] // left[place])]
        # heads: the last dimension is a width, and comes as often as the leading ones say
        if inner == 1 and left[place] % right[-1] == 0:
            return [*fixed[:-1], ties.copies(spans, -(left[place] // right[-1]), why)]
    for one in group:
        ties.fix(one, f"split or interleaved by the reshape at '{why}'")
    return fixed


def _permute(node: Node, ties: Ties) -> Layout:
    layout = ties.layout(node.args[0])
    return tuple(layout[d] for d in node.args[1])


def _transpose(node: Node, ties: Ties) -> Layout:
    layout = list(ties.layout(node.args[0]))
    a = node.args[1]
    b = node.args[2]
    layout[a], layout[b] = layout[b], layout[a]
    return tuple(layout)


def _matrix_transpose(node: Node, ties: Ties) -> Layout:
    return ties.layout(node.args[0])[::-1]


def _reduce(node: Node, ties: Ties, first: int = 1) -> Layout:
    """mean(x, dims, keepdim) and its like. A norm written by hand reduces over features as
    nn.LayerNorm does.
    """
    layout = ties.layout(node.args[0])
    given = node.args[first] if len(node.args) > first else None
    dims = (
        tuple(range(len(layout)))
        if given is None
        else given
        if isinstance(given, tuple)
        else (given,)
    )
    gone = {d % len(layout) for d in dims or range(len(layout))}
    keep = len(node.shape) == len(layout)
    for d in gone:
        ties.not_preserved(layout[d], f"reduced over at '{node.name}'")
    return tuple(None if d in gone else s for d, s in enumerate(layout) if keep or d not in gone)


def _norm_of(node: Node, ties: Ties) -> Layout:
    """norm(x, order, dims, keepdim)."""
    return _reduce(node, ties, first=2)


def _softmax(node: Node, ties: Ties) -> Layout:
    layout = ties.layout(node.args[0])
    ties.not_preserved(layout[node.args[1]], f"normalised over at '{node.name}'")
    return layout


def _weight_norm(node: Node, ties: Ties) -> Layout:
    """g * v / |v|: the weight that is used has v's shape; roles found for it are v's."""
    layout = ties.layout(node.args[0])
    dim = node.args[2] if len(node.args) > 2 else 0
    size = ties.layout(node.args[1])
    ties.entangled(node.args[0])
    if size and ties.shape(node.args[1])[dim] > 1:
        ties.tie(size[dim], layout[dim], node.name)
        ties.role(node.args[1], dim, "scale")
    return layout


def _embedding(node: Node, ties: Ties) -> Layout:
    rows, features = ties.layout(node.args[0])
    ties.fix(rows, f"looked up by index at '{node.name}'")
    ties.role(node.args[0], 1, "out")
    return (*ties.layout(node.args[1]), features)


def _unsqueeze(node: Node, ties: Ties) -> Layout:
    layout = list(ties.layout(node.args[0]))
    layout.insert(node.args[1] % (len(layout) + 1), None)
    return tuple(layout)


def _stack(node: Node, ties: Ties) -> Layout:
    layouts = [ties.layout(a) for a in node.args[0]]
    for other in layouts[1:]:
        for a, b in zip(layouts[0], other, strict=True):
            if not (a is None and b is None):
                ties.tie(a, b, node.name)
    result = list(layouts[0])
    result.insert((node.args[1] if len(node.args) > 1 else 0) % len(node.shape), None)
    return tuple(result)


def _split(node: Node, ties: Ties) -> list[Layout]:
    """Pieces of `size`, or of the sizes that are given."""
    size = node.args[1]
    dim = node.args[2] if len(node.args) > 2 else 0
    whole = ties.shape(node.args[0])[dim]
    sizes = (
        size
        if isinstance(size, tuple)
        else [min(size, whole - start) for start in range(0, whole, size)]
    )
    return _pieces(node, sizes, dim, ties)


def _chunk(node: Node, ties: Ties) -> list[Layout]:
    dim = node.args[2] if len(node.args) > 2 else 0
    whole = ties.shape(node.args[0])[dim]
    size = -(-whole // node.args[1])
    return _pieces(node, [min(size, whole - start) for start in range(0, whole, size)], dim, ties)


def _pieces(node: Node, sizes: Sequence[int], dim: int, ties: Ties) -> list[Layout]:
    """Consecutive parts. Equal ones stay equal, since the operation is asked for a number of parts,
    or for their size.
    """
    layout = ties.layout(node.args[0])
    dim %= len(layout)
    parts = ties.divide(layout[dim], sizes, node.name)
    for part in parts[1:]:
        if len(set(sizes)) == 1 and part is not None:
            ties.tie(parts[0], part, node.name)
    return [(*layout[:dim], part, *layout[dim + 1 :]) for part in parts]


def _glu(node: Node, ties: Ties) -> Layout:
    dim = node.args[1] if len(node.args) > 1 else -1
    return _pieces(node, [node.shape[dim]] * 2, dim, ties)[0]


def _slice(node: Node, ties: Ties) -> Layout:
    layout = ties.layout(node.args[0])
    shape = ties.shape(node.args[0])
    given = dict(enumerate(node.args))
    dim = given.get(1, 0) % len(shape)
    step = given.get(4, 1)
    start = given.get(2) or 0
    size = node.shape[dim]
    if size == shape[dim]:
        return layout
    if step != 1:
        ties.fix(layout[dim], f"every {step}th entry is taken at '{node.name}'")
        return (*layout[:dim], None, *layout[dim + 1 :])
    start = max(0, start + (shape[dim] if start < 0 else 0))
    sizes = [start, size, shape[dim] - start - size]
    parts = ties.divide(layout[dim], [s for s in sizes if s], node.name)
    for fixed in parts[:-1]:
        ties.fix(fixed, f"cut at a fixed place at '{node.name}'")
    part = parts[1 if start else 0]
    return (*layout[:dim], part, *layout[dim + 1 :])


def _select(node: Node, ties: Ties) -> Layout:
    layout = ties.layout(node.args[0])
    dim = node.args[1] % len(ties.shape(node.args[0]))
    ties.fix(layout[dim], f"one entry is taken at '{node.name}'")
    return (*layout[:dim], *layout[dim + 1 :])


def _unbind(node: Node, ties: Ties) -> list[Layout]:
    layout = ties.layout(node.args[0])
    dim = node.args[1] if len(node.args) > 1 else 0
    dim %= len(layout)
    ties.fix(layout[dim], f"taken apart at '{node.name}'")
    return [(*layout[:dim], *layout[dim + 1 :])] * ties.shape(node.args[0])[dim]


def _item(node: Node, ties: Ties) -> Layout:
    position: int = node.args[1]
    outputs = ties.outputs(node.args[0])
    return (
        outputs[position]
        if position < len(outputs) and len(outputs[position]) == len(node.shape)
        else (None,) * len(node.shape)
    )


def _expand(node: Node, ties: Ties) -> Layout:
    layout = ties.layout(node.args[0])
    shape = ties.shape(node.args[0])
    new = len(node.shape) - len(shape)
    kept = [
        spans if size == after else None
        for spans, size, after in zip(layout, shape, node.shape[new:], strict=True)
    ]
    return (*[None] * new, *kept)


def _matmul(node: Node, ties: Ties) -> Layout:
    """(..., n, k) @ (..., k, m), or a vector on either side."""
    a, b = node.args[:2]
    left = ties.layout(a)
    right = ties.layout(b)
    inner = -2 if len(right) > 1 else -1
    if left[-1] is not None or right[inner] is not None:
        ties.tie(left[-1], right[inner], node.name)
    if not (ties.weight(a) or ties.weight(b)):
        ties.not_preserved(
            left[-1], f"two features are multiplied and summed over at '{node.name}'"
        )
    ties.role(a, len(left) - 1, "in")
    ties.role(b, len(right) + inner, "in")
    if len(left) > 1:
        ties.role(a, len(left) - 2, "out")
    if len(right) > 1:
        ties.role(b, len(right) - 1, "out")
    rows = (left[-2],) if len(left) > 1 else ()
    columns = (right[-1],) if len(right) > 1 else ()
    leading = max(left[:-2], right[:-2], key=len)
    return (*leading, *rows, *columns)


def _added_matmul(node: Node, ties: Ties) -> Layout:
    bias, *factors = node.args[:3]
    product = _matmul(Node(node.name, node.op, tuple(factors), {}, node.shape), ties)
    for back in range(1, len(ties.shape(bias)) + 1):
        spans = ties.layout(bias)[-back]
        size = ties.shape(bias)[-back]
        if size == node.shape[-back] and not (spans is None and product[-back] is None):
            ties.tie(spans, product[-back], node.name)
            if back == 1:
                ties.role(bias, len(ties.shape(bias)) - 1, "bias")
    return product


def _einsum(node: Node, ties: Ties) -> Layout:
    equation = node.args[0].replace(" ", "")
    inputs, _, output = equation.partition("->")
    if "." in equation or "->" not in equation:
        raise Unsupported(
            f"einsum '{node.args[0]}' at node '{node.name}': write it out, with '->' and without "
            "'...'"
        )
    seen: dict[str, Spans | None] = {}
    for letters, ref in zip(inputs.split(","), node.args[1], strict=True):
        for d, (letter, spans) in enumerate(zip(letters, ties.layout(ref), strict=True)):
            if letter in seen and not (seen[letter] is None and spans is None):
                ties.tie(seen[letter], spans, node.name)
            seen[letter] = seen.get(letter) or spans
            ties.role(ref, d, "out" if letter in output else "in")
    if not any(ties.weight(ref) for ref in node.args[1]):
        for letter, spans in seen.items():
            if letter not in output:
                ties.not_preserved(
                    spans, f"two features are multiplied and summed over at '{node.name}'"
                )
    return tuple(seen[letter] for letter in output)


def _attention(node: Node, ties: Ties) -> Layout:
    query, key, value = (ties.layout(a) for a in node.args[:3])
    ties.tie(query[-1], key[-1], node.name)
    ties.not_preserved(
        query[-1], f"queries meet keys, divided by the root of their width, at '{node.name}'"
    )
    return (*query[:-1], value[-1])


def _rms_norm(node: Node, ties: Ties) -> Layout:
    x = ties.layout(node.args[0])
    for spans in x[-len(node.args[1]) : -1]:
        ties.fix(spans, f"normalised over several dimensions at '{node.name}'")
    ties.not_preserved(x[-1], f"normalised over at '{node.name}'")
    _affine(node, node.args[2:3], x[-1], ties)
    return x


def _lstm(node: Node, ties: Ties) -> list[Layout]:
    return _recurrent(node, ties, gates=4, states=2)


def _gru(node: Node, ties: Ties) -> list[Layout]:
    return _recurrent(node, ties, gates=3, states=1)


def _rnn(node: Node, ties: Ties) -> list[Layout]:
    return _recurrent(node, ties, gates=1, states=1)


def _recurrent(node: Node, ties: Ties, gates: int, states: int) -> list[Layout]:
    """weight_ih (gates*h, x), weight_hh (gates*h, h), two biases, for every direction of every
    layer.
    """
    x, (_, tensors, biased, layers, _, _, both, _) = ties.layout(node.args[0]), node.args[1:9]
    each = 4 if biased else 2
    directions = 2 if both else 1
    if len(tensors) != each * layers * directions:
        for ref in tensors:
            for spans in ties.layout(ref):
                ties.fix(spans, f"projected hidden state at '{node.name}'")
        unknown: list[Layout] = [(None,) * len(x), *[(None,) * 3] * states]
        return unknown
    features = x[-1]
    for layer in range(layers):
        hidden: list[tuple[int, int]] = []
        for direction in range(directions):
            start = (layer * directions + direction) * each
            reads, recurs, *biases = tensors[start : start + each]
            state = ties.layout(recurs)[1]
            ties.tie(ties.layout(reads)[1], features, node.name)
            for ref in (reads, recurs, *biases):
                ties.tie(ties.layout(ref)[0], ties.copies(state, gates, node.name), node.name)
                ties.role(ref, 0, "bias" if ref in biases else "out")
            ties.role(reads, 1, "in")
            ties.role(recurs, 1, "in")
            hidden += state or ()
        features = tuple(hidden)
    return [(*x[:-1], features)] + [
        (None, None, features if directions * layers == 1 else None)
    ] * states


def _dag(node: Node, ties: Ties) -> list[Layout]:
    """(x, flat weight, bias, ..., linked, solver) -> values of inputs and nodes, feature-major: see
    `layers.dag`.
    """
    x, (nodes,) = ties.layout(node.args[0]), ties.layout(node.args[2])
    inputs = x[-1] or ties.constant(
        ties.shape(node.args[0])[-1], f"tied to a fixed size at '{node.name}'"
    )
    values = (
        None
        if nodes is None
        else (*inputs, *((variable, repeat * (1 + node.args[-2])) for variable, repeat in nodes))
    )
    ties.flat(node.args[1], values, node.name)
    ties.role(node.args[2], 0, "bias")
    ties.role(node.args[2], 0, "out")
    return [(values, x[0]), (None, None)]


def _pixel_shuffle(node: Node, ties: Ties) -> Layout:
    x = ties.layout(node.args[0])
    squared = node.args[1] ** 2
    channels = ties.divide_repeat(ties.blocks(x[1], squared, node.name) or (), squared)
    return (x[0], channels or None, None, None)


def _pad(node: Node, ties: Ties) -> Layout:
    layout = list(ties.layout(node.args[0]))
    for back in range(len(node.args[1]) // 2):
        if any(node.args[1][2 * back : 2 * back + 2]):
            ties.fix(layout[-back - 1], f"padded at '{node.name}'")
            layout[-back - 1] = None
    return tuple(layout)


def _constant(node: Node, ties: Ties) -> Layout:
    """A value computed from fixed tensors (gates, tables): none of its dimensions is a width."""
    for argument in node.args:
        if isinstance(argument, Ref):
            for spans in ties.layout(argument):
                ties.fix(spans, f"used as a constant at '{node.name}'")
    return (None,) * len(node.shape)


def _triangle(node: Node, ties: Ties) -> Layout:
    """tril and triu of a square matrix: each entry sees those before it, or after it, whoever else
    comes or goes.
    """
    layout = ties.layout(node.args[0])
    if layout[-1] is None or layout[-2] is None or node.shape[-1] != node.shape[-2]:
        return _constant(node, ties)
    ties.tie(layout[-2], layout[-1], node.name)
    return layout


def _cumulated(node: Node, ties: Ties) -> Layout:
    """cumsum(x, dim): an entry feels those before it only, and units come last."""
    layout = ties.layout(node.args[0])
    dim = node.args[1]
    ties.role(node.args[0], dim % len(layout), "scale")
    return layout


def _fresh(node: Node, ties: Ties) -> Layout:
    """Made, or asked, for its size and type only."""
    return (None,) * len(node.shape)


def _moved(node: Node, ties: Ties) -> Layout:
    """roll and flip: entries change places within some dimensions."""
    layout = ties.layout(node.args[0])
    # roll(x, shifts) without dimensions moves entries across all of them
    dims = range(len(layout)) if "roll" in node.op and len(node.args) < 3 else node.args[-1]
    for dim in dims:
        ties.fix(layout[dim], f"entries change places at '{node.name}'")
    return layout


def _index(node: Node, ties: Ties) -> Layout:
    """x[:, table]: entries of some dimensions are looked up; the result has the table's dimensions
    in place of theirs.
    """
    layout = ties.layout(node.args[0])
    tables = node.args[1]
    at = [d for d, table in enumerate(tables) if table is not None]
    if at != list(range(at[0], at[-1] + 1)):
        return _constant(Node(node.name, node.op, node.args[:1], {}, node.shape), ties)
    for d in at:
        ties.fix(layout[d], f"looked up by index at '{node.name}'")
    looked_up = len(node.shape) - (len(layout) - len(at))
    return (*layout[: at[0]], *[None] * looked_up, *layout[at[-1] + 1 :])


def _index_select(node: Node, ties: Ties) -> Layout:
    """index_select(x, dim, index): each entry of the index makes one of the result's."""
    given, dim, index = node.args
    layout = list(ties.layout(given))
    ties.fix(layout[dim], f"looked up by index at '{node.name}'")
    ties.role(index, 0, "index")
    layout[dim] = ties.layout(index)[0] if ties.layout(index) else None
    return tuple(layout)


_ELEMENTWISE = [
    *(name for kind in ACTIVATIONS for name in (kind, f"{kind}_")),
    *"""
    dropout dropout_ alpha_dropout feature_dropout clone contiguous neg expm1 log log1p sqrt rsqrt
    reciprocal sin cos tan sign floor round erf logical_not bitwise_not type_as float alias detach
    detach_ to _to_copy zero_ fill_ fill lift_fresh_copy masked_fill_
    """.split(),
]

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _same),
    **dict.fromkeys(
        "add add_ sub sub_ mul mul_ div div_ maximum minimum rsub pow where lerp copy_".split(),
        _broadcast,
    ),
    **dict.fromkeys(
        "eq ne lt le gt ge logical_and logical_or bitwise_and bitwise_or addcmul "
        "masked_fill".split(),
        _broadcast,
    ),
    **dict.fromkeys(
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d".split(), _pool
    ),
    **dict.fromkeys(
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d".split(),
        _pool,
    ),
    **dict.fromkeys(
        "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d".split(),
        _pool,
    ),
    **dict.fromkeys("conv1d conv2d conv3d".split(), _conv),
    **dict.fromkeys("conv_transpose1d conv_transpose2d conv_transpose3d".split(), _conv_transpose),
    **dict.fromkeys("view reshape flatten unflatten _unsafe_view squeeze".split(), _reshape),
    **dict.fromkeys("mean sum amax amin var std logsumexp".split(), _reduce),
    **dict.fromkeys("linalg_vector_norm norm".split(), _norm_of),
    **dict.fromkeys("softmax log_softmax _softmax".split(), _softmax),
    **dict.fromkeys("matmul mm bmm mv".split(), _matmul),
    **dict.fromkeys("addmm baddbmm".split(), _added_matmul),
    **dict.fromkeys("split split_with_sizes".split(), _split),
    **dict.fromkeys("pad constant_pad_nd".split(), _pad),
    **dict.fromkeys("rnn_tanh rnn_relu".split(), _rnn),
    **dict.fromkeys(
        "arange full zeros ones empty zeros_like ones_like full_like scalar_tensor "
        "gather repeat one_hot sym_size".split(),
        _constant,
    ),
    **dict.fromkeys(
        "new_zeros new_ones new_full new_empty _assert_tensor_metadata".split(), _fresh
    ),
    **dict.fromkeys("transpose swapaxes swapdims".split(), _transpose),
    **dict.fromkeys("tril triu".split(), _triangle),
    "cumsum": _cumulated,
    "roll": _moved,
    "flip": _moved,
    "index": _index,
    "index_select": _index_select,
    "linear": _linear,
    "batch_norm": _running_norm,
    "instance_norm": _running_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "_weight_norm": _weight_norm,
    "prelu": _prelu,
    "glu": _glu,
    "cat": _cat,
    "stack": _stack,
    "chunk": _chunk,
    "slice": _slice,
    "select": _select,
    "unbind": _unbind,
    "getitem": _item,
    "permute": _permute,
    "t": _matrix_transpose,
    "numpy_T": _matrix_transpose,
    "expand": _expand,
    "embedding": _embedding,
    "unsqueeze": _unsqueeze,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "lstm": _lstm,
    "gru": _gru,
    "pixel_shuffle": _pixel_shuffle,
    "morphogen.dag": _dag,
    "morphogen.sparse_dag": _dag,
}


def is_view(node: Node) -> bool:
    """Whether the result is its first argument in another shape, or scaled, or a part of it."""
    traits = traits_of(node)
    return traits.same or traits.rearranged or node.kind in ("_weight_norm", "tril", "triu")


def has_rule(node: Node) -> bool:
    """Whether a rule says how the node's operation treats widths."""
    return _key(node) in RULES


def rule_of(node: Node) -> Rule:
    """The rule for a node's operation; overloads (`add.Tensor`, `add.Scalar`) share one."""
    if not has_rule(node):
        raise Unsupported(
            f"'{node.op}' at node '{node.name}': no rule says how it treats widths; add one to "
            "morphogen.tracing.operations.RULES, or resize the part of the model that does "
            "without it"
        )
    return RULES[_key(node)]


def _key(node: Node) -> str:
    return "getitem" if "getitem" in node.op else node.kind
