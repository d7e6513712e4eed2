"""Trace a model once, for every reader: `trace(model, example) -> Graph`.

The tracer is `torch.export` (non-strict), so what it returns are ATen operations on named values,
independent of how the module was written. Parameters and buffers appear as values that carry their
qualified name in the model.
"""

import gc
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.overrides import TorchFunctionMode

from morphogen.deadline import NEVER, Deadline, OutOfTime
from morphogen.errors import ShapeError, Unsupported
from morphogen.random_state import ALONE, random_kept
from morphogen.tracing.modes import alike, attributes_kept, train_mode, unfollowed
from morphogen.tracing.modes import eval_mode as eval_mode  # many look for them here
from morphogen.tracing.modes import modes_kept as modes_kept


@dataclass(frozen=True)
class Ref:
    """An argument that is another node's value, by name."""

    name: str


@dataclass(frozen=True)
class Node:
    """One value of the graph.

    op: "input", "tensor" (a parameter or buffer), "output", or an ATen overload such as
    "aten.linear.default". args: its arguments in order; a value is a `Ref`, everything else a plain
    Python constant. shape: sizes of the value; () for scalars and for the output. target: the
    tensor's qualified name where op is "tensor", else "". module: the one whose forward made it, by
    name. dtype: of the value; None for what is no tensor.
    """

    name: str
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    target: str = ""
    module: str = ""
    dtype: torch.dtype | None = None

    @property
    def kind(self) -> str:
        """The operation without its overload: "linear" for "aten.linear.default", "morphogen.dag"
        for ours.
        """
        return ".".join(self.op.removeprefix("aten.").split(".")[:-1]) or self.op


def users_of(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    """By name of a value, the nodes that read it."""
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for name in dict.fromkeys(ref.name for ref in refs((node.args, *node.kwargs.values()))):
            users.setdefault(name, []).append(node)
    return users


@dataclass(frozen=True)
class Graph:
    """The nodes of one traced forward pass, in order of execution.

    same: groups of (tensor, dim) that a module keeps as one attribute, so that they are one size
    whatever the operations say. training: the nodes of a pass in training mode, where that runs
    anything else; tensors go by the same names, all others begin with "training.". unseen: why
    training mode could not be looked at, "" where it could.
    """

    nodes: tuple[Node, ...]
    same: tuple[tuple[tuple[str, int], ...], ...] = ()
    training: tuple[Node, ...] = ()
    unseen: str = ""

    def __str__(self) -> str:
        return "\n".join(
            f"{n.name}: {n.op} {list(n.shape)} {n.target}".rstrip() for n in self.nodes
        )


def refs(value: Any) -> Iterator[Ref]:
    """The values among a node's arguments, however nested."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from refs(part)


def require_running(model: nn.Module, args: tuple[Any, ...]) -> None:
    """Raise `ShapeError` where the forward pass itself does not take an example."""
    try:
        with eval_mode(model), random_kept(), torch.no_grad():
            model(*args)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        shapes = ", ".join(
            str(tuple(arg.shape)) if isinstance(arg, Tensor) else repr(arg) for arg in args
        )
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ShapeError(
            f"{type(model).__name__} does not take an example {shapes}: {first}"
        ) from error


def trace(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    training: bool = True,
    until: Deadline = NEVER,
) -> Graph:
    """The graph of `model` in evaluation mode on `example` (one tensor, or the tuple of positional
    arguments).

    Sizes of the batch are those of the example; use a batch of at least 2, since PyTorch treats
    sizes 0 and 1 specially. The model is left as it was, running statistics and random state too.
    training: look at training mode as well, which may read other parameters (`if self.training:`);
    needed where the graph is to say what can be resized. until: asked at every operation. Raises
    `Unsupported` where `torch.export` cannot follow the forward pass; where it cannot in training
    mode alone, the graph says so. Raises `OutOfTime` once the deadline has passed.
    """
    args = example if isinstance(example, tuple) else (example,)
    with ALONE:
        try:
            with eval_mode(model):
                nodes = _exported(model, args, until)
        except OutOfTime:
            raise
        # torch.export raises many kinds; all mean that the forward pass cannot be followed
        except Exception as error:
            until.check()  # it may have made another error of it
            require_running(model, args)
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Unsupported(
                f"trace: torch.export cannot follow {type(model).__name__}.forward ({first}); "
                "remove data-dependent control flow, or trace the part that has none"
            ) from error
        trained, unseen = _trained(model, args, nodes) if training else ((), "")
    return Graph(nodes, tuple(_same(model)), trained, unseen)


def _trained(
    model: nn.Module, args: tuple[Any, ...], nodes: tuple[Node, ...]
) -> tuple[tuple[Node, ...], str]:
    """The nodes of a pass in training mode, () where it is as in evaluation mode; and why they are
    not known.
    """
    if alike(model, args):
        return (), ""
    try:
        with train_mode(model):
            training = _exported(model, args)
    except Exception:
        return (), unfollowed(model, args)
    if training == nodes:
        return (), ""
    tensors = {node.target: node.name for node in nodes if node.op == "tensor"}
    names = {node.name: tensors.get(node.target, f"training.{node.name}") for node in training}
    return tuple(
        _renamed(node, names) for node in training if names[node.name].startswith("training.")
    ), ""


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    def named(value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref(names[value.name])
        return tuple(named(part) for part in value) if isinstance(value, tuple) else value

    kwargs = {key: named(value) for key, value in node.kwargs.items()}
    return replace(node, name=names[node.name], args=named(node.args), kwargs=kwargs)


def _exported(model: nn.Module, args: tuple[Any, ...], until: Deadline = NEVER) -> tuple[Node, ...]:
    """The nodes of a pass in the mode that the model is in; nothing of it is left behind."""
    with attributes_kept(model), random_kept(), _lean(), warnings.catch_warnings(), _asking(until):
        # recurrent modules refresh their list of weights while they are traced, which is none of a
        # user's business
        warnings.filterwarnings("ignore", message="The tensor attribute")
        exported = torch.export.export(model, args, strict=False)
    held = {
        spec.arg.name: spec.target
        for spec in exported.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    }
    # a tied tensor goes by the name it has first
    known: dict[int, str] = {}
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    alias = {name: known.setdefault(id(tensor), name) for name, tensor in named}
    held = {placeholder: alias.get(target or "", target) for placeholder, target in held.items()}
    return tuple(_node(node, held) for node in exported.graph.nodes)


def _same(model: nn.Module) -> Iterator[tuple[tuple[str, int], ...]]:
    for name, module in model.named_modules():
        dot = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            reads = "in_proj_weight" if module.in_proj_weight is not None else "q_proj_weight"
            yield ((f"{dot}out_proj.weight", 0), (f"{dot}out_proj.weight", 1), (f"{dot}{reads}", 1))
        elif isinstance(module, nn.RNNBase):
            yield tuple(
                (f"{dot}{n}", 1) for n, _ in module.named_parameters() if n.startswith("weight_hh")
            )


@contextmanager
def _lean() -> Iterator[None]:
    """Without what nobody reads and a deep network waits for: the source line of each node, and a
    walk through all objects in memory each time that some more were made. Of 3,000 operations it
    takes half of the time.
    """
    config = getattr(torch.fx, "config", None)
    name = "do_not_emit_stack_traces"
    lines = getattr(config, name, None)
    collects = gc.isenabled()
    gc.disable()
    if lines is not None:
        setattr(config, name, True)
    try:
        yield
    finally:
        if lines is not None:
            setattr(config, name, lines)
        if collects:
            gc.enable()


class _Asking(TorchFunctionMode):
    """Asks a deadline at every function of torch that runs."""

    def __init__(self, until: Deadline) -> None:
        super().__init__()
        self.until = until

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.until.check()
        return func(*args, **(kwargs or {}))


def _asking(until: Deadline) -> Any:
    return nullcontext() if until.ends == math.inf else _Asking(until)


def _node(node: torch.fx.Node, held: dict[str, str | None]) -> Node:
    value = node.meta.get("val")
    shape, dtype = (
        (tuple(int(s) for s in value.shape), value.dtype)
        if isinstance(value, Tensor)
        else ((), None)
    )
    args = tuple(_plain(a) for a in node.args)
    kwargs = {k: _plain(v) for k, v in node.kwargs.items()}
    if node.op == "placeholder":
        target = held.get(node.name)
        return Node(
            node.name, "tensor" if target else "input", (), {}, shape, target or "", "", dtype
        )
    op = "output" if node.op == "output" else str(node.target)
    within = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return Node(node.name, op, args, kwargs, shape, "", within[-1] if within else "", dtype)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)
    return value
