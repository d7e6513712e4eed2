"""From a network that learned its structure to plain modules: gates, batch norm, dropout and dead
units folded away.
"""

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
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
from morphogen.layers.affine import AFFINE
from morphogen.layers.protocol import is_foldable, is_freezable
from morphogen.record import Certificate
from morphogen.tracing.residual import keeps_zero
from morphogen.tracing.trace import Node, Ref, eval_mode, refs, trace, users_of
from morphogen.tracing.widths import Width, widths

Example = Tensor | tuple[Any, ...]

_READS = {"linear", "conv1d", "conv2d", "conv3d"}
_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAX_POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVG_POOL = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_GONE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)
_RECTIFIERS = tuple(module for module, kind in MODULES.items() if kind.homogeneous)
# f(c x) = c f(x) for c >= 0
_HOMOGENEOUS = (*_RECTIFIERS, *_MAX_POOL, *_AVG_POOL)
_NONNEGATIVE = tuple(module for module, kind in MODULES.items() if kind.nonnegative)


def freeze(model: nn.Module, example: Example) -> tuple[nn.Module, Certificate]:
    """A copy of `model` in evaluation mode with the same function and none of morphogen's modules.

    A learned depth becomes its active blocks, each folded into one layer: for an affine f, an
    identity h + gate * BN(f(x)) is one affine map. The gates of a learned width go into the layer
    before it, through what is positively homogeneous, or into the layer right after it. A linked
    activation becomes the plain one behind a layer with mirrored rows. A `Dag` becomes one layer
    for each of its levels. Another layer says itself how it becomes plain modules, see `Freezable`
    and `Foldable` of `layers.protocol`. Batch norm after a linear or convolution layer in a
    `Sequential` is folded into it, dropout goes, and so do units that are constant or that nothing
    reads. Sums are formed in float64 and rounded once.

    The certificate states the largest difference on `example`, in the model's own precision. Raises
    `Unsupported` for a layer that cannot be folded, and `NotExact` where the difference exceeds
    rounding with both in float64, see `certify.RELATIVE`; in float32 also 1e-5 of the largest
    output, or ten times the rounding of the given model where that is larger.
    """
    plain = copy.deepcopy(model).eval().double()
    wide = _as(example, torch.float64)
    _count_from_the_end(plain, wide)
    plain = _folded(plain)
    with torch.no_grad():
        dead = _drop_dead(plain, wide)
        reference = _run(copy.deepcopy(model).eval().double(), wide)
        require_equal("freeze", reference, _run(plain, wide))
        plain = plain.to(_dtype_of(model)).train(False)
        given = _run(model, example)
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    reason = (
        "batch norm, gates and identities are affine in evaluation mode and were multiplied out"
    )
    if dead:
        reason += f"; {dead} dead units dropped"
    return plain, certify(
        "freeze",
        lambda _: given,
        partial(_run, plain),
        example,
        reason=reason,
        allowed=_cast(given, reference),
    )


def _dtype_of(model: nn.Module) -> torch.dtype:
    """The precision of its numbers; torch's own where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


def _cast(given: Tensor, reference: Tensor) -> float | None:
    """By how much a cast to the given model's precision may move outputs that are equal in float64:
    by less than sums in another order do, unless the given model is itself that far off.
    """
    if given.dtype == torch.float64:
        return None
    scale = max(1.0, float(reference.abs().max()))
    return max(1e-5 * scale, 10 * difference(given, reference))


@torch.no_grad()
def fold_batchnorm(model: nn.Module, example: Example) -> tuple[nn.Module, Certificate]:
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
    calls = Counter(node.module for node in graph.nodes if "norm" in node.kind)
    folded = 0
    for node in graph.nodes:
        norm = modules.get(node.module)
        if node.kind != "batch_norm" or calls[node.module] > 1 or not _is_running(norm):
            continue
        before = nodes[node.args[0].name]
        layer = modules.get(before.module)
        if not isinstance(layer, AFFINE):
            continue
        if len(users[before.name]) > 1 or len(users[_weight_of(before)]) > 1:
            continue
        small.set_submodule(before.module, _fuse(layer, norm))
        small.set_submodule(node.module, nn.Identity())
        folded += 1
    return small, certify(
        "fold_batchnorm",
        partial(_run, model),
        partial(_run, small),
        example,
        reason=f"{folded} batch norms are affine and went into the layers before them",
    )


def _is_running(norm: nn.Module | None) -> bool:
    """Whether it is a batch norm with fixed averages in evaluation mode."""
    return isinstance(norm, _NORM) and norm.running_mean is not None


def _weight_of(layer: Node) -> str:
    return next(ref.name for ref in refs(layer.args[1:2]))


@torch.no_grad()
def _folded(module: nn.Module) -> nn.Module:
    """`module` with everything in it as plain modules, norms folded and dropout gone, recursively;
    Sequentials inside are flattened.
    """
    if is_freezable(module):
        return module.to_plain(_folded)
    if is_foldable(module):
        return module  # what it folds into stands beside it, in the Sequential that holds it
    done: dict[int, nn.Module] = {}  # a module may stand in several places
    for name, child in list(module._modules.items()):
        if child is None:
            continue
        if is_foldable(child) and type(module) is not nn.Sequential:
            kind = type(child).__name__
            holder = type(module).__name__
            raise Unsupported(
                f"freeze: '{name}' of {holder} is a {kind} outside a Sequential; put it in one"
            )
        if id(child) not in done:
            done[id(child)] = _folded(child)
        setattr(module, name, done[id(child)])
    return _fused(module) if type(module) is nn.Sequential else module


def _fused(module: nn.Sequential) -> nn.Sequential:
    """Norms into the layer before them, foldable layers into those beside them; no dropout, no
    identity, no ReLU of a ReLU; nested Sequentials side by side.
    """
    kept: list[tuple[str, nn.Module]] = []
    for name, layer in _flat(module, ""):
        if isinstance(layer, _GONE) or (isinstance(layer, nn.ReLU) and _nonnegative(kept)):
            continue
        last = kept[-1][1] if kept else None
        if is_foldable(last):  # no layer made its input
            last.fold_into_consumer(layer)
            kept.pop()
            last = None
        if is_foldable(layer):
            producer = _producer(kept, layer.scales_units)
            if producer is not None:
                rest = layer.fold_into_producer(producer)
                if rest is None:
                    continue
                layer = rest
        if _is_running(layer) and isinstance(last, AFFINE):
            kept[-1] = (kept[-1][0], _fuse(last, layer))
        else:
            kept.append((name, layer))
    if kept and is_foldable(kept[-1][1]):
        place = f"after {kept[-2][0]}" if kept[1:] else "after the input"
        raise Unsupported(
            f"freeze: a {type(kept[-1][1]).__name__} {place} stands last; put it where a Linear or "
            "Conv makes its input or reads its output"
        )
    return nn.Sequential(OrderedDict(kept))


def _producer(kept: Sequence[tuple[str, nn.Module]], through_homogeneous: bool) -> nn.Module | None:
    """What makes the input of a foldable layer: the last module, or, for factors that are not
    negative, the affine layer whose outputs arrive here scaled as they leave it.
    """
    if not through_homogeneous:
        return kept[-1][1] if kept else None
    for _, layer in reversed(kept):
        if isinstance(layer, AFFINE):
            return layer
        if not isinstance(layer, _HOMOGENEOUS):
            return None
    return None


@torch.no_grad()
def _count_from_the_end(model: nn.Module, example: Example) -> None:
    """Let every foldable layer say its units' dimension as the layer beside it does, whatever the
    rank.
    """

    def count(module: Any, inputs: tuple[Tensor, ...]) -> None:
        module.count_dim_from_end(inputs[0].shape)

    layers = [layer for layer in model.modules() if is_foldable(layer)]
    handles = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        if handles:
            model(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for handle in handles:
            handle.remove()


def _fuse(layer: nn.Module, norm: Any) -> nn.Module:
    fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
    return fuse(layer, norm)  # type: ignore[no-any-return]


def _nonnegative(kept: Sequence[tuple[str, nn.Module]]) -> bool:
    """Whether what comes out of the kept layers is never below 0: an activation's output, possibly
    pooled or flattened.
    """
    for _, layer in reversed(kept):
        if isinstance(layer, _NONNEGATIVE):
            return True
        if not isinstance(layer, (*_MAX_POOL, nn.Flatten)):
            return False
    return False


def _flat(module: nn.Sequential, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module._modules.items():
        assert child is not None
        if type(child) is nn.Sequential:
            yield from _flat(child, f"{prefix}{name}_")
        else:
            yield f"{prefix}{name}", child


def _drop_dead(model: nn.Module, example: Example) -> int:
    """Remove units that nothing reads (all outgoing weights 0) or that nothing feeds and that have
    no bias. How many.
    """
    try:
        graph = trace(model, example)
        known = widths(graph)
    except Unsupported:
        return 0
    zero_stays = all(_zero_stays(node) for node in graph.nodes)
    count = 0
    for width in known.values():
        if width.fixed or width.not_preserved:
            continue
        dead = _dead(model, known, width, zero_stays)
        size = live_size(known, width.name, tensors_of(model))
        drop = dead[: size - 1]
        if drop:
            apply_(model, plan(model, known, [Shrink(width.name, drop)]))
            count += len(drop)
    return count


def _dead(
    model: nn.Module, known: Mapping[str, Width], width: Width, zero_stays: bool
) -> list[int]:
    """Units of a width that nothing reads, and, where `zero_stays`, those that are 0 whatever the
    input.
    """
    roles = {slot.role for slot in width.slots}
    if "in" not in roles or not roles <= {"in", "out", "bias"}:
        return []
    if any(len(slot.spans) > 1 for slot in width.slots):
        return []
    tensors = tensors_of(model)
    size = live_size(known, width.name, tensors)
    reads = torch.zeros(size, dtype=torch.bool)
    makes = torch.zeros(size, dtype=torch.bool)
    for slot in width.slots:
        entries = tensors[slot.tensor].detach().movedim(slot.dim, 0).reshape(size, -1)
        used = (entries != 0).any(1).cpu()
        if slot.role == "in":
            reads |= used
        else:
            makes |= used
    dead = ~(reads & makes) if zero_stays else ~reads
    return dead.nonzero().flatten().tolist()


def _zero_stays(node: Node) -> bool:
    """Whether what is 0 (a unit without input and bias) is still 0 after this operation, or is read
    by it.
    """
    if node.kind in ("add", "add_"):
        return all(isinstance(arg, Ref) for arg in node.args)
    return node.op in ("input", "tensor", "output") or node.kind in _READS or keeps_zero(node)


def _run(model: nn.Module, example: Example) -> Tensor:
    with eval_mode(model):
        result = model(*(example if isinstance(example, tuple) else (example,)))
    if not isinstance(result, Tensor):
        raise Unsupported(
            f"freeze: the network returns a {type(result).__name__}; give one that returns a "
            "single tensor"
        )
    return result


def _as(example: Any, dtype: torch.dtype) -> Any:
    """Its floating point tensors in `dtype`."""
    if isinstance(example, tuple):
        return tuple(_as(part, dtype) for part in example)
    if isinstance(example, Tensor) and example.is_floating_point():
        return example.to(dtype)
    return example
