"""Put linked activations into a network that exists, and take them out again: `link(model,
example)`, `unlink(...)`.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.activations import MODULES
from morphogen.edit.apply import Applied, apply_
from morphogen.edit.plan import Placed, Plan, Row, tensors_of
from morphogen.edit.wiring import extended
from morphogen.errors import NotExact, ShapeError, Unsupported
from morphogen.layers.linked import (
    LKELU,
    LKGELU,
    LKSELU,
    Linked,
    LKPReLU,
    LKReLU,
    LKSwish,
    looks_linear_,
    odd_part,
    variance_,
)
from morphogen.layers.units import unit_dim
from morphogen.tracing.consumers import consumers
from morphogen.tracing.trace import Graph, Node, refs, trace, users_of

_LINKS: dict[type[nn.Module], Callable[[Any, int], Linked]] = {
    **dict.fromkeys(MODULES, lambda act, dim: Linked(copy.deepcopy(act), dim)),
    nn.ReLU: lambda act, dim: LKReLU(dim),
    nn.SELU: lambda act, dim: LKSELU(dim),
    nn.SiLU: lambda act, dim: LKSwish(dim),
    nn.GELU: lambda act, dim: LKGELU(dim) if act.approximate == "none" else Linked(act, dim),
    nn.ELU: lambda act, dim: LKELU(dim) if act.alpha == 1.0 else Linked(act, dim),
    nn.PReLU: lambda act, dim: _prelu(act, dim),
}


@torch.no_grad()
def link(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    optimizers: Sequence[Optimizer] = (),
    init: Literal["looks-linear", "preserve"] = "looks-linear",
) -> Applied:
    """Replace the activations of `model` by linked ones, in place; what reads them gets twice the
    columns, optimizers follow.

    An activation module is linked where linear and convolution layers alone read it, perhaps
    through pooling, dropout and flatten; others stay as they are, such as those after a residual
    addition, which would double the whole stream. init: "looks-linear" draws the readers anew,
    `looks_linear_` where g(z) - g(-z) is a multiple of z, else `variance_`; "preserve" gives the
    new columns zeros, so that the function stays. `undo()` of what is returned takes all of it
    back. Raises `Unsupported`, with the reason for each, where no activation can be linked. Source:
    Riera Molina & Pujol 2017 (arXiv 1712.02609); the start, Balduzzi et al. 2017 (arXiv
    1702.08591).
    """
    if init not in ("looks-linear", "preserve"):
        raise ShapeError(f"link: init={init!r}; give 'looks-linear' or 'preserve'")
    graph = trace(model, example)
    uses, refused = _uses(model, graph, tuple(_LINKS))
    if not uses:
        reasons = (
            "; ".join(refused) or "it has no activation module; functional ones cannot be replaced"
        )
        raise Unsupported(
            f"link: no activation of {type(model).__name__} can be linked ({reasons})"
        )
    tensors = tensors_of(model)
    modules = {}
    values: dict[str, Tensor] = {}
    for use in uses:
        old = model.get_submodule(use.name)
        like = next(old.parameters(), tensors[use.consumers[0]])
        modules[use.name] = _LINKS[type(old)](old, use.dim).to(like)
        for name in use.consumers if init == "looks-linear" else ():
            values |= _drawn(model, name, modules[use.name])
    columns = {
        name: extended(tensors[name].shape[1], 2 * tensors[name].shape[1])
        for use in uses
        for name in use.consumers
    }
    planned = _plan(model, "link", modules, columns, values, keeps=init == "preserve")
    return apply_(model, planned, optimizers=optimizers, example=example)


@torch.no_grad()
def unlink(
    model: nn.Module, example: Tensor | tuple[Any, ...], *, optimizers: Sequence[Optimizer] = ()
) -> Applied:
    """Fold linked activations back, in place, the function kept: the inverse of `link`.

    Where all columns for g(-z) are zero, the plain activation comes back; where they are the
    negatives of those for g(z) and g(z) - g(-z) is a multiple of z, as in a net that still looks
    linear, nothing is left of the activation. Raises `NotExact`, naming the layer, where neither
    holds, and `Unsupported` where nothing is linked.
    """
    graph = trace(model, example)
    uses, refused = _uses(model, graph, (Linked,))
    if not uses or refused:
        raise Unsupported(
            f"unlink: {'; '.join(refused) or 'no linked activation has consumers of its own'}"
        )
    tensors = tensors_of(model)
    modules = {}
    values = {}
    for use in uses:
        weights = [tensors[name] for name in use.consumers]
        module = model.get_submodule(use.name)
        modules[use.name], factor = _plain(module, weights, use.name)
        for name in use.consumers:
            values[name] = factor * tensors[name].chunk(2, 1)[0]
    columns = {name: torch.arange(value.shape[1]) for name, value in values.items()}
    planned = _plan(model, "unlink", modules, columns, values, keeps=True)
    return apply_(model, planned, optimizers=optimizers, example=example)


@dataclass(frozen=True)
class _Use:
    """An activation module, the dimension of its units, and the weights that read it."""

    name: str
    dim: int
    consumers: tuple[str, ...]


def _plan(
    model: nn.Module,
    what: str,
    modules: Mapping[str, nn.Module],
    columns: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    keeps: bool,
) -> Plan:
    """A rewrite that puts `modules` in the place of others, by name, and gives the weights that
    read them other columns.
    """
    tensors = tensors_of(model)
    rows = [Row(name, 1, "in", index) for name, index in columns.items()]
    # biases keep their size, and get other values
    for name in values.keys() - columns.keys():
        rows.append(Row(name, 0, "bias", torch.arange(len(tensors[name]))))
    return Plan(
        edits=(),
        rows=tuple(rows),
        blocks=(),
        sizes={},
        covers={},
        keeps=keeps,
        modules=tuple(_placed(model, name, module) for name, module in modules.items()),
        values=values,
        rewrites=tuple(f"{what} {name}" for name in modules),
    )


def _placed(model: nn.Module, name: str, module: nn.Module) -> Placed:
    """`module` in the place of what is called `name`, whose optimizer groups its parameters
    join.
    """
    old = model.get_submodule(name)
    own = [f"{name}.{key}" for key, _ in old.named_parameters()]
    every = (key for key, _ in model.named_parameters())
    kind = f"{type(module).__name__} in place of {type(old).__name__}"
    return Placed(name, kind, next(iter(own), next(every)), lambda *_: copy.deepcopy(module))


def _uses(
    model: nn.Module, graph: Graph, kinds: tuple[type[nn.Module], ...]
) -> tuple[list[_Use], list[str]]:
    """The activations of these kinds that linear and convolution layers alone read, and why others
    are not.
    """
    nodes = {node.name: node for node in graph.nodes}
    users = users_of(graph.nodes)
    weights = {node.name: node.target for node in graph.nodes if node.op == "tensor"}
    uses: list[_Use] = []
    refused: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, kinds):
            continue
        made = {
            node.name
            for node in graph.nodes
            if node.module == name or node.module.startswith(f"{name}.")
        }
        last = [
            nodes[one] for one in made if any(user.name not in made for user in users.get(one, []))
        ]
        try:
            read = [hit for node in last for hit in _layers(node, nodes, users)]
        except Unsupported as error:
            refused.append(f"'{name}': {error}")
            continue
        dims = {dim for _, dim in read}
        consumers = Counter(weight for weight, _ in read)
        total = Counter(
            weights[ref.name]
            for node in graph.nodes
            for ref in refs(node.args[1:2])
            if ref.name in weights
        )
        shared = [weight for weight, count in consumers.items() if total[weight] != count]
        own = (
            {unit_dim(node.shape, module.dim, name) for node in last}
            if isinstance(module, Linked)
            else dims
        )
        if len(dims) == 1 and own != dims:
            refused.append(
                f"'{name}': its units are dimension {min(own)}, what reads it reads dimension "
                f"{min(dims)}"
            )
        elif len(dims) == 1 and min(dims) != 1 and _slopes(module) > 1:
            refused.append(
                f"'{name}': nn.PReLU has its slopes along dimension 1, what reads it reads "
                f"dimension {min(dims)}"
            )
        elif len(dims) == 1 and not shared:
            uses.append(_Use(name, dims.pop(), tuple(consumers)))
        else:
            why = (
                f"{shared[0]} reads something else, too"
                if shared
                else "read along several dimensions"
            )
            refused.append(f"'{name}': {why if dims else 'nothing reads it'}")
    return uses, refused


def _layers(
    node: Node, nodes: dict[str, Node], users: dict[str, list[Node]]
) -> Iterator[tuple[str, int]]:
    """(weight, dimension of the units) of every layer that reads a value. Raises `Unsupported`
    where anything else does.
    """
    rank = len(node.shape)
    for user in consumers(node, users):
        reader = user.node
        kind = user.node.kind
        if not user.first or kind not in ("linear", "conv1d", "conv2d", "conv3d"):
            raise Unsupported(
                f"'{reader.op}' reads it at '{reader.name}'"
                if reader.op != "output"
                else "the output shows it"
            )
        weight = nodes[reader.args[1].name]
        if weight.op != "tensor":
            raise Unsupported(f"the weight that reads it at '{reader.name}' is computed")
        if kind != "linear" and (reader.args[6] if len(reader.args) > 6 else 1) != 1:
            raise Unsupported(f"a convolution in groups reads it at '{reader.name}'")
        # a linear layer behind a flatten reads units in the second dimension
        last = kind == "linear" and len(user.value.shape) == rank
        yield weight.target, rank - 1 if last else 1


def _slopes(module: nn.Module) -> int:
    return (
        next((p.numel() for p in module.parameters()), 1)
        if isinstance(module, (nn.PReLU, LKPReLU))
        else 1
    )


def _prelu(act: nn.PReLU, dim: int) -> LKPReLU:
    linked = LKPReLU(act.num_parameters, dim=dim).to(act.weight)
    for slope in (linked.positive, linked.negative):
        slope.copy_(act.weight)
    return linked


def _drawn(model: nn.Module, weight: str, act: Linked) -> dict[str, Tensor]:
    """The weight, of twice the columns, and the bias of a layer that reads `act`, drawn anew."""
    name, _, key = weight.rpartition(".")
    layer = copy.deepcopy(model.get_submodule(name))
    narrow = getattr(layer, key)
    setattr(layer, key, nn.Parameter(torch.cat([narrow, narrow], 1)))
    scale = odd_part(act)
    variance_(layer, act) if scale is None else looks_linear_(layer, scale)
    drawn = {weight: getattr(layer, key).detach()}
    if isinstance(bias := getattr(layer, "bias", None), Tensor):
        drawn[f"{name}.bias".removeprefix(".")] = bias.detach()
    return drawn


def _plain(module: nn.Module, weights: list[Tensor], name: str) -> tuple[nn.Module, float]:
    """What stands in for a linked activation, and the factor of the columns that stay."""
    halves = [weight.chunk(2, 1) for weight in weights]
    if all(not bool(second.any()) for _, second in halves):
        if isinstance(module, LKPReLU):
            prelu = nn.PReLU(module.positive.numel()).to(module.positive)
            prelu.weight.copy_(module.positive.flatten())
            return prelu, 1.0
        assert isinstance(module, Linked)
        if isinstance(module.base, nn.Module):
            return module.base, 1.0
        raise Unsupported(f"unlink: '{name}' links a function, not a module")
    scale = odd_part(module)
    if scale is not None and all(torch.equal(first, -second) for first, second in halves):
        return nn.Identity(), scale
    raise NotExact(
        f"unlink: '{name}' is read as neither g(z) alone nor g(z) - g(-z); a trained linked net "
        "has no plain twin"
    )
