"""Where a block adds to what it was given: `closing(graph, module)`."""

from morphogen.tracing.operations import is_view
from morphogen.tracing.trace import Graph, Node, Ref
from morphogen.tracing.traits import traits_of

# What these give is zero where their first argument is.
# What these give is zero where their first argument is.
_KEEP_ZERO = {
    *"relu relu_ leaky_relu leaky_relu_ gelu silu silu_ mish elu elu_ selu tanh hardswish "
    "dropout dropout_ clone".split(),
    *"mul mul_ max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d "
    "adaptive_avg_pool2d".split(),
}
# What these give is zero where the tensors among these arguments are: weights and biases, not
# running statistics.
_AFFINE = {
    **dict.fromkeys("linear conv1d conv2d conv3d batch_norm instance_norm".split(), slice(1, 3)),
    **dict.fromkeys("layer_norm group_norm".split(), slice(2, 4)),
    **dict.fromkeys("mul mul_".split(), slice(0, 2)),
    "addmm": slice(0, 3, 2),  # bias + x @ weight
}


def closing(graph: Graph, module: str) -> tuple[str, ...]:
    """The tensors of `module` that, set to zero, make all its residual branches give zero, so that
    it passes on what it gets.

    A branch is one side of an addition whose other side it was computed from: `x + f(x)`. Empty
    where the module has none, or one whose last layer is not its own or is unknown.
    """
    nodes = {node.name: node for node in graph.nodes}
    reads = {
        node.name: {ref.name for ref in node.args if isinstance(ref, Ref)} for node in graph.nodes
    }
    above: dict[str, set[str]] = {}
    for node in graph.nodes:
        above[node.name] = reads[node.name].union(*(above[name] for name in reads[node.name]))
    streams: dict[str, None] = {}
    for node in graph.nodes:
        if node.kind not in ("add", "add_") or len(reads[node.name]) != 2:
            continue
        one, other = (ref.name for ref in node.args[:2])
        branch = other if one in above[other] else one if other in above[one] else None
        if branch and (tensors := _zeroed_by(nodes[branch], nodes, f"{module}.")):
            streams |= dict.fromkeys(tensors)
    return tuple(streams)


def keeps_zero(node: Node) -> bool:
    """Whether the node's value is zero wherever its first argument is."""
    return traits_of(node).zero or is_view(node)


def _zeroed_by(node: Node, nodes: dict[str, Node], inside: str) -> tuple[str, ...]:
    """Tensors whose names start with `inside` that make `node` zero when they are zero; () where
    there are none.
    """
    kind = node.kind
    if kind in _AFFINE:
        tensors = [_tensor(arg, nodes) for arg in node.args[_AFFINE[kind]]]
        names = tuple(name for name in tensors if name)
        if names:
            return names if all(name.startswith(inside) for name in names) else ()
    if keeps_zero(node):
        return _zeroed_by(nodes[node.args[0].name], nodes, inside)
    return ()


def _tensor(arg: object, nodes: dict[str, Node]) -> str:
    """The tensor that a value is, perhaps in another shape; "" where it is none."""
    while isinstance(arg, Ref):
        node = nodes[arg.name]
        if node.op == "tensor":
            return node.target
        # g * v / |v| is zero where g is, and NaN where v is
        arg = (
            node.args[1] if node.kind == "_weight_norm" else node.args[0] if is_view(node) else None
        )
    return ""
