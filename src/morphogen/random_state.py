"""Random numbers of our own: what the user's generators hold is afterwards what it was before."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

Made = TypeVar("Made")

ALONE = threading.RLock()
"""Held while a model is traced or resized: torch.export and the random state are the process's, not
a thread's.
"""

_TRIES = 3


def surely(step: Callable[[], None]) -> None:
    """Run a step that does no harm when run twice; an interruption, such as Ctrl-C, is raised once
    it is done.
    """
    stopped: BaseException | None = None
    for _ in range(_TRIES):
        try:
            step()
            break
        except BaseException as error:
            stopped = stopped or error
    if stopped is not None:
        raise stopped


@contextmanager
def afterwards(put: Callable[[], None]) -> Iterator[None]:
    """Put something back whatever happens, an interruption while it is put back included."""
    try:
        yield
    finally:
        try:
            put()
        except BaseException:
            surely(put)
            raise


@contextmanager
def random_kept(seed: int | None = None) -> Iterator[None]:
    """Afterwards torch, Python and NumPy draw as if nothing had been drawn. seed: of all of them in
    between. One thread at a time: the generators are the process's.
    """
    with ALONE:
        yield from _random_kept(seed)


def _random_kept(seed: int | None) -> Iterator[None]:
    state = torch.get_rng_state()
    python = random.getstate()
    others = np.random.get_state()
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def put() -> None:
        torch.set_rng_state(state)
        random.setstate(python)
        np.random.set_state(others)
        if cards:
            torch.cuda.set_rng_state_all(cards)

    with afterwards(put):
        if seed is not None:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
        yield


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
