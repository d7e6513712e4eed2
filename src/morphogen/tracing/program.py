"""A traced network as steps on batches of values: what does not depend on the input is computed
once and is a number.

`program(model, example)` is what every technique of this room reads; a technique is a table from a
step's kind to a rule.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.activations import ACTIVATIONS, NUMBER, Activation, X
from morphogen.deadline import NEVER, Deadline
from morphogen.errors import ShapeError, Unsupported
from morphogen.layers.protocol import without_opaque
from morphogen.tracing.trace import Node, Ref, refs, trace
from morphogen.tracing.traits import named


@dataclass(frozen=True)
class Step:
    """One operation. args: constants and, for what depends on the input, a `Ref`. shape: of one
    example's value.
    """

    name: str
    kind: str
    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The values that it is computed from, each once."""
        return tuple(dict.fromkeys(ref.name for ref in refs(self.args)))


@dataclass(frozen=True)
class Program:
    """Steps in order. input, output: names of values; shapes: of each value, for one example.
    until: what is computed step by step, `forth` or `back`, raises `OutOfTime` once this has
    passed.
    """

    input: str
    output: str
    steps: tuple[Step, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype
    until: Deadline = NEVER

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output, (batch, ...)."""
        return self.values(x)[self.output]

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """Every value, by name."""
        values = {self.input: x.to(self.dtype)}
        for step in self.forth():
            values[step.name] = self.timed(run(step, values))
        return values

    def forth(self) -> Iterator[Step]:
        """The steps in order. Whatever takes time for each of them asks for them here, so that it
        ends in time.
        """
        for step in self.steps:
            self.until.check()
            yield step

    def back(self, name: str | None = None) -> Iterator[Step]:
        """The steps in reverse, from the one that makes a value on (the last one by default)."""
        last = len(self.steps) if name is None else self._places.get(name, -1) + 1
        for step in reversed(self.steps[:last]):
            self.until.check()
            yield step

    def timed(self, value: Tensor) -> Tensor:
        """The value; once a gradient comes to it, the deadline is asked."""
        if self.until.ends < math.inf and value.requires_grad:
            value.register_hook(lambda _: self.until.check())
        return value

    def consumers(self, name: str) -> Sequence[Step]:
        """The steps that read a value."""
        return self._readers.get(name, ())

    @cached_property
    def _readers(self) -> dict[str, list[Step]]:
        users: dict[str, list[Step]] = {}
        for step in self.steps:
            for name in step.reads:
                users.setdefault(name, []).append(step)
        return users

    @cached_property
    def _places(self) -> dict[str, int]:
        return {step.name: place for place, step in enumerate(self.steps)}

    @cached_property
    def numbers(self) -> int:
        """In all values of one example."""
        return sum(map(math.prod, self.shapes.values()))

    @cached_property
    def longest(self) -> int:
        """No value is a sum of more products."""
        sums = (
            sum(math.prod(self.shapes[n]) for n in step.reads) + math.prod(step.shape)
            for step in self.steps
        )
        return max(sums, default=0)


def program(
    model: nn.Module, example: Tensor, dtype: torch.dtype = torch.float64, until: Deadline = NEVER
) -> Program:
    """What `model` computes in evaluation mode, in `dtype`.

    example: (batch, ...), at least two rows, such as the network will be bounded on. until: kept by
    what is computed with the program too. Raises `Unsupported` for several inputs or outputs, for
    an operation that mixes examples and for one whose numbers are coarser than the model's own, and
    `ShapeError` for weights that are no numbers or that `dtype` rounds.
    """
    model = without_opaque(model)
    example = example.to(dtype_of(model)) if example.is_floating_point() else example
    graph = trace(model, example, training=False, until=until)
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    own = _precision(model)
    known: dict[str, Any] = {}
    steps: list[Step] = []
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = [node for node in graph.nodes if node.op == "input"]
    if len(inputs) != 1:
        raise Unsupported(
            f"bounds: the network has {len(inputs)} inputs; give one that takes a single tensor"
        )
    shapes[inputs[0].name] = inputs[0].shape[1:]
    output = ""
    several = {}
    newest: dict[str, str] = {}  # value -> the one that an operation in place made of it
    viewed: set[str] = set()  # values that share their numbers with others
    for node in graph.nodes:
        until.check()
        if node.op == "tensor":
            if node.target not in tensors:
                raise Unsupported(
                    f"bounds: '{node.target}' is made in the forward pass; make it a buffer of the "
                    "module"
                )
            known[node.name] = _checked(node.target, tensors[node.target].detach(), dtype)
        elif node.op == "output":
            outputs = [_latest(ref.name, newest) for ref in refs(node.args)]
            if len(outputs) != 1 or outputs[0] not in shapes:
                raise Unsupported(
                    f"bounds: the network returns {len(outputs)} values; give one that returns a "
                    "single tensor"
                )
            output = outputs[0]
        elif node.op != "input" and not node.kind.startswith("_assert"):
            _exact(node, own)
            args, kwargs = (
                _known(_renamed(part, newest), known, dtype) for part in (node.args, node.kwargs)
            )
            made = Step(node.name, _kind(node), _operation(node), args, kwargs, node.shape[1:])
            if node.kind.endswith("_"):
                _written(made, viewed, newest)
            if not made.reads:
                known[node.name] = made.op(*args, **kwargs)
            elif node.kind in SEVERAL:
                several[node.name] = made
            else:
                if made.kind == "getitem":
                    made = _picked(made, several)
                if made.kind in VIEWS:
                    viewed.update((made.name, *made.reads))
                shapes[node.name] = made.shape
                steps.append(made)
    steps = put_together(steps, shapes)
    net = Program(inputs[0].name, output, needed(steps, output), shapes, dtype, until)
    _alone(net, example)
    return net


def _precision(model: nn.Module) -> torch.dtype:
    """That of a model's parameters, of its buffers where there are none: the finest of them."""
    for tensors in (model.parameters(), model.buffers()):
        if floating := [t.dtype for t in tensors if t.is_floating_point()]:
            return min(floating, key=lambda kind: torch.finfo(kind).eps)
    return dtype_of(model)


def _holds(kind: torch.dtype, own: torch.dtype) -> bool:
    """Whether every number of one type is one of another."""
    there = torch.finfo(kind)
    here = torch.finfo(own)
    return there.eps <= here.eps and there.max >= here.max and there.tiny <= here.tiny


def _exact(node: Node, own: torch.dtype) -> None:
    """Raise `Unsupported` for a value of a type that does not hold every number of the model's own
    type: a cast to it is a step function, and no bound here is of that. What rounds as the model
    itself does is no concern: a proof is of the network in real arithmetic.
    """
    if node.dtype is not None and node.dtype.is_floating_point and not _holds(node.dtype, own):
        coarse, fine = (str(kind).removeprefix("torch.") for kind in (node.dtype, own))
        raise Unsupported(
            f"bounds: node '{node.name}' ('{node.kind}') gives {coarse} in a network of {fine}, "
            f"and what that rounds is not bounded; compute it in {fine}"
        )


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of a model's numbers."""
    floating = (
        t.dtype for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()
    )
    return next(floating, torch.get_default_dtype())


def _written(step: Step, viewed: set[str], newest: dict[str, str]) -> None:
    """An operation in place: who reads its first argument later reads what it made. `_operation`
    gives its plain twin.
    """
    (target, *_) = [ref.name for ref in refs(step.args[:1])] or [""]
    if not target or target in viewed:
        raise Unsupported(
            f"bounds: node '{step.name}' writes into a part of a tensor in place; write it without"
        )
    newest[target] = step.name


def _latest(name: str, newest: Mapping[str, str]) -> str:
    while name in newest:
        name = newest[name]
    return name


def _alone(net: Program, example: Tensor) -> None:
    """Raise `Unsupported` where an example's values depend on the others of its batch."""
    x = torch.rand(
        2, *example.shape[1:], dtype=net.dtype, generator=torch.Generator().manual_seed(0)
    )
    try:
        both = net.values(x)
        one = net.values(x[:1])
        apart = [
            name
            for name in both
            if not torch.allclose(both[name][:1], one[name], rtol=1e-3, atol=1e-5, equal_nan=True)
        ]
    except (RuntimeError, IndexError, ValueError) as error:
        raise Unsupported(
            f"bounds: the network runs on {len(example)} examples and not on one ({error})"
        ) from None
    if apart:
        raise Unsupported(
            f"bounds: node '{apart[0]}' mixes the examples of a batch; bounds are of one example "
            "each"
        )


def _renamed(arg: Any, newest: Mapping[str, str]) -> Any:
    if isinstance(arg, Ref):
        return replace(arg, name=_latest(arg.name, newest))
    if isinstance(arg, dict):
        return {key: _renamed(value, newest) for key, value in arg.items()}
    return (
        type(arg)(_renamed(part, newest) for part in arg) if isinstance(arg, (list, tuple)) else arg
    )


SEVERAL = frozenset("split split_with_sizes chunk unbind".split())


def _picked(item: Step, several: Mapping[str, Step]) -> Step:
    """One of the values of an operation that gives several, as an operation of its own."""
    (name,) = item.reads
    if name not in several:
        raise Unsupported(
            f"bounds: no rule takes one of the values of node '{name}'; add one to "
            "morphogen.bounds.rules"
        )
    whole = several[name]
    place = item.args[1]
    return replace(
        whole,
        name=item.name,
        shape=item.shape,
        op=lambda *args, **kwargs: whole.op(*args, **kwargs)[place],
    )


def run(step: Step, values: Mapping[str, Any]) -> Any:
    """The step's value where those that it reads are given; any leading size serves as a batch."""
    if step.kind in RESHAPES:
        (name,) = step.reads
        return values[name].reshape(len(values[name]), *step.shape)
    return step.op(*_filled(step.args, values), **step.kwargs)


RESHAPES = named(lambda traits: traits.same)
VIEWS = named(lambda traits: traits.view)


def _filled(arg: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(arg, Ref):
        return values[arg.name]
    return (
        type(arg)(_filled(part, values) for part in arg) if isinstance(arg, (list, tuple)) else arg
    )


def _known(arg: Any, known: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Values that do not depend on the input in the place of their names; floating types become
    `dtype`.
    """
    if isinstance(arg, Ref):
        return known.get(arg.name, arg)
    if isinstance(arg, dict):
        return {key: _known(value, known, dtype) for key, value in arg.items()}
    if isinstance(arg, (list, tuple)):
        return type(arg)(_known(part, known, dtype) for part in arg)
    return dtype if isinstance(arg, torch.dtype) and arg.is_floating_point else arg


def _checked(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, so that a later change of the model is none of the program."""
    if not tensor.is_floating_point():
        return tensor.clone()
    if not bool(tensor.isfinite().all()):
        raise ShapeError(
            f"bounds: '{name}' holds NaN or infinite values; nothing can be proved about such a "
            "network"
        )
    cast = tensor.to(dtype, copy=True)
    if not torch.equal(cast.to(tensor.dtype), tensor):
        kind = str(dtype).removeprefix("torch.")
        raise ShapeError(
            f"bounds: {kind} does not hold the numbers of '{name}'; give dtype={tensor.dtype}"
        )
    return cast


def _kind(node: Node) -> str:
    return "getitem" if "getitem" in node.op else node.kind.removesuffix("_")


def _operation(node: Node) -> Callable[..., Any]:
    if "getitem" in node.op:
        return operator.getitem
    operation: Any = torch.ops
    for part in node.op.split("."):
        operation = getattr(operation, part.removesuffix("_") if part == f"{node.kind}" else part)
    return operation  # type: ignore[no-any-return]


def put_together(steps: Sequence[Step], shapes: Mapping[str, tuple[int, ...]]) -> list[Step]:
    """The steps with every activation that was written in several operations as one again, by the
    patterns of its row; what only its parts read is then not `needed`.
    """
    made = {step.name: step for step in steps}
    return [_whole(step, made, shapes) or step for step in steps]


def _whole(
    step: Step, made: Mapping[str, Step], shapes: Mapping[str, tuple[int, ...]]
) -> Step | None:
    for name, kind in ACTIVATIONS.items():
        for pattern in kind.patterns:
            numbers: list[float] = []
            read: list[Ref] = []
            if not _matches(pattern, Ref(step.name), made, read, numbers):
                continue
            defaults = list(kind.options.values())
            options = [*defaults[: len(defaults) - len(numbers)], *numbers]
            h = kind.of(*options)
            if h is not None and shapes[read[0].name] == step.shape:
                args = (read[0], *options)
                return Step(step.name, name, partial(_value, h), args, {}, step.shape)
    return None


def _value(h: Activation, x: Tensor, *options: Any) -> Tensor:
    return h.value(x)


def _matches(
    pattern: Any, arg: Any, made: Mapping[str, Step], read: list[Ref], numbers: list[float]
) -> bool:
    """Whether an argument was computed as a pattern says; what it reads and its numbers are
    kept.
    """
    if pattern is X:
        read.append(arg)
        return isinstance(arg, Ref) and arg.name == read[0].name
    if pattern is NUMBER or isinstance(pattern, float):
        number = _number(arg)
        if number is None or pattern not in (NUMBER, number):
            return False
        numbers += [number] if pattern is NUMBER else []
        return True
    step = made.get(arg.name) if isinstance(arg, Ref) else None
    kind, *inner = pattern
    if step is None or step.kind != kind or step.kwargs or len(step.args) != len(inner):
        return False
    pairs = zip(inner, step.args, strict=True)
    return all(_matches(part, given, made, read, numbers) for part, given in pairs)


def _number(arg: Any) -> float | None:
    """What a constant is in all of its entries."""
    if isinstance(arg, Tensor):
        values = arg.unique()
        return float(values) if values.numel() == 1 else None
    return float(arg) if isinstance(arg, (int, float)) else None


def needed(steps: Sequence[Step], output: str) -> tuple[Step, ...]:
    """Those that a value depends on, in order."""
    wanted = {output}
    kept = []
    for step in reversed(steps):
        if step.name in wanted:
            wanted.update(step.reads)
            kept.append(step)
    return tuple(reversed(kept))
