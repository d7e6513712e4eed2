"""Modes of a model, and what a look at it may not leave behind.

A branch such as `if self.training:` is in no trace of evaluation mode. `train_mode` gives the mode
to look for it, `alike` says at little cost whether there is none.
"""

import copy
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from morphogen.random_state import afterwards, random_kept


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module is in the mode it was in."""
    with modes_kept(model):
        try:
            model.eval()
        except NotImplementedError:  # an exported program, whose mode is part of it
            for module in model.modules():
                module.training = False
        yield


@contextmanager
def train_mode(model: nn.Module) -> Iterator[None]:
    """Training mode for a while, but for torch's own layers: what they do then (drop, use the
    batch's statistics and keep them) is known, and ties no sizes. Afterwards every module is in the
    mode it was in.
    """
    with modes_kept(model):
        for module in model.modules():
            module.training = not type(module).__module__.startswith("torch.nn.")
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Whatever is called in between, such as a function of the user's: afterwards every module is
    in the mode it was in.
    """
    modes = [(module, module.training) for module in model.modules()]

    def put() -> None:
        for module, mode in modes:
            if module.training != mode and type(module).train is not nn.Module.train:
                # what it does beside setting the flag, such as splitting weights that eval() merged
                module.train(mode)
        for module, mode in modes:
            module.training = mode

    with afterwards(put):
        yield


_OWN_WRITES = "_morphogen_writes"


def writes(tensor: Tensor) -> int:
    """How often a tensor was written to in place, what this library wrote and took back aside."""
    return tensor._version - getattr(tensor, _OWN_WRITES, 0)


def forgive(tensor: Tensor, count: int) -> None:
    """Count the writes since `writes` was `count` as the library's own."""
    setattr(tensor, _OWN_WRITES, tensor._version - count)


@contextmanager
def values_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Afterwards the tensors hold what they held."""
    held = [
        (tensor, tensor.detach().clone(), tensor._version, writes(tensor)) for tensor in tensors
    ]

    def put() -> None:
        for tensor, value, version, count in held:
            # batch norm updates its statistics without a new version
            if tensor._version != version or not torch.equal(tensor, value):
                tensor.data.copy_(value)
                forgive(tensor, count)

    with afterwards(put):
        yield


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards every module has the attributes it had, and lists, dictionaries and sets among
    them hold what they held.

    Values in tensors are not looked after: a trace writes none.
    """
    held = [(vars(module), dict(vars(module))) for module in model.modules()]
    boxes = [
        (box, copy.copy(box))
        for _, own in held
        for box in own.values()
        if isinstance(box, (dict, list, set, deque))
    ]

    def put() -> None:
        for live, own in held:
            if not _same(live, own):
                live.clear()
                live.update(own)
        for box, kept in boxes:
            if not _same(box, kept):
                box.clear()
                box.extend(kept) if isinstance(box, (list, deque)) else box.update(kept)

    with afterwards(put):
        yield


def _same(one: Any, other: Any) -> bool:
    """Whether two containers hold the same objects."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(
            a is b for a, b in zip(one.values(), other.values(), strict=True)
        )
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def shapes_of(model: nn.Module) -> nn.Module:
    """A copy of `model` whose tensors have shapes and types, but no data; costs no memory. Tied
    tensors stay tied.
    """
    tensors = (*model.parameters(), *model.buffers())
    memo: dict[int, Any] = {}
    for tensor in tensors:
        bare = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
        )
    return copy.deepcopy(model, memo)


def on_meta(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The shapes of an example."""
    return tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, args)  # type: ignore[no-any-return]


def alike(model: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether the model runs the same operations on the same values in both modes; False also where
    shapes cannot tell.
    """
    try:
        bare = shapes_of(model)
        args = on_meta(args)
        with random_kept(), torch.no_grad():
            # one copy for both: a forward pass may write to its module
            return _operations(bare, args, eval_mode) == _operations(bare, args, train_mode)
    except Exception:
        return False


class _Recorder(TorchDispatchMode):
    """Notes each operation as (name, arguments, results): tensors by a number, everything else as
    it prints.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = list(known)  # kept alive, so that no other tensor gets the identity of one
        self.numbers = {id(tensor): number for number, tensor in enumerate(known)}
        self.seen: list[_Entry] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = tuple(self._said(leaf) for leaf in tree_leaves((args, kwargs)))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and id(leaf) not in self.numbers:
                self.numbers[id(leaf)] = len(self.held)
                self.held.append(leaf)
        self.seen.append((str(func), given, tuple(self._said(leaf) for leaf in tree_leaves(out))))
        return out

    def _said(self, leaf: Any) -> int | str:
        if not isinstance(leaf, Tensor):
            return repr(leaf)
        return self.numbers.get(id(leaf), f"a constant {tuple(leaf.shape)}")


_Entry = tuple[str, tuple[int | str, ...], tuple[int | str, ...]]


def _operations(
    model: nn.Module, args: tuple[Any, ...], mode: Callable[[nn.Module], Any]
) -> list[_Entry]:
    """What the model runs on an example; tensors 0 to n - 1 are its parameters."""
    tensors = [
        *model.parameters(),
        *model.buffers(),
        *(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)),
    ]
    recorder = _Recorder(tensors)
    with attributes_kept(model), mode(model), recorder:
        model(*args)
    return recorder.seen


_DRAWN = {
    *"empty_like rand_like randn_like ones_like zeros_like full_like new_empty new_zeros "
    "new_ones".split()
}
# A branch that draws adds these to what evaluation mode runs; none puts two values of the model
# side by side.
_HARMLESS = {
    *_DRAWN,
    *"rand randn randint bernoulli bernoulli_ empty full ones zeros scalar_tensor native_dropout "
    "lt le gt ge".split(),
    *"_local_scalar_dense item detach alias clone div div_ mask".split(),
}


def unfollowed(model: nn.Module, args: tuple[Any, ...]) -> str:
    """What a model that cannot be traced in training mode does in it alone, seen by running it in
    both; "" where that is nothing but dropping values and leaving layers out at random.
    """
    tensors = [
        *model.parameters(),
        *model.buffers(),
        *(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)),
    ]
    names = [name for name, _ in model.named_parameters()]
    try:
        with values_kept(tensors), random_kept(), torch.no_grad():
            plain, trained = (
                Counter(_named(_operations(model, args, mode), names))
                for mode in (eval_mode, train_mode)
            )
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return (
            f"the model does not run in training mode on this example ({first}), so what only "
            "training reads is not known; give an example that both modes take, such as one with "
            "targets, or with at least two rows"
        )
    more = [(name, reads) for name, reads in trained - plain if reads or name not in _HARMLESS]
    if not more:
        return ""
    name, reads = more[0]
    what = f"'{name}' of {', '.join(map(repr, reads))}" if reads else f"'{name}'"
    return (
        f"training mode cannot be traced, and it alone runs {what}; remove data-dependent control "
        "flow from that branch"
    )


def _named(entries: list[_Entry], names: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Operations without their overloads, and the parameters that they read; "mask" for a product
    with drawn numbers.
    """
    drawn: set[int | str] = set()
    for operation, given, made in entries:
        name = operation.removeprefix("aten.").partition(".")[0]
        tensors = [said for said in given if isinstance(said, int)]
        if name in _DRAWN or drawn.issuperset(tensors):
            drawn.update(made)
        elif name in ("mul", "mul_") and len(drawn.intersection(tensors)) == len(tensors) - 1:
            name = "mask"
        yield name, tuple(names[said] for said in tensors if said < len(names))
