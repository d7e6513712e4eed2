"""From a network that learned its structure to plain modules: gates, batch norm, dropout and dead
units folded away.
"""

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from morphogen.activations import MODULES
from morphogen.certify import certify, difference, require_equal
from morphogen.edit.apply import apply_
from morphogen.edit.edit import Shrink
from morphogen.edit.plan import live_size, plan, tensors_of
from morphogen.errors import Unsupported
from morphogen.layers.dag.module import Dag
from morphogen.layers.dag.unrolled import by_levels
from morphogen.layers.depth import LearnedDepth
from morphogen.layers.linked import Linked, LKPReLU, LKSine
from morphogen.layers.merge import Merge, convex, residual
from morphogen.layers.stack import BlockStack
from morphogen.layers.units import unit_dim
from morphogen.layers.width import LearnedWidth
from morphogen.record import Certificate
from morphogen.tracing.residual import keeps_zero
from morphogen.tracing.trace import Node, Ref, eval_mode, refs, trace, users_of
from morphogen.tracing.widths import Width, widths

_READS = {"linear", "conv1d", "conv2d", "conv3d"}
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def freeze(model: nn.Module, example: Tensor | tuple[Any, ...]) -> tuple[nn.Module, Certificate]:
    """A copy of `model` in evaluation mode with the same function and none of morphogen's modules.

    A learned depth becomes its active blocks, each folded into one layer: for an affine f, an
    identity h + gate * BN(f(x)) is one affine map. The gates of a learned width go into the layer
    before it, through what is positively homogeneous, or into the layer right after it. A linked
    activation becomes the plain one behind a layer with mirrored rows. A `Dag` becomes one layer
    for each of its levels. Batch norm after a linear or convolution layer in a `Sequential` is
    folded into it, dropout goes, and so do units that are constant or that nothing reads. Sums are
    formed in float64 and rounded once.

    The certificate states the largest difference on `example`, in the model's own precision. Raises
    `Unsupported` for a block that cannot be folded, and `NotExact` where the difference exceeds
    rounding with both in float64, see `certify.RELATIVE`; in float32 also 1e-5 of the largest
    output, or ten times the rounding of the given model where that is larger. Source: Going Deeper,
    the gated form: W' = s W + I, b' = s (b - mean) + gate beta, s = gate gamma / sqrt(var + eps).
    """
    plain = copy.deepcopy(model).eval().double()
    wide = _as(example, torch.float64)
    _count_from_the_end(plain, wide)
    plain = _folded(plain)
    with torch.no_grad():
        dead = _drop_dead(plain, wide)
        reference = _run(copy.deepcopy(model).eval().double(), wide)
        require_equal("freeze", reference, _run(plain, wide))
        kept = next(
            (t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()),
            torch.empty(0),
        )
        plain = plain.to(kept.dtype).train(False)
        given = _run(model, example)
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    reason = (
        "batch norm, gates and identities are affine in evaluation mode and were multiplied out"
    )
    return plain, certify(
        "freeze",
        lambda _: given,
        partial(_run, plain),
        example,
        reason=reason + (f"; {dead} dead units dropped" if dead else ""),
        allowed=_cast(given, reference),
    )


def _cast(given: Tensor, reference: Tensor) -> float | None:
    """By how much a cast to the given model's precision may move outputs that are equal in float64:
    by less than sums in another order do, unless the given model is itself that far off.
    """
    if given.dtype == torch.float64:
        return None
    scale = max(1.0, float(reference.abs().max()))
    return max(1e-5 * scale, 10 * difference(given, reference))


@torch.no_grad()
def fold_batchnorm(
    model: nn.Module, example: Tensor | tuple[Any, ...]
) -> tuple[nn.Module, Certificate]:
    """A copy of `model` in evaluation mode whose batch norms are part of the layers before them;
    `nn.Identity` in their places.

    A norm is folded that reads a linear or convolution layer which nothing else reads, wherever
    both stand; others stay. The certificate states the largest difference on `example`; raises
    `NotExact` where that exceeds rounding.
    """
    small = copy.deepcopy(model).eval()
    graph = trace(small, example, training=False)
    nodes = {node.name: node for node in graph.nodes}
    users = users_of(graph.nodes)
    modules = dict(small.named_modules())
    folded = 0
    found = Counter(node.module for node in graph.nodes if "norm" in node.kind)
    for node in graph.nodes:
        norm = modules.get(node.module)
        if (
            not isinstance(norm, _NORM)
            or norm.running_mean is None
            or node.kind != "batch_norm"
            or found[node.module] > 1
        ):
            continue
        before = nodes[node.args[0].name]
        layer = modules.get(before.module)
        if (
            not isinstance(layer, (nn.Linear, *_CONV))
            or len(users[before.name]) > 1
            or len(users[_weight_of(before)]) > 1
        ):
            continue
        for name, new in ((before.module, _fuse(layer, norm)), (node.module, nn.Identity())):
            small.set_submodule(name, new)
        folded += 1
    return small, certify(
        "fold_batchnorm",
        partial(_run, model),
        partial(_run, small),
        example,
        reason=f"{folded} batch norms are affine and went into the layers before them",
    )


def _weight_of(layer: Node) -> str:
    return next(ref.name for ref in refs(layer.args[1:2]))


# What stays of a block's input beside gate * block(x), for the merges that are affine.
_KEPT: dict[Merge, Callable[[float], float]] = {
    residual: lambda gate: 1.0,
    convex: lambda gate: 1.0 - gate,
}


def fold_block(block: nn.Module, gate: float, kept: float = 1.0) -> nn.Module:
    """One affine layer equal to kept * x + gate * block(x), for a block of one linear or
    convolution layer and norms after.
    """
    layers = [m for m in _folded(block).modules() if not isinstance(m, nn.Sequential)]
    if len(layers) != 1 or not isinstance(layers[0], (nn.Linear, *_CONV)):
        raise Unsupported(
            f"freeze: a block of {', '.join(type(m).__name__ for m in layers)} is not one affine "
            "layer and cannot be folded with its gate; use blocks of Linear or Conv with "
            "BatchNorm and Dropout"
        )
    layer = layers[0]
    weight = gate * layer.weight
    if isinstance(layer, nn.Linear):
        weight += kept * torch.eye(len(weight)).to(weight)
    else:
        _require_same_size(layer)
        weight += kept * nn.init.dirac_(torch.empty_like(weight), layer.groups)
    layer.weight = nn.Parameter(weight)
    if layer.bias is not None:
        layer.bias = nn.Parameter(gate * layer.bias)
    return layer


@torch.no_grad()
def _folded(module: nn.Module) -> nn.Module:
    """`module` with learned depths unrolled, norms folded and dropout gone, recursively;
    Sequentials inside are flattened.
    """
    if isinstance(module, LearnedDepth):
        return _unrolled(module)
    if isinstance(module, Dag):
        return by_levels(module)
    if isinstance(module, BlockStack):
        raise Unsupported(
            f"freeze: {type(module).__name__} has no single depth yet; put "
            "`fixed(collapse(...).depth)` of it in its place"
        )
    if isinstance(module, _BESIDE):
        return module  # what it folds into stands beside it, in the Sequential that holds it
    done: dict[int, nn.Module] = {}  # a module may stand in several places
    for name, child in list(module._modules.items()):
        if child is None:
            continue
        if isinstance(child, _BESIDE) and type(module) is not nn.Sequential:
            kind = type(child).__name__
            holder = type(module).__name__
            raise Unsupported(
                f"freeze: '{name}' of {holder} is a {kind} outside a Sequential; put it in one"
            )
        done[id(child)] = done[id(child)] if id(child) in done else _folded(child)
        setattr(module, name, done[id(child)])
    return _fused(module) if type(module) is nn.Sequential else module


def _unrolled(depth: LearnedDepth) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if depth.merge not in _KEPT:
        name = getattr(depth.merge, "__name__", depth.merge)
        raise Unsupported(
            f"freeze: the merge '{name}' is not affine and cannot be folded; use residual or convex"
        )
    gates = depth.gates().tolist()
    for i in range(depth.active_blocks):
        layers[f"block{i + 1}"] = fold_block(
            depth.blocks[i], gates[i], _KEPT[depth.merge](gates[i])
        )
        layers[f"relu{i + 1}" if isinstance(depth.h, nn.ReLU) else f"h{i + 1}"] = copy.deepcopy(
            depth.h
        )
    return nn.Sequential(layers or OrderedDict(h=copy.deepcopy(depth.h)))


def _fused(module: nn.Sequential) -> nn.Sequential:
    """Norms into the layer before them; no dropout, no identity, no ReLU of a ReLU; nested
    Sequentials side by side.
    """
    kept: list[tuple[str, nn.Module]] = []
    for name, layer in _flat(module, ""):
        last = kept[-1][1] if kept else None
        if isinstance(layer, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)):
            continue
        if isinstance(layer, nn.ReLU) and _nonnegative(kept):
            continue
        if isinstance(last, LearnedWidth):
            kept.pop()
            layer = _scaled_reader(layer, last)
        if isinstance(layer, (Linked, LKSine)):
            kept[-1:] = [(kept[-1][0] if kept else "", _mirrored(last, layer))]
            layer = _base(layer, kept[-1][1])
        if isinstance(layer, LearnedWidth) and (at := _producer(kept)) is not None:
            kept[at] = (kept[at][0], _scaled_maker(kept[at][1], layer))
            continue
        if (
            isinstance(layer, _NORM)
            and layer.running_mean is not None
            and isinstance(last, (nn.Linear, *_CONV))
        ):
            kept[-1] = (kept[-1][0], _fuse(last, layer))
        else:
            kept.append((name, layer))
    if kept and isinstance(kept[-1][1], LearnedWidth):
        raise Unsupported(
            f"freeze: a LearnedWidth after {kept[-2][0] if kept[1:] else 'the input'} stands last; "
            f"{_WIDTH_HINT}"
        )
    return nn.Sequential(OrderedDict(kept))


_BESIDE = (LearnedWidth, Linked, LKSine)


def _mirrored(maker: Any, linked: nn.Module) -> nn.Module:
    """A layer that makes [z, -z] where it made z: what a linked activation says, said by rows."""
    able = isinstance(maker, (nn.Linear, *_CONV)) and getattr(maker, "groups", 1) == 1
    if not able or isinstance(linked, LKSine) or not _by_features(maker, linked):
        raise Unsupported(
            f"freeze: {type(linked).__name__} after {type(maker).__name__} has no plain form; put "
            "a mirror linkage right behind a Linear or Conv (with groups=1), or behind its batch "
            "norm, along its features"
        )
    maker.weight = nn.Parameter(torch.cat([maker.weight, -maker.weight]))
    if maker.bias is not None:
        maker.bias = nn.Parameter(torch.cat([maker.bias, -maker.bias]))
    for size in ("out_features", "out_channels"):
        if hasattr(maker, size):
            setattr(maker, size, len(maker.weight))
    return maker  # type: ignore[no-any-return]


@torch.no_grad()
def _count_from_the_end(model: nn.Module, example: Tensor | tuple[Any, ...]) -> None:
    """Let every linked activation and learned width say its units' dimension as the layer beside it
    does, whatever the rank.
    """

    def count(module: Any, inputs: tuple[Tensor, ...]) -> None:
        shape = inputs[0].shape
        dim = unit_dim(shape, module.dim, type(module).__name__)
        if isinstance(module, LKPReLU) and dim != 1:
            raise Unsupported(
                f"freeze: LKPReLU along dimension {dim} has no plain form: nn.PReLU has its slopes "
                "along dimension 1; use another linked activation there"
            )
        module.dim = dim - len(shape)

    handles = [
        module.register_forward_pre_hook(count)
        for module in model.modules()
        if isinstance(module, _BESIDE)
    ]
    try:
        if handles:
            model(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for handle in handles:
            handle.remove()


def _by_features(layer: Any, beside: Any) -> bool:
    """Whether the units of a linked activation or a learned width are the features of the layer
    beside it.
    """
    return beside.dim in (None, 1 - layer.weight.dim() if isinstance(layer, _CONV) else -1)


def _base(linked: Any, maker: Any) -> nn.Module:
    """The activation of both halves at once."""
    half = len(maker.weight) // 2
    if isinstance(linked, LKPReLU):
        if linked.positive.dim() > 1:
            raise Unsupported(
                "freeze: LKPReLU with a slope for each element has no plain form; use one for each "
                "unit"
            )
        plain = nn.PReLU(2 * half).to(linked.positive)
        plain.weight.copy_(
            torch.cat([slope.expand(half) for slope in (linked.positive, linked.negative)])
        )
        return plain
    if not isinstance(linked.base, nn.Module):
        raise Unsupported(
            f"freeze: Linked({linked.base}) links a function; link a module, such as nn.ReLU()"
        )
    return linked.base


_WIDTH_HINT = (
    "put it right before a Linear or Conv, or after one with nothing but ReLU, LeakyReLU and "
    "pooling between"
)
_HOMOGENEOUS = (
    *(module for module, kind in MODULES.items() if kind.homogeneous),
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
)
_NONNEGATIVE = tuple(module for module, kind in MODULES.items() if kind.nonnegative)


def _producer(kept: list[tuple[str, nn.Module]]) -> int | None:
    """The place of the affine layer whose outputs arrive here scaled as they leave it, for factors
    that are not negative.
    """
    for place in range(len(kept) - 1, -1, -1):
        if isinstance(kept[place][1], (nn.Linear, *_CONV)):
            return place
        if not isinstance(kept[place][1], _HOMOGENEOUS):
            return None
    return None


def _scaled_maker(layer: Any, width: LearnedWidth) -> nn.Module:
    """The gates of `width` in the rows of a layer's weight and in its bias."""
    if not _by_features(layer, width):
        raise Unsupported(
            f"freeze: a LearnedWidth of dim={width.dim} behind {layer} does not gate its features; "
            f"{_WIDTH_HINT}"
        )
    gates = width.gates().to(layer.weight.dtype)
    layer.weight = nn.Parameter(layer.weight * gates.view(-1, *[1] * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias * gates)
    return layer  # type: ignore[no-any-return]


def _scaled_reader(layer: Any, width: LearnedWidth) -> nn.Module:
    """The gates of `width` in the columns of the layer that reads it."""
    if (
        not isinstance(layer, (nn.Linear, *_CONV))
        or getattr(layer, "groups", 1) > 1
        or not _by_features(layer, width)
    ):
        raise Unsupported(
            f"freeze: a LearnedWidth before {type(layer).__name__} cannot be folded; {_WIDTH_HINT}"
        )
    gates = width.gates().to(layer.weight.dtype)
    layer.weight = nn.Parameter(layer.weight * gates.view(1, -1, *[1] * (layer.weight.dim() - 2)))
    return layer


def _fuse(layer: nn.Module, norm: Any) -> nn.Module:
    fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
    return fuse(layer, norm)  # type: ignore[no-any-return]


def _nonnegative(kept: list[tuple[str, nn.Module]]) -> bool:
    """Whether what comes out of the kept layers is never below 0: an activation's output, possibly
    pooled or flattened.
    """
    for _, layer in reversed(kept):
        if isinstance(layer, _NONNEGATIVE):
            return True
        if not isinstance(layer, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Flatten)):
            return False
    return False


def _flat(module: nn.Sequential, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module._modules.items():
        assert child is not None
        if type(child) is nn.Sequential:
            yield from _flat(child, f"{prefix}{name}_")
        else:
            yield f"{prefix}{name}", child


def _require_same_size(layer: Any) -> None:
    same = layer.padding == "same" or all(
        2 * p == d * (k - 1)
        for p, d, k in zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)
    )
    if not same or any(s != 1 for s in layer.stride) or any(k % 2 == 0 for k in layer.kernel_size):
        raise Unsupported(
            f"freeze: {layer} changes the map's size, so an identity cannot be added to it"
        )


def _drop_dead(model: nn.Module, example: Tensor | tuple[Any, ...]) -> int:
    """Remove units that nothing reads (all outgoing weights 0) or that nothing feeds and that have
    no bias. How many.
    """
    try:
        graph = trace(model, example)
        found = widths(graph)
    except Unsupported:
        return 0
    zero_stays = all(_zero_stays(node) for node in graph.nodes)
    count = 0
    for width in found.values():
        if width.fixed or width.not_preserved:
            continue
        drop = _dead(model, found, width, zero_stays)
        size = live_size(found, width.name, tensors_of(model))
        if drop := drop[: size - 1]:
            apply_(model, plan(model, found, [Shrink(width.name, drop)]))
            count += len(drop)
    return count


def _dead(
    model: nn.Module, found: Mapping[str, Width], width: Width, zero_stays: bool
) -> list[int]:
    """Units of a width that nothing reads, and, where `zero_stays`, those that are 0 whatever the
    input.
    """
    tensors = tensors_of(model)
    alone = [s for s in width.slots if len(s.spans) == 1]
    if len(alone) != len(width.slots) or any(
        s.role not in ("in", "out", "bias") for s in width.slots
    ):
        return []
    if not any(slot.role == "in" for slot in width.slots):
        return []
    size = live_size(found, width.name, tensors)
    reads = torch.zeros(size, dtype=torch.bool)
    makes = torch.zeros(size, dtype=torch.bool)
    for slot in alone:
        entries = tensors[slot.tensor].detach().movedim(slot.dim, 0).reshape(size, -1)
        used = (entries != 0).any(1).cpu()
        if slot.role == "in":
            reads |= used
        else:
            makes |= used
    return [int(i) for i in (~reads | (~makes if zero_stays else False)).nonzero().flatten()]


def _zero_stays(node: Node) -> bool:
    """Whether what is 0 (a unit without input and bias) is still 0 after this operation, or is read
    by it.
    """
    if node.kind in ("add", "add_"):
        return all(isinstance(arg, Ref) for arg in node.args)
    return node.op in ("input", "tensor", "output") or node.kind in _READS or keeps_zero(node)


def _run(model: nn.Module, example: Tensor | tuple[Any, ...]) -> Tensor:
    with eval_mode(model):
        result = model(*(example if isinstance(example, tuple) else (example,)))
    if not isinstance(result, Tensor):
        raise Unsupported(
            f"freeze: the network returns a {type(result).__name__}; give one that returns a "
            "single tensor"
        )
    return result


def _as(example: Tensor | tuple[Any, ...], dtype: torch.dtype) -> Tensor | tuple[Any, ...]:
    if isinstance(example, tuple):
        return tuple(_as(e, dtype) for e in example)
    return (
        example.to(dtype)
        if isinstance(example, Tensor) and example.is_floating_point()
        else example
    )
