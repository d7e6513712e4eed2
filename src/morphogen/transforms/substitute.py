"""Take out units that others stand for: `substitute(model, layer, relations)`.

A unit whose output is a combination of other units' outputs and a constant need not exist: its
readers take the combination instead. Every lossless rule of `compress` is such a relation: a unit
that is always 0, one that is constant, one that is a multiple of another, one that is affine where
others are.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import nn

from morphogen.bounds.rules import rectifier
from morphogen.edit.apply import apply_
from morphogen.edit.edit import Shrink
from morphogen.edit.plan import plan, tensors_of
from morphogen.tracing.consumers import consumers
from morphogen.tracing.trace import Graph, Node, Ref, users_of
from morphogen.tracing.traits import traits_of
from morphogen.tracing.widths import Width

MAKES = ("linear", "conv1d", "conv2d", "conv3d")


@dataclass(frozen=True)
class Relation:
    """unit = sum of factors[j] * unit j + constant, on the set in question. why: the proof, in
    words.
    """

    unit: int
    factors: Mapping[int, float]
    constant: float
    why: str


@dataclass(frozen=True)
class Rectified:
    """A layer with a (leaky) ReLU of its own, and those that read it alone.

    weight, bias: names of its tensors ("" without). slope: of the ReLU below 0, in [0, 1). value,
    activation: names of the nodes that the ReLU reads and makes. consumers: names of the weights
    that read it, and of their biases ("" without). sums: whether combinations pass to them as their
    terms do. shifts: whether a constant becomes one of the readers' biases, which a border of zeros
    breaks.
    """

    weight: str
    bias: str
    slope: float
    value: str
    activation: str
    consumers: tuple[tuple[str, str], ...]
    sums: bool
    shifts: bool


def rectified(graph: Graph) -> list[Rectified]:
    """The layers whose units' outputs go through a (leaky) ReLU into linear and convolution layers
    and nowhere else.

    Units are the second dimension of every value on the way, until a flatten makes them blocks of
    it.
    """
    nodes = {node.name: node for node in graph.nodes}
    users = users_of(graph.nodes)
    layers = []
    for node in graph.nodes:
        after = users.get(node.name, [])
        own = _tensors(node, nodes, users)
        if own is None or len(after) != 1:
            continue
        relu = after[0]
        slope = rectifier(relu)
        readers = None if slope is None else _readers(relu, nodes, users)
        if slope is None or readers is None:
            continue
        weights, sums, shifts = readers
        if weights:
            layers.append(Rectified(*own, slope, node.name, relu.name, weights, sums, shifts))
    return layers


@dataclass(frozen=True)
class Producer:
    """A layer whose tensors are its alone. input: whether it reads what the network is given,
    perhaps flattened.
    """

    weight: str
    bias: str
    input: bool


def producers(graph: Graph) -> list[Producer]:
    """All linear and convolution layers on the second dimension."""
    nodes = {node.name: node for node in graph.nodes}
    users = users_of(graph.nodes)

    def given(node: Node) -> bool:
        first = node.args[0] if node.args else None
        before = nodes[first.name] if isinstance(first, Ref) else None
        return before is not None and (
            before.op == "input" or (traits_of(before).same and given(before))
        )

    return [
        Producer(*own, given(node))
        for node in graph.nodes
        if (own := _tensors(node, nodes, users)) is not None
    ]


def _tensors(
    node: Node, nodes: Mapping[str, Node], users: Mapping[str, list[Node]]
) -> tuple[str, str] | None:
    """The names of a layer's weight and bias ("" without), where they are its alone and it acts on
    the second dimension.
    """
    if (
        node.kind not in MAKES
        or _groups(node) > 1
        or (node.kind == "linear" and len(node.shape) != 2)
    ):
        return None
    given = [nodes[arg.name] for arg in node.args[1:3] if isinstance(arg, Ref)]
    if not given or any(one.op != "tensor" or len(users[one.name]) > 1 for one in given):
        return None
    return given[0].target, given[1].target if len(given) > 1 else ""


Through = tuple[tuple[tuple[str, str], ...], bool, bool]


def _readers(
    start: Node, nodes: Mapping[str, Node], users: Mapping[str, list[Node]]
) -> Through | None:
    """(the tensors of the layers that read a value, whether sums pass to them, whether constants
    do); None where anything else reads it.
    """
    read: list[tuple[str, str]] = []
    sums = True
    shifts = True
    for user in consumers(start, users):
        own = _tensors(user.node, nodes, users)
        if own is None or not user.first:
            return None
        read.append(own)
        # a maximum of sums is not the sum of maxima
        sums &= not any(node.kind.startswith("max_pool") for node in user.passed)
        shifts &= bool(own[1]) and not any(map(_borders, (*user.passed, user.node)))
    return tuple(read), sums, shifts


def _groups(node: Node) -> int:
    return int(node.args[6]) if node.kind != "linear" and len(node.args) > 6 else 1


def _borders(node: Node) -> bool:
    """Whether a convolution or an average looks beyond the edge, where there are zeros, or divides
    by another number than it adds up.
    """
    if node.kind == "linear" or node.kind.startswith(("adaptive", "max")):
        return False
    place = 3 if "pool" in node.kind else 4
    padding = node.args[place] if len(node.args) > place else 0
    there = (
        padding != "valid"
        if isinstance(padding, str)
        else bool(any(padding) if isinstance(padding, Sequence) else padding)
    )
    divides = "pool" in node.kind and (
        bool(node.kwargs) or (len(node.args) > 6 and node.args[6] is not None)
    )
    return there or divides


@torch.no_grad()
def substitute(
    model: nn.Module, known: Mapping[str, Width], layer: Rectified, relations: Sequence[Relation]
) -> list[Relation]:
    """Take the units out, in place, readers first; those that could go. At least one unit stays.

    known: the model's widths. A relation of which a factor or a constant cannot pass to the readers
    is left out, as is one that leans on a unit that goes itself.
    """
    width = _own_width(known, layer)
    if width is None:
        return []
    tensors = tensors_of(model)
    size = len(tensors[layer.weight])
    going = {relation.unit for relation in relations}
    fitting = [relation for relation in relations if _fits(relation, layer, going)][: size - 1]
    if not fitting:
        return []
    units = torch.tensor([relation.unit for relation in fitting])
    factors = torch.zeros(len(fitting), size, dtype=torch.float64)
    for row, relation in zip(factors, fitting, strict=True):
        for unit, factor in relation.factors.items():
            row[unit] = factor
    constants = torch.tensor([relation.constant for relation in fitting], dtype=torch.float64)
    for name, bias in layer.consumers:
        weight = tensors[name]
        columns = weight.double().unflatten(1, (size, -1))
        gone = columns[:, units]
        # W_j += sum over the units d that go of W_d F_dj,   b += sum of W_d c_d
        weight.copy_((columns + torch.einsum("od...,dj->oj...", gone, factors)).flatten(1, 2))
        if bool(constants.any()):
            by = torch.einsum("od,d->o", gone.flatten(2).sum(2), constants)
            tensors[bias].copy_(tensors[bias].double() + by)
    apply_(model, plan(model, known, [Shrink(width.name, sorted(units.tolist()))]))
    return fitting


def _own_width(known: Mapping[str, Width], layer: Rectified) -> Width | None:
    """The width of a layer's units, where it can shrink and no other layer makes or reads it."""
    made = (layer.weight, 0)
    own = {layer.weight, layer.bias, *(weight for weight, _ in layer.consumers)}
    for width in known.values():
        if made in [(slot.tensor, slot.dim) for slot in width.slots]:
            alone = all(len(slot.spans) == 1 and slot.tensor in own for slot in width.slots)
            return width if alone and not width.fixed and width.step <= 1 else None
    return None


def _fits(relation: Relation, layer: Rectified, going: Set[int]) -> bool:
    """Whether the readers can take its factors and its constant, of units that stay."""
    if going & relation.factors.keys():
        return False
    if relation.constant and not layer.shifts:
        return False
    return layer.sums or _passes(relation)


def _passes(relation: Relation) -> bool:
    """Through a maximum."""
    factors = list(relation.factors.values())
    return not factors or (len(factors) == 1 and not relation.constant and factors[0] > 0)
