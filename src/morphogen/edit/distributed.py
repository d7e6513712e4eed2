"""Resize under DistributedDataParallel: the same plan on every rank, or on none:
`resize_distributed(ddp, edits, ...)`.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from morphogen.edit.apply import Applied, resize
from morphogen.edit.edit import Edit, edit_to_dict
from morphogen.edit.replicas import RESIZING
from morphogen.edit.watch import all_or_nothing, bits_of, rollback
from morphogen.errors import PlanError, Unsupported

# How a wrapper's arguments are read back from it. What this table does not know, and the wrapper
# does not show, is refused.
ARGUMENTS: Mapping[str, Callable[[Any], Any]] = {
    "module": lambda ddp: ddp.module,
    "device_ids": lambda ddp: ddp.device_ids,
    "output_device": lambda ddp: ddp.output_device,
    "dim": lambda ddp: ddp.dim,
    # by name where there is no newer one: that alone would write to the buffers
    "broadcast_buffers": lambda ddp: (
        None if hasattr(ddp, "forward_sync_buffers") else ddp.broadcast_buffers
    ),
    "forward_sync_buffers": lambda ddp: ddp.forward_sync_buffers,
    "init_sync": lambda ddp: False,  # the replicas are compared instead, and nothing is written
    "process_group": lambda ddp: None if hasattr(ddp, "device_mesh") else ddp.process_group,
    "device_mesh": lambda ddp: getattr(ddp, "device_mesh", None),
    "bucket_cap_mb": lambda ddp: (
        None if ddp.bucket_bytes_cap_default else ddp.bucket_bytes_cap / 2**20
    ),
    "bucket_cap_mb_list": lambda ddp: [cap / 2**20 for cap in ddp.bucket_bytes_cap_list] or None,
    "find_unused_parameters": lambda ddp: ddp.find_unused_parameters,
    "check_reduction": lambda ddp: False,  # PyTorch does nothing with it
    "gradient_as_bucket_view": lambda ddp: ddp.gradient_as_bucket_view,
    "static_graph": lambda ddp: ddp.static_graph,
    "skip_all_reduce_unused_params": lambda ddp: ddp.skip_all_reduce_unused_params,
    "batched_grad_copy": lambda ddp: ddp.batched_grad_copy,
    "delay_all_reduce_named_params": lambda ddp: _unset(
        ddp._delay_all_reduce_params or None, "delay_all_reduce_named_params"
    ),
    "param_to_hook_all_reduce": lambda ddp: None,  # goes with the one above
    "mixed_precision": lambda ddp: _unset(ddp.mixed_precision, "mixed_precision"),
}
_BUILT_IN = "BuiltinCommHookType."


def resize_distributed(
    ddp: DistributedDataParallel, edits: Iterable[Edit], *, seed: int = 0, **arguments: Any
) -> tuple[DistributedDataParallel, Applied]:
    """Resize on all ranks alike, and let the wrapper reduce the gradients of the new sizes. The
    wrapper, returned again, stays the one that it was, with its arguments, hooks and communication
    hooks (PowerSGD begins anew, its memory has old shapes).

    Every rank calls it with equal edits, and so `undo()` of what is returned. seed: of the new
    units' values, rank 0's counts, so all ranks draw the same. arguments: those of `resize`, such
    as `example` and `optimizers`. Raises `PlanError` on every rank, with nothing changed on any,
    where edits or arguments differ between ranks, one of them cannot carry them out, or the
    replicas differ afterwards; `Unsupported` for a wrapper that cannot be set up again.
    """
    edits = tuple(edits)
    group = ddp.process_group
    options = _arguments(ddp)
    _refuse_different(_gathered(_said(edits, arguments), group))
    generator = torch.Generator().manual_seed(_gathered(seed, group)[0])
    applied, fault = _resized_here(ddp, edits, generator, arguments)
    said = str(fault) or type(fault).__name__ if fault else ""
    faults = {rank: text for rank, text in enumerate(_gathered(said, group)) if text}
    odd_name = "" if faults else _apart(ddp, arguments.get("optimizers", ()), group)
    if faults or odd_name:
        if applied is not None:
            rollback(applied._undo_stack)
        # tensors that went and came back have left the old reducer, which would not reduce them any
        # more
        _wrap(ddp, options)
        if fault is not None and not isinstance(fault, Exception):
            raise fault
        rank = min(faults, default=0)
        why = (
            f"rank {rank} says: {faults[rank]}"
            if faults
            else f"'{odd_name}' is not the same on all ranks"
        )
        raise PlanError(f"resize_distributed: nothing was changed on any rank; {why}")
    assert applied is not None
    applied._undo_stack.insert(0, partial(_wrap, ddp, options))  # the last that is taken back
    with all_or_nothing(applied._undo_stack):
        _wrap(ddp, options)
    return ddp, replace(applied, _changed=partial(_changed_anywhere, applied._changed, group))


def _refuse_different(said: Sequence[Mapping[str, Any]]) -> None:
    """Raises `PlanError` where a rank says something else than rank 0."""
    for rank, other in enumerate(said):
        if odd := [what for what in said[0] if other[what] != said[0][what]]:
            raise PlanError(
                f"resize_distributed: ranks ask for different {odd[0]}: rank 0 {said[0][odd[0]]}, "
                f"rank {rank} {other[odd[0]]}; draw them from one seed, or let rank 0 decide and "
                "send them to all"
            )


def _resized_here(
    ddp: DistributedDataParallel,
    edits: Sequence[Edit],
    generator: torch.Generator,
    arguments: Mapping[str, Any],
) -> tuple[Applied | None, BaseException | None]:
    """What the resize of this rank's replica gave, or what stopped it, an interruption too: the
    other ranks wait for a word.
    """
    setattr(ddp, RESIZING, True)
    try:
        return resize(ddp.module, edits, generator=generator, **arguments), None
    except BaseException as error:
        return None, error
    finally:
        delattr(ddp, RESIZING)


def _said(edits: Sequence[Edit], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All that must be the same on every rank, as plain values."""
    inits = arguments.get("inits") or {}
    return {
        "edits": [edit_to_dict(edit) for edit in edits],
        "arguments": sorted(arguments),
        "new_state_fraction": repr(arguments.get("new_state_fraction")),
        "inits": {
            role: getattr(init, "__qualname__", type(init).__name__) for role, init in inits.items()
        },
        "values": {
            name: int(bits_of(value)) for name, value in (arguments.get("values") or {}).items()
        },
        "numbers of optimizers and averages": [
            len(arguments.get(name, ())) for name in ("optimizers", "ema")
        ],
    }


def _apart(ddp: DistributedDataParallel, optimizers: Sequence[Optimizer], group: Any) -> str:
    """A parameter that is not the same on all ranks, or whose state is not; "" where all are."""
    held: dict[str, Tensor] = {}
    for name, parameter in ddp.module.named_parameters():
        if name in ddp.parameters_to_ignore:
            continue
        held[name] = parameter
        for number, optimizer in enumerate(optimizers):
            state = optimizer.state.get(parameter, {})
            held |= {
                f"{name} ({key} of optimizer {number})": v
                for key, v in state.items()
                if isinstance(v, Tensor)
            }
    numbers = (
        torch.stack([bits_of(tensor).cpu() for tensor in held.values()]).tolist() if held else []
    )
    shapes = [tuple(tensor.shape) for tensor in held.values()]
    mine = dict(zip(held, zip(numbers, shapes, strict=True), strict=True))
    everyone = _gathered(mine, group)
    names = dict.fromkeys(name for other in everyone for name in other)
    # an optimizer may keep only its rank's part of the state
    return next(
        (name for name in names if len({other[name] for other in everyone if name in other}) > 1),
        "",
    )


def _changed_anywhere(changed: Callable[[], str], group: Any) -> str:
    """What stands against an undo, on any rank."""
    said = _gathered(changed(), group)
    return next((f"{what} on rank {rank}" for rank, what in enumerate(said) if what), "")


def _arguments(ddp: DistributedDataParallel) -> dict[str, Any]:
    """What the wrapper was made with. Raises `Unsupported` for what cannot be read back."""
    options = {}
    for name in list(inspect.signature(DistributedDataParallel.__init__).parameters)[1:]:
        if name not in ARGUMENTS and not hasattr(ddp, name):
            raise Unsupported(
                f"resize_distributed: this PyTorch's DistributedDataParallel takes '{name}', which "
                "cannot be read back from it"
            )
        options[name] = ARGUMENTS[name](ddp) if name in ARGUMENTS else getattr(ddp, name)
    return options


def _unset(value: Any, name: str) -> None:
    if value is not None:
        raise Unsupported(
            f"resize_distributed: a wrapper with {name} keeps tensors and hooks of the old sizes; "
            "build it without (torch.autocast gives mixed precision)"
        )


def _wrap(ddp: DistributedDataParallel, options: Mapping[str, Any]) -> None:
    """Set the wrapper up again around its module as that is now."""
    before = dict(vars(ddp))
    hooks = list(ddp._comm_hooks)
    built_in = _built_in_hook(ddp)
    # what the old reducer listens to would otherwise fire beside the new one's
    ddp._remove_autograd_hooks()
    DistributedDataParallel.__init__(ddp, **options)
    own = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_modules"}
    for name, value in before.items():
        if name in own or name == "require_backward_grad_sync" or name not in vars(ddp):
            setattr(ddp, name, value)
    for hook, state in hooks:
        _begun_anew(state)
        ddp.register_comm_hook(state, hook)
    if built_in is not None:
        ddp._register_builtin_comm_hook(built_in)


def _built_in_hook(ddp: DistributedDataParallel) -> Any:
    """The hook of PyTorch's own that compresses gradients; only the wrapper's log knows it."""
    name = str(ddp._get_ddp_logging_data().get("comm_hook", ""))
    if not name.startswith(_BUILT_IN):
        return None
    return getattr(vars(dist)["BuiltinCommHookType"], name.removeprefix(_BUILT_IN))


def _begun_anew(state: Any) -> None:
    """PowerSGD remembers errors and factors by bucket, whose sizes change."""
    if type(state).__name__ == "PowerSGDState":
        for remembered in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            remembered.clear()
        state.iter = 0  # plain reduction for its first steps, while buckets settle


def _gathered(value: Any, group: Any) -> list[Any]:
    """Every rank's value, on every rank."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values
