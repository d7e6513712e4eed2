"""Random numbers of our own: what the user's generators hold is afterwards what it was before."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

Made = TypeVar("Made")


@contextmanager
def own_draws(
    seed: int | None = None, of: nn.Module | torch.device | str = "cpu"
) -> Iterator[None]:
    """Whatever draws from torch's global generators in here, as dropout and the initialisation of
    modules do, leaves no trace.

    seed: what they draw from, None for the state as it is. of: the device whose generator this is
    about beside the CPU's, or a module on it. `torch.manual_seed` would reseed every device of the
    machine, for good.
    """
    devices = (
        {p.device for p in of.parameters()} if isinstance(of, nn.Module) else {torch.device(of)}
    )
    others = sorted((d for d in devices if d.type not in ("cpu", "meta")), key=str)
    with torch.random.fork_rng(devices=others, device_type=others[0].type if others else "cuda"):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            for device in others:
                getattr(torch, device.type).set_rng_state(
                    torch.Generator(device).manual_seed(seed).get_state(), device
                )
        yield


def undrawn(build: Callable[..., Made], *given: Any, **named: Any) -> Made:
    """What `build` makes: a layer whose numbers are put in afterwards, so that what it draws for
    them is for nothing.
    """
    with own_draws():
        return build(*given, **named)
