"""The sizes that modules keep as attributes beside their tensors, such as `in_features`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from morphogen.edit.follow import followed
from morphogen.edit.watch import UndoStack
from morphogen.layers.protocol import keeps_sizes

# The sizes that modules keep beside their tensors, read back from the tensors after a resize.
_SIZES: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = {
    nn.Linear: lambda m: {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]},
    nn.modules.conv._ConvNd: lambda m: _convolution(m),
    # batch and instance norms
    nn.modules.batchnorm._NormBase: lambda m: (
        {}
        if m.running_mean is None and m.weight is None
        else {"num_features": len(_first(m.weight, m.running_mean))}
    ),
    nn.GroupNorm: lambda m: {} if m.weight is None else {"num_channels": len(m.weight)},
    nn.RMSNorm: lambda m: {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)},
    nn.RNNBase: lambda m: {
        "input_size": m.weight_ih_l0.shape[1],
        "hidden_size": m.weight_hh_l0.shape[1],
    },
    nn.MultiheadAttention: lambda m: _attention(m),
    nn.LayerNorm: lambda m: {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)},
    nn.PReLU: lambda m: {"num_parameters": m.weight.shape[0]},
    nn.Embedding: lambda m: {"embedding_dim": m.weight.shape[1]},
}


def kept_sizes(module: nn.Module) -> dict[str, Any]:
    """The sizes that a module keeps as attributes, as its tensors say they should be."""
    kept: dict[str, Any] = {}
    for kind, sizes in _SIZES.items():
        if isinstance(module, kind):
            kept |= sizes(module)
    return {**kept, **module.tensor_sizes()} if keeps_sizes(module) else kept


def attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The sizes that all modules keep, and the groups of convolutions, by module."""
    sizes_of = {name: kept_sizes(module) for name, module in model.named_modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            sizes_of[name]["groups"] = module.groups
    for name, attribute, value in followed(model):
        sizes_of[name][attribute] = value
    return {name: sizes for name, sizes in sizes_of.items() if sizes}


def refresh_sizes(model: nn.Module, undo_stack: UndoStack) -> None:
    """Set them; what takes it back is appended to `undo_stack`."""
    for module in model.modules():
        for attribute, value in kept_sizes(module).items():
            if (old := getattr(module, attribute)) != value:
                undo_stack.append(lambda m=module, a=attribute, v=old: setattr(m, a, v))  # type: ignore[misc]
                setattr(module, attribute, value)


def _convolution(m: Any) -> dict[str, Any]:
    makes, reads = m.weight.shape[:2]
    if isinstance(m, nn.modules.conv._ConvTransposeNd):
        return {"in_channels": makes, "out_channels": reads * m.groups}
    return {"out_channels": makes, "in_channels": reads * m.groups}


def _attention(m: nn.MultiheadAttention) -> dict[str, Any]:
    size = m.out_proj.weight.shape[0]
    key, value = (
        (m.k_proj_weight, m.v_proj_weight) if m.in_proj_weight is None else (m.in_proj_weight,) * 2
    )
    return {
        "embed_dim": size,
        "head_dim": size // m.num_heads,
        "kdim": key.shape[1],
        "vdim": value.shape[1],
    }


def _first(*tensors: Tensor | None) -> Tensor:
    return next(t for t in tensors if t is not None)
