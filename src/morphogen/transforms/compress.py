"""A smaller network with the same function on a box, proved: `compress(model, box) -> (model,
Certificate)`.

Units go that are 0 on the whole box, or constant, or a multiple of another one, or affine where
enough others are; two layers between which every unit is affine become one; where many are affine,
a linear skip past the layer may be smaller than they are. What has gone makes more go, so it is
done until nothing does. `RULES` has the rules by name; `drop_dead`, `merge_duplicates` and
`collapse` are some of them alone.

Source: lossless compression, Serra, Kumar et al. 2020 and 2021 (arXiv 2001.00218, 2102.07804).
Differs: units that are 0 go on all layers before ranks are taken, since a rank is at most the
number of units that are left before; constant, proportional and unread units go too.
"""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from scipy.linalg import qr
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from morphogen.bounds.box import Box
from morphogen.certify import certify, require_equal
from morphogen.edit.apply import count_parameters
from morphogen.edit.plan import tensors_of
from morphogen.errors import NotExact, ShapeError
from morphogen.layers.affine import AFFINE
from morphogen.random_state import undrawn
from morphogen.record import Certificate
from morphogen.tracing.program import program
from morphogen.tracing.trace import eval_mode, trace
from morphogen.tracing.widths import Width, widths
from morphogen.transforms.freeze import fold_batchnorm, freeze
from morphogen.transforms.substitute import Rectified, Relation, producers, rectified, substitute
from morphogen.verification.stability import ACTIVE, INACTIVE, Stability, stability

_EXACT = 1e-10  # relative: rows closer to a combination of others than this are one
_LARGEST = 1e4  # factor of a combination
_POINTS = 10_000

RuleName = Literal["inactive", "constant", "unread", "duplicate", "dependent", "collapse", "skip"]


def compress(
    model: nn.Module,
    box: Box,
    samples: Tensor | None = None,
    seconds: float = 60.0,
    rules: Sequence[RuleName] | None = None,
    log: list[tuple[tuple[str, ...], nn.Module]] | None = None,
) -> tuple[nn.Module, Certificate]:
    """A smaller copy of `model` in evaluation mode, equal to it on `box` in real arithmetic; the
    model stays as it is.

    box: of one example, (1, *shape). samples: inputs to look at first, such as training data.
    seconds: for linear programs in each pass, see `verification.stability`. rules: names of
    `RULES`; all but "skip" unless given, since a skip makes a module of two branches. log: is
    filled with the way back, (what went, the network before it), a pass each.

    The network is frozen first, which folds norms and gates and drops units that nothing reads or
    feeds; it is kept in float64. The certificate tells every unit of the frozen network that went,
    with what proves it, and the largest difference seen at random points and corners of the box.
    Raises `NotExact` where that exceeds rounding, and `Unsupported` for an operation without a
    rule.
    """
    if len(box.lower) != 1:
        raise ShapeError(
            f"compress: the box is of {len(box.lower)} examples; give one, (1, *shape)"
        )
    chosen = _chosen(rules)
    box = box.as_input(torch.float64)
    example = torch.cat([box.lower, box.upper])
    # in its own precision: a cast to a coarser one is refused, which is another in float64
    program(model, example)
    wide = copy.deepcopy(model).double()
    small, _ = fold_batchnorm(freeze(wide, example)[0], example)
    before = count_parameters(model)
    proofs = []
    looked = example[:0] if samples is None else samples.double()
    unbiased = _biased(small)
    folded = _folded_inputs(small, box) if "constant" in chosen else 0
    left = _unit_names(small)
    while True:
        held = None if log is None else copy.deepcopy(small)
        new, seen = _pass(small, box, looked, seconds, left, chosen)
        if not new:
            break
        if log is not None and held is not None:
            log.append((tuple(new), held))
        proofs += new
        looked = torch.cat([looked, seen]).unique(dim=0)
    for layer in unbiased:
        layer.bias = layer.bias if bool(layer.bias.any()) else None
    reason = f"{before:,} parameters became {count_parameters(small):,}: {_summary(proofs)}"
    if folded:
        reason += f"; {folded} inputs that the box fixes went into biases"
    return small, certify(
        "compress",
        partial(_outputs, wide),
        partial(_outputs, small),
        box.points(_POINTS, _POINTS // 2),
        box=(tuple(box.lower.flatten().tolist()), tuple(box.upper.flatten().tolist())),
        reason=reason,
        steps=tuple(proofs),
        at_once=500,
    )


def _chosen(rules: Sequence[str] | None) -> list[str]:
    if rules is None:
        return [name for name in RULES if name != "skip"]
    chosen = [rules] if isinstance(rules, str) else list(rules)
    unknown = [name for name in chosen if name not in RULES]
    if unknown:
        raise ShapeError(f"compress: rules has {unknown[0]!r}; give some of {', '.join(RULES)}")
    return chosen


def _unit_names(model: nn.Module) -> dict[str, list[str]]:
    """For each tensor the names of its rows, "layer[unit]"."""
    names = {}
    for name, tensor in tensors_of(model).items():
        if tensor.dim():
            layer = name.rpartition(".")[0]
            names[name] = [f"{layer}[{unit}]" for unit in range(len(tensor))]
    return names


def _summary(proofs: Sequence[str]) -> str:
    """How many units went for each reason."""
    counts = Counter(proof.partition(": ")[2].partition(" (")[0] for proof in proofs)
    reasons = [f"{count} {why}" for why, count in counts.items()]
    return ", ".join(reasons) or "nothing to take out"


@torch.no_grad()
def _folded_inputs(model: nn.Module, box: Box) -> int:
    """Inputs that the box fixes go into the biases of the linear layers that alone read the input.
    How many.
    """
    fixed = (box.lower == box.upper).flatten()
    if not bool(fixed.any()):
        return 0
    graph = trace(model, torch.cat([box.lower, box.upper]), training=False)
    tensors = tensors_of(model)
    count = 0
    for layer in producers(graph):
        weight = tensors[layer.weight]
        if layer.input and weight.dim() == 2 and layer.bias and weight.shape[1] == len(fixed):
            tensors[layer.bias].add_(weight[:, fixed] @ box.lower.flatten()[fixed])
            weight[:, fixed] = 0.0
            count = int(fixed.sum())
    return count


def _biased(model: nn.Module) -> list[Any]:
    """Give a bias of zeros to the layers without one, where a constant may go; those that got
    one.
    """
    layers: list[Any] = [m for m in model.modules() if type(m) in AFFINE and m.bias is None]
    for layer in layers:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    return layers


def _pass(
    model: nn.Module,
    box: Box,
    samples: Tensor,
    seconds: float,
    left: dict[str, list[str]],
    chosen: Sequence[str],
) -> tuple[list[str], Tensor]:
    """(what went in one look at the whole network, inputs that show units on both sides of 0).
    First goes what is 0, constant or unread, on all layers; where there is nothing of it, what is a
    multiple or a combination of others; at last layers. left: by weight, which of the first
    network's units its rows are.
    """
    proved = stability(model, box, samples, seconds=seconds)
    witnesses = [box.centre]
    for signs in proved.units.values():
        witnesses += [signs.positive, signs.negative]
    seen = torch.cat(witnesses)
    seen = seen[~seen.flatten(1).isnan().any(1)]
    graph = trace(model, torch.cat([box.lower, box.upper]))
    known = widths(graph)
    layers = rectified(graph)
    for together in (("inactive", "constant", "unread"), ("duplicate",), ("dependent",)):
        rules = [rule for name, rule in UNITS.items() if name in together and name in chosen]
        gone = []
        for layer in layers:
            gone += _taken_out(model, known, layer, rules, proved, left)
        if gone:
            return gone, seen
    for name, change in LAYERS.items():
        gone = _around(model, box, layers, proved, change, left) if name in chosen else []
        if gone:
            return gone, seen
    return [], seen


Rule = Callable[[Rectified, Mapping[str, Tensor], Tensor, list[str]], Iterator[Relation]]


def _taken_out(
    model: nn.Module,
    known: Mapping[str, Width],
    layer: Rectified,
    rules: Sequence[Rule],
    proved: Stability,
    left: dict[str, list[str]],
) -> list[str]:
    """Carry out on one layer what the rules say, a line for each unit."""
    tensors = tensors_of(model)
    signs = proved.units[layer.value]
    units = len(tensors[layer.weight])
    # a channel has a sign where all of its positions have it
    sign = signs.sign.view(units, -1)
    first = sign[:, 0]
    every = torch.where((sign == first[:, None]).all(1), first, torch.zeros_like(first))
    how = signs.how[:: sign.shape[1]]
    relations: dict[int, Relation] = {}
    for rule in reversed(rules):  # the first rule that has a unit keeps it
        relations |= {relation.unit: relation for relation in rule(layer, tensors, every, how)}
    done = substitute(model, known, layer, [relations[unit] for unit in sorted(relations)])
    names = left[layer.weight]
    gone = {relation.unit for relation in done}
    left[layer.weight] = [name for unit, name in enumerate(names) if unit not in gone]
    return [f"{names[relation.unit]}: {relation.why}" for relation in done]


def _rows(layer: Rectified, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(weight (units, fan in), bias (units,)), in float64."""
    weight = tensors[layer.weight].detach().double().flatten(1)
    bias = tensors[layer.bias].detach().double() if layer.bias else weight.new_zeros(len(weight))
    return weight, bias


def _inactive(
    layer: Rectified, tensors: Mapping[str, Tensor], sign: Tensor, how: list[str]
) -> Iterator[Relation]:
    for unit in (sign == INACTIVE).nonzero()[:, 0].tolist() if not layer.slope else ():
        yield Relation(unit, {}, 0.0, f"never above 0 (by {how[unit]})")


def _constant(
    layer: Rectified, tensors: Mapping[str, Tensor], sign: Tensor, how: list[str]
) -> Iterator[Relation]:
    weight, bias = _rows(layer, tensors)
    for unit in (weight == 0).all(1).nonzero()[:, 0].tolist():
        value = float(bias[unit])
        yield Relation(unit, {}, max(layer.slope * value, value), "constant (no weights)")


def _unread(
    layer: Rectified, tensors: Mapping[str, Tensor], sign: Tensor, how: list[str]
) -> Iterator[Relation]:
    read = torch.zeros(len(sign), dtype=torch.bool)
    for name, _ in layer.consumers:
        weight = tensors[name].detach().unflatten(1, (len(sign), -1))
        read |= (weight != 0).transpose(0, 1).flatten(1).any(1)
    for unit in (~read).nonzero()[:, 0].tolist():
        yield Relation(unit, {}, 0.0, "read by nothing (outgoing weights of 0)")


def _proportional(
    layer: Rectified, tensors: Mapping[str, Tensor], sign: Tensor, how: list[str]
) -> Iterator[Relation]:
    weight, bias = _rows(layer, tensors)
    rows = torch.cat([weight, bias[:, None]], 1)
    sizes = rows.norm(dim=1)
    ways = rows / sizes[:, None].clamp_min(1e-300)
    # products would lose half the digits
    same = torch.cdist(ways, ways, compute_mode="donot_use_mm_for_euclid_dist") <= _EXACT
    first = same.byte().argmax(1)  # whose multiple each is, maybe itself
    for unit, other in enumerate(first.tolist()):
        if other < unit and int(first[other]) == other and sizes[unit]:
            factors = {other: float(sizes[unit] / sizes[other])}
            yield Relation(unit, factors, 0.0, "a multiple of another unit (equal directions)")


def _dependent(
    layer: Rectified, tensors: Mapping[str, Tensor], sign: Tensor, how: list[str]
) -> Iterator[Relation]:
    # a leaky unit that is never above 0 is affine, too, with its slope
    slopes = _slopes(layer, sign)
    weight, bias = _rows(layer, tensors)
    weight = slopes[:, None] * weight
    bias = slopes * bias
    stable = _affine(layer, sign).nonzero()[:, 0]
    if len(stable) < 2:
        return
    # W' P = Q R, the columns with the largest rests first: W_others = F W_basis, F' = R11^-1 R12
    _, r, order = qr(weight[stable].T.numpy(), mode="economic", pivoting=True)
    r = torch.from_numpy(r)
    order = torch.from_numpy(order).long()
    rank = int((r.diagonal().abs() > _EXACT * r[0, 0].abs()).sum())
    basis = stable[order[:rank]]
    others = stable[order[rank:]]
    factors = torch.linalg.solve_triangular(r[:rank, :rank], r[:rank, rank:], upper=True).T
    off = (weight[others] - factors @ weight[basis]).norm(dim=1)
    fit = off <= _EXACT * weight[others].norm(dim=1)
    if rank:
        fit &= factors.abs().amax(1) <= _LARGEST
    constants = bias[others] - factors @ bias[basis]
    for row in fit.nonzero()[:, 0].tolist():
        terms = dict(zip(basis.tolist(), factors[row].tolist(), strict=True))
        why = f"a combination of other stable units ({rank} of {len(stable)} of them are enough)"
        yield Relation(int(others[row]), terms, float(constants[row]), why)


def _slopes(layer: Rectified, sign: Tensor) -> Tensor:
    """What a unit with one sign multiplies its sum with."""
    return 1.0 - (1.0 - layer.slope) * (sign == INACTIVE).double()


def _affine(layer: Rectified, sign: Tensor) -> Tensor:
    """Which units are stable, those that are 0 left out."""
    return (sign == ACTIVE) | ((sign == INACTIVE) & (layer.slope > 0))


Change = Callable[[nn.Linear, nn.Module, Tensor, Tensor, nn.Linear], tuple[nn.Module, str] | None]
"""(first, its ReLU, which units are affine, their slopes, second) -> (what does the work of all,
the reason), None where that is no smaller.
"""


def _around(
    model: nn.Module,
    box: Box,
    layers: Iterable[Rectified],
    proved: Stability,
    change: Change,
    left: dict[str, list[str]],
) -> list[str]:
    """Linear, ReLU, Linear in a Sequential become one module where `change` makes one: the first
    that can, since names and signs are others then.
    """
    owners = {layer.weight.rpartition(".")[0]: layer for layer in layers}
    stacks = [(n, m) for n, m in model.named_modules() if type(m) is nn.Sequential]
    for prefix, stack in stacks:
        names = list(stack._modules)
        for triple in zip(names, names[1:], names[2:], strict=False):
            first, relu, second = (stack._modules[name] for name in triple)
            paths = [f"{prefix}.{name}".removeprefix(".") for name in triple]
            owner = owners.get(paths[0])
            if not (isinstance(first, nn.Linear) and isinstance(second, nn.Linear)):
                continue
            if owner is None or relu is None:
                continue
            if [weight for weight, _ in owner.consumers] != [f"{paths[2]}.weight"]:
                continue
            sign = proved.units[owner.value].sign
            still = (sign == ACTIVE) | (sign == INACTIVE)
            made = change(first, relu, still, _slopes(owner, sign) * still, second)
            if made is None or not _put_in_place(model, box, stack, triple, made[0]):
                continue
            pairs = zip(left[owner.weight], still.tolist(), strict=True)
            left[f"{paths[2]}.inner.weight"] = [name for name, gone in pairs if not gone]
            left[f"{paths[2]}.outer.weight"] = left[f"{paths[2]}.weight"]
            return [f"{paths[0]}: {made[1].format(triple[2])}"]
    return []


def _put_in_place(
    model: nn.Module, box: Box, stack: nn.Sequential, triple: tuple[str, ...], made: nn.Module
) -> bool:
    """Whether the model is the same with one module in the place of three; else they come back."""
    children = dict(stack._modules)
    probes = box.points(20, 10)
    before = _outputs(model, probes)
    *gone, last = triple
    setattr(stack, last, made)
    for name in gone:
        delattr(stack, name)
    try:
        require_equal("compress", before, _outputs(model, probes), floor=0.0)
        return True
    # the forward pass asks for them one by one
    except (NotExact, AttributeError, IndexError, KeyError, RuntimeError):
        pass
    stack._modules.clear()
    stack._modules.update(children)
    return False


@torch.no_grad()
def _merged(
    first: nn.Linear, bend: nn.Module, still: Tensor, slopes: Tensor, second: nn.Linear
) -> tuple[nn.Module, str] | None:
    """One layer in the place of two."""
    if not bool(still.all()):
        return None
    merged = _product(first, slopes, second)
    if second.bias is not None:
        merged.bias.add_(second.bias)
    fewer = count_parameters(merged) <= count_parameters(first) + count_parameters(second)
    return (merged, "a stable layer (multiplied into {})") if fewer else None


@torch.no_grad()
def _bypassed(
    first: nn.Linear, bend: nn.Module, still: Tensor, slopes: Tensor, second: nn.Linear
) -> tuple[nn.Module, str] | None:
    """A linear skip in the place of the stable units."""
    count = int(still.sum())
    gained = (
        count * (first.in_features + 1 + second.out_features)
        - first.in_features * second.out_features
    )
    if gained <= 0 or bool(still.all()):
        return None
    skip = _product(first, slopes, second)
    unstable = ~still
    inner = undrawn(nn.Linear, first.in_features, int(unstable.sum()), dtype=first.weight.dtype)
    outer = undrawn(nn.Linear, inner.out_features, second.out_features, dtype=first.weight.dtype)
    inner.weight.copy_(first.weight[unstable])
    inner.bias.copy_(first.bias[unstable] if first.bias is not None else 0.0)
    outer.weight.copy_(second.weight[:, unstable])
    outer.bias.copy_(skip.bias + (second.bias if second.bias is not None else 0.0))
    skip.register_parameter("bias", None)
    why = f"a linear skip ({count} stable units, past {int(unstable.sum())} that do, into {{}})"
    return bypass(inner, copy.deepcopy(bend), outer, skip), why


def bypass(inner: nn.Module, bend: nn.Module, outer: nn.Module, skip: nn.Module) -> GraphModule:
    """outer(bend(inner(x))) + skip(x), as a module of torch.fx, which needs no class of its own."""
    graph = Graph()
    x = graph.placeholder("x")
    way = x
    for name in ("inner", "bend", "outer"):
        way = graph.call_module(name, (way,))
    graph.output(graph.call_function(operator.add, (way, graph.call_module("skip", (x,)))))
    return GraphModule({"inner": inner, "bend": bend, "outer": outer, "skip": skip}, graph)


UNITS: Mapping[RuleName, Rule] = {
    "inactive": _inactive,
    "constant": _constant,
    "unread": _unread,
    "duplicate": _proportional,
    "dependent": _dependent,
}
"""What takes units out."""
LAYERS: Mapping[RuleName, Change] = {"collapse": _merged, "skip": _bypassed}
"""What takes the place of layers."""
RULES = (*UNITS, *LAYERS)
"""In the order in which they are tried."""

drop_dead = partial(compress, rules=("inactive", "constant", "unread"))
"""Only units that are 0 on the box, constant, or read by nothing (as all of these, after `freeze`).
"""
merge_duplicates = partial(compress, rules=("duplicate",))
"""Only units that are a positive multiple of another one."""
collapse = partial(compress, rules=("collapse",))
"""Only layers whose units are all stable on the box: they become one."""


@torch.no_grad()
def _product(first: nn.Linear, slopes: Tensor, second: nn.Linear) -> nn.Linear:
    """What goes through the units with these slopes, without the second layer's bias."""
    through = second.weight * slopes
    made = undrawn(nn.Linear, first.in_features, second.out_features, dtype=first.weight.dtype)
    made.weight.copy_(through @ first.weight)
    made.bias.copy_(
        through @ first.bias if first.bias is not None else made.bias.new_zeros(len(made.bias))
    )
    return made


@torch.no_grad()
def _outputs(model: nn.Module, points: Tensor) -> Tensor:
    with eval_mode(model):
        outputs: Tensor = model(points)
    return outputs
