"""Whether a model is still what it was, and taking changes undo_stack: `seen(tensors, touched)`,
`rollback(undo_stack)`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer

from morphogen.random_state import surely
from morphogen.tracing.modes import forgive, writes

UndoStack = list[Callable[[], Any]]
"""What takes changes back, the newest last. Each step is there before its change, and does no harm
when run twice.
"""


def rollback(undo_stack: UndoStack) -> None:
    """Take everything back, the newest first. An interruption is raised once all of it is back."""

    def rest() -> None:
        while undo_stack:
            undo_stack[-1]()
            undo_stack.pop()

    surely(rest)


@contextmanager
def all_or_nothing(undo_stack: UndoStack) -> Iterator[None]:
    """What fails, or is interrupted, inside is taken back."""
    recording = torch.is_grad_enabled()
    try:
        yield
    except BaseException:
        # an interruption may come between the end of no_grad and what it does there
        torch.set_grad_enabled(recording)
        rollback(undo_stack)
        raise


@dataclass(frozen=True)
class Put:
    """Gives a tensor other data and another gradient; `count` writes to it (see `writes`) stay what
    others did.
    """

    tensor: Tensor
    data: Tensor
    grad: Tensor | None
    count: int

    def __call__(self) -> None:
        tensor = self.tensor
        data = self.data
        tensor.grad = None  # before the data: a gradient of another shape may not stand beside it
        # Assigning another type makes autograd forget the tensor's gradient accumulator. It
        # remembers the old shape and lives as long as any older graph, such as that of the `loss`
        # which a training loop still holds.
        other = torch.float32 if data.dtype == torch.float16 else torch.float16
        tensor.data = torch.empty(0, dtype=other, device=data.device)
        tensor.data = data
        tensor.grad = self.grad
        if tensor.is_floating_point():
            # raises the version: a backward through an older graph now fails instead of being wrong
            tensor.detach().mul_(1)
        forgive(tensor, self.count)


@dataclass(frozen=True)
class PutState:
    """Gives an optimizer its state of a parameter."""

    optimizer: Optimizer
    tensor: Tensor
    state: dict[str, Any]

    def __call__(self) -> None:
        self.optimizer.state[self.tensor] = self.state


@dataclass(frozen=True)
class _Mark:
    """A tensor at one time. bits: of its values; None where storage and number of writes stand for
    them.
    """

    shape: torch.Size
    dtype: torch.dtype
    bits: Tensor | None
    place: tuple[Any, ...]


def seen(
    tensors: Mapping[str, Tensor], undo_stack: UndoStack
) -> Callable[[Mapping[str, Tensor]], str]:
    """Marks what a model's tensors hold now, and what `undo_stack` puts back. The result says,
    given the model's tensors later, what has changed since; "" where nothing has.

    The values of buffers and of tensors that are put back are compared; of other parameters,
    whether they still hold the same memory and were written to.
    """
    touched = {id(step.tensor): step.tensor for step in undo_stack if isinstance(step, Put)}
    marks = {name: _mark(tensor, id(tensor) in touched) for name, tensor in tensors.items()}
    known = {id(tensor) for tensor in tensors.values()}
    # such as an average's
    others = [(tensor, _mark(tensor, True)) for key, tensor in touched.items() if key not in known]
    pairs = [(step.optimizer, step.tensor) for step in undo_stack if isinstance(step, PutState)]
    states = [(optimizer, tensor, _state(optimizer, tensor)) for optimizer, tensor in pairs]

    def changed(live: Mapping[str, Tensor]) -> str:
        if odd := sorted(live.keys() ^ marks.keys()):
            return f"'{odd[0]}'"
        for name, tensor in live.items():
            if not _holds(tensor, marks[name]):
                return f"'{name}'"
        if any(not _holds(tensor, mark) for tensor, mark in others):
            return "an average of the model"
        if any(
            not _stands(_state(optimizer, tensor), state) for optimizer, tensor, state in states
        ):
            return "an optimizer's state"
        return ""

    return changed


def _mark(tensor: Tensor, values: bool) -> _Mark:
    # batch norm updates its statistics without a new version
    exact = values or not isinstance(tensor, nn.Parameter)
    return _Mark(tensor.shape, tensor.dtype, bits_of(tensor) if exact else None, _place(tensor))


def _holds(tensor: Tensor, mark: _Mark) -> bool:
    if tensor.shape != mark.shape or tensor.dtype != mark.dtype:
        return False
    return (
        _place(tensor) == mark.place
        if mark.bits is None
        else torch.equal(bits_of(tensor), mark.bits.to(tensor.device))
    )


def _place(tensor: Tensor) -> tuple[Any, ...]:
    try:
        # a weak reference keeps the address from being given to another storage
        storage: Any = StorageWeakRef(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):
        storage = None  # such as a sparse tensor
    return storage, tensor.stride(), tensor.storage_offset(), writes(tensor)


def _state(optimizer: Optimizer, tensor: Tensor) -> dict[str, tuple[Any, int]]:
    state = optimizer.state.get(tensor, {})
    return {
        key: (value, value._version if isinstance(value, Tensor) else 0)
        for key, value in state.items()
    }


def _stands(now: dict[str, tuple[Any, int]], then: dict[str, tuple[Any, int]]) -> bool:
    """Whether it is the same tensors, not written to, and the same numbers."""
    if now.keys() != then.keys():
        return False
    pairs = [(*now[key], *then[key]) for key in now]
    return all(
        a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b for a, _, b, _ in pairs
    ) and all(one == other for _, one, _, other in pairs)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PIECE = 2**20


def bits_of(tensor: Tensor) -> Tensor:
    """A number that tells tensors of one shape and type apart by their bits and where these stand,
    on every device alike.
    """
    values = tensor.detach()
    if values.is_meta:
        return torch.zeros((), dtype=torch.int64)
    values = torch.view_as_real(values) if values.is_complex() else values
    values = values.to_dense() if values.layout != torch.strided else values
    flat = values.reshape(-1).view(_INTEGERS[values.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    weights = (
        torch.arange(min(_PIECE, max(1, len(flat))), dtype=torch.int64, device=flat.device)
        * 2654435761
        + 1
    )
    for piece in flat.split(_PIECE):
        total = total * 6364136223846793005 + (piece.long() * weights[: len(piece)]).sum()
    return total
