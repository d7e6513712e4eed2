"""Models that are spread over processes: what changes one of their copies alone is refused."""

import gc

import torch.distributed as dist
from torch import nn

from morphogen.errors import PlanError, Unsupported


def refuse_spread(model: nn.Module) -> None:
    """Raises `Unsupported` for a sharded model, and `PlanError` for one inside
    DistributedDataParallel.
    """
    for name, parameter in model.named_parameters():
        if type(parameter.data).__name__ == "DTensor":
            raise Unsupported(
                f"'{name}' is sharded over processes (a DTensor, as under FSDP2): its shape cannot "
                "change there; gather the full state, resize the plain model, and call "
                "fully_shard again"
            )
    if wrapper := _wrapper(model):
        raise PlanError(
            f"{type(model).__name__} is inside a {type(wrapper).__name__}: changed on one rank "
            "alone, or with other draws, its replicas drift apart, and the wrapper goes on "
            "reducing gradients of the old sizes; call resize_distributed(ddp, edits, ...) on "
            "every rank, with asked(ddp.module) for what learned layers want"
        )


def _wrapper(model: nn.Module) -> nn.Module | None:
    """The DistributedDataParallel that the model is, holds or stands in; None without one.

    A wrapped module knows nothing of its wrapper, so all objects are looked through, where
    processes talk at all.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    kind = nn.parallel.DistributedDataParallel
    if own := next((module for module in model.modules() if isinstance(module, kind)), None):
        return own

    def holder() -> nn.Module | None:
        for wrapper in gc.get_objects():
            live = issubclass(type(wrapper), kind) and not getattr(wrapper, RESIZING, False)
            if live and any(module is model for module in wrapper.modules()):
                return wrapper  # type: ignore[no-any-return]
        return None

    if holder() is None:
        return None
    gc.collect()  # a wrapper that nobody holds any more may still lie about
    return holder()


RESIZING = "_morphogen_resizing"
"""Set on a wrapper while `resize_distributed` resizes what it holds."""
