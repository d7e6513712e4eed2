"""Take out units that others stand for: `substitute(model, layer, relations)`.

A unit whose output is a combination of other units' outputs and a constant need not exist: its readers take the combination
instead. Every lossless rule of `compress` is such a relation: a unit that is always 0, one that is constant, one that is a
multiple of another, one that is affine where others are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.graph.operations import is_view
from morphogen.graph.trace import Graph, Node, Ref, refs
from morphogen.graph.widths import Width
from morphogen.resize.apply import apply_
from morphogen.resize.edit import Shrink
from morphogen.resize.plan import plan, tensors_of

MAKES = ("linear", "conv1d", "conv2d", "conv3d")
# What a combination of units passes through as its terms do, and what only a constant or one multiple does.
_LINEAR = frozenset("dropout feature_dropout alpha_dropout clone contiguous detach alias".split())
_LINEAR |= frozenset(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean".split()
)
_SINGLE = frozenset("max_pool1d max_pool2d max_pool3d adaptive_max_pool2d".split())


@dataclass(frozen=True)
class Relation:
    """unit = sum of factors[j] * unit j + constant, on the set in question. why: the proof, in words."""

    unit: int
    factors: Mapping[int, float]
    constant: float
    why: str


@dataclass(frozen=True)
class Rectified:
    """A layer with a ReLU of its own, and those that read it alone.

    weight, bias: names of its tensors ("" without). value, activation: names of the nodes that the ReLU reads and makes.
    readers: names of the weights that read it. sums: whether combinations pass to them as their terms do. shifts: whether a
    constant becomes one of the readers' biases, which a border of zeros breaks.
    """

    weight: str
    bias: str
    value: str
    activation: str
    readers: tuple[str, ...]
    sums: bool
    shifts: bool


def rectified(graph: Graph) -> list[Rectified]:
    """The layers of a network whose units' outputs go through a ReLU into linear and convolution layers and nowhere else."""
    nodes = {node.name: node for node in graph.nodes}
    users: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in dict.fromkeys(ref.name for ref in refs((node.args, *node.kwargs.values()))):
            users.setdefault(name, []).append(node)
    reads = [ref.name for node in graph.nodes for ref in refs(node.args)]
    found = []
    for node in graph.nodes:
        after = users.get(node.name, [])
        if node.kind not in MAKES or len(after) != 1 or after[0].kind not in ("relu", "relu_") or _groups(node) > 1:
            continue
        weight, bias = (nodes[arg.name] if isinstance(arg, Ref) else None for arg in (*node.args[1:3], None)[:2])
        if weight is None or weight.op != "tensor" or reads.count(weight.name) > 1:
            continue
        through = _readers(after[0], nodes, users)
        if through is None:
            continue
        readers, sums, shifts = through
        if readers and all(reads.count(reader.args[1].name) == 1 for reader in readers):
            names = tuple(nodes[reader.args[1].name].target for reader in readers)
            own = weight.target, bias.target if bias else ""
            found.append(Rectified(*own, node.name, after[0].name, names, sums, shifts))
    return found


def _readers(start: Node, nodes: Mapping[str, Node], users: Mapping[str, list[Node]]) -> tuple[list[Node], bool, bool] | None:
    """(the layers that read a value, whether sums pass to them, whether constants do); None where anything else reads it."""
    found: list[Node] = []
    sums = shifts = True
    for user in users.get(start.name, []):
        first = bool(user.args) and isinstance(user.args[0], Ref) and user.args[0].name == start.name
        if first and user.kind in MAKES:
            if _groups(user) > 1 or nodes[user.args[1].name].op != "tensor":
                return None
            if user.kind == "linear" and len(start.shape) != 2:
                return None  # its columns are not the units
            found.append(user)
            shifts &= user.kind == "linear" or _padding(user) in (0, (0,), "valid")
        elif first and (user.kind in _LINEAR | _SINGLE or (is_view(user) and _flat(start, user))):
            behind = _readers(user, nodes, users)
            if behind is None:
                return None
            found += behind[0]
            sums, shifts = sums and behind[1] and user.kind not in _SINGLE, shifts and behind[2] and not _pads(user)
        else:
            return None
    return found, sums, shifts


def _groups(node: Node) -> int:
    return int(node.args[6]) if node.kind != "linear" and len(node.args) > 6 else 1


def _padding(node: Node) -> Any:
    given = node.args[4] if len(node.args) > 4 else 0
    return (0,) if not isinstance(given, (int, str)) and not any(given) else given


def _pads(node: Node) -> bool:
    """Whether a pooling looks beyond the edge, where there are zeros."""
    return node.kind.startswith("avg_pool") and len(node.args) > 3 and _padding_of(node.args[3])


def _padding_of(given: Any) -> bool:
    return bool(any(given) if isinstance(given, Sequence) else given)


def _flat(before: Node, after: Node) -> bool:
    """Whether a view leaves every dimension or joins all but the first, so that each unit's entries stay together."""
    size = 1
    for part in before.shape[1:]:
        size *= part
    return after.shape in (before.shape, (before.shape[0], size))


@torch.no_grad()
def substitute(model: nn.Module, found: Mapping[str, Width], layer: Rectified, relations: Sequence[Relation]) -> list[Relation]:
    """Take the units out, in place, readers first; those that could go. At least one unit stays.

    found: the model's widths. A relation of which a factor or a constant cannot pass to the readers is left out, as is one that
    leans on a unit that goes itself.
    """
    width = next((w for w in found.values() for s in w.slots if (s.tensor, s.dim) == (layer.weight, 0)), None)
    if width is None or width.pinned or width.step > 1 or any(len(slot.spans) > 1 for slot in width.slots):
        return []
    tensors = tensors_of(model)
    size = len(tensors[layer.weight])
    going = {relation.unit for relation in relations}
    fitting = [
        relation for relation in relations
        if not (going & relation.factors.keys()) and (layer.shifts or not relation.constant)
        and (layer.sums or _passes(relation))
    ][: size - 1]  # fmt: skip
    if not fitting:
        return []
    units = torch.tensor([relation.unit for relation in fitting])
    factors = torch.zeros(len(fitting), size, dtype=torch.float64)
    for row, relation in zip(factors, fitting, strict=True):
        for unit, factor in relation.factors.items():
            row[unit] = factor
    constants = torch.tensor([relation.constant for relation in fitting], dtype=torch.float64)
    for name in layer.readers:
        weight = tensors[name]
        columns = weight.double().unflatten(1, (size, -1))
        gone = columns[:, units]
        weight.copy_((columns + torch.einsum("od...,dj->oj...", gone, factors)).flatten(1, 2))
        if bool(constants.any()):
            _shift(model, name, torch.einsum("od,d->o", gone.flatten(2).sum(2), constants))
    apply_(model, plan(model, found, [Shrink(width.name, sorted(units.tolist()))]))
    return fitting


def _passes(relation: Relation) -> bool:
    """Through a maximum."""
    return not relation.factors or (len(relation.factors) == 1 and not relation.constant and min(relation.factors.values()) > 0)


def _shift(model: nn.Module, weight: str, by: Tensor) -> None:
    """Add to the bias of a layer, which gets one where it has none."""
    layer: Any = model.get_submodule(weight.rpartition(".")[0])
    layer.bias = nn.Parameter((by if layer.bias is None else layer.bias.double() + by).to(layer.weight.dtype))
