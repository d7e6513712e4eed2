"""Resize under DistributedDataParallel: the same plan on every rank, or on none: `resize_distributed(ddp, edits, ...)`."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from morphogen.errors import MorphogenError, PlanError
from morphogen.resize.apply import Applied, resize
from morphogen.resize.edit import Edit


def resize_distributed(
    ddp: DistributedDataParallel, edits: Iterable[Edit], *, seed: int = 0, **arguments: Any
) -> tuple[DistributedDataParallel, Applied]:
    """Unwrap, resize on all ranks alike, wrap again. Use the returned model; the old wrapper is dead.

    Every rank calls it with equal edits. seed: of the new units' values, rank 0's counts, so all ranks draw the same.
    arguments: those of `resize`, such as `example` and `optimizers`. Raises `PlanError` on every rank, with nothing
    changed on any, where the edits differ between ranks or one of them cannot carry them out.
    """
    edits, group = tuple(edits), ddp.process_group
    said = _gathered([str(edit) for edit in edits], group)
    if any(other != said[0] for other in said):
        raise PlanError(f"resize_distributed: ranks ask for different edits: {said}; draw them from one seed")
    generator = torch.Generator().manual_seed(_gathered(seed, group)[0])
    applied, fault = None, ""
    try:
        applied = resize(ddp.module, edits, generator=generator, **arguments)
    except MorphogenError as error:
        fault = str(error)
    faults = {rank: text for rank, text in enumerate(_gathered(fault, group)) if text}
    if faults:
        if applied is not None:
            applied.undo()
        raise PlanError(f"resize_distributed: nothing was changed on any rank; rank {min(faults)} says: {faults[min(faults)]}")
    assert applied is not None
    # what the old wrapper listens to would otherwise fire beside the new one's
    ddp._remove_autograd_hooks()
    again = DistributedDataParallel(
        ddp.module,
        device_ids=ddp.device_ids,
        output_device=ddp.output_device,
        dim=ddp.dim,
        broadcast_buffers=ddp.broadcast_buffers,
        process_group=group,
        find_unused_parameters=ddp.find_unused_parameters,
        gradient_as_bucket_view=ddp.gradient_as_bucket_view,
        static_graph=ddp.static_graph,
    )
    return again, applied


def _gathered(value: Any, group: Any) -> list[Any]:
    """Every rank's value, on every rank."""
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found
