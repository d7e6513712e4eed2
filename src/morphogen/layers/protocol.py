"""What the rest of the library asks of a layer whose structure is part of its forward pass: a
protocol for each question, and a function that says whether a layer answers it.

A layer, ours or a user's, answers by methods of its class. Nothing is registered, and whoever asks
knows no class: `freeze`, `dead_units`, `adapt`, plans and controllers treat a new layer that offers
a protocol as they treat ours. Each protocol is recognised by the one method that is named after its
function, so that a user's method of a common name is not taken for an answer.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Fold = Callable[[nn.Module], nn.Module]
"""A part of a layer -> the same function in plain modules; the part itself may change."""


class Freezable(Protocol):
    """Asked by `freeze`: a layer that stands for plain modules."""

    def to_plain(self, fold: Fold) -> nn.Module:
        """Modules of torch that are this layer in evaluation mode; `fold` makes its parts plain.

        The layer is a copy in float64 and may be taken apart. Raises `Unsupported` where there is
        no plain form.
        """


class Foldable(Protocol):
    """Asked by `freeze`: a layer that becomes part of the layers beside it in an `nn.Sequential`.

    dim: of its units. scales_units: whether it multiplies each unit by a number of its own that is
    not negative, so that it can be moved before what is positively homogeneous, such as a ReLU.
    """

    dim: int | None

    @property
    def scales_units(self) -> bool: ...

    def count_dim_from_end(self, shape: Sequence[int]) -> None:
        """Make `dim` a negative number that means the same in an input of this shape."""

    def fold_into_producer(self, producer: nn.Module) -> nn.Module | None:
        """Change the layer that makes its input, in place. Returns what stays in its own place, an
        activation or nothing. Raises `Unsupported` where that cannot be.
        """

    def fold_into_consumer(self, consumer: nn.Module) -> None:
        """Change the layer that reads its output, in place, and leave nothing; asked where no layer
        makes its input. Raises `Unsupported` where that cannot be.
        """


class Opaque(Protocol):
    """Asked by `bounds` and what stands on them: a layer whose forward pass is an operation of its
    own, which no reader of a graph knows.
    """

    def unrolled(self) -> nn.Module:
        """A module of the same function whose forward pass is made of plain operations."""


class Linkage(Protocol):
    """Asked by `dead_units`: an activation whose units put out several functions of one sum.

    dim: of its units.
    """

    dim: int | None

    def unit_outputs(self, z: Tensor) -> tuple[Tensor, ...]:
        """Each of the functions at the sums z, of the shape of z."""


class LearnsSize(Protocol):
    """Asked by `penalty` and by whoever makes an optimizer: a layer that learns how large it is.

    w: its size as a scalar that the gradient reaches. penalty: layer -> scalar, what the size
    costs, or None.
    """

    @property
    def w(self) -> Tensor: ...

    @property
    def penalty(self) -> Callable[[Any], Tensor] | None: ...

    def size_parameters(self) -> list[nn.Parameter]:
        """What is trained of it: no weight decay, perhaps a learning rate of its own, and not drawn
        anew with the weights.
        """


class HasBlocks(Protocol):
    """Asked by plans, `adapt` and controllers: a layer that runs a list of blocks, which `AddBlock`
    and `DropBlock` change at its end.
    """

    blocks: nn.ModuleList

    def new_block(self) -> nn.Module:
        """A fresh block for the next place, at the sizes and in the precision of the others."""

    def new_block_is_silent(self) -> bool:
        """Whether a new block would leave the function exactly as it is."""

    def wanted(self) -> int:
        """How many blocks should exist."""

    def reason(self) -> str:
        """What it wants that many for, such as "learned depth w = 2.31"."""


class HasUnits(Protocol):
    """Asked by `adapt` and controllers: a layer that says how many units the width that it stands
    on should have.
    """

    def unit_tensor(self) -> str:
        """The name of its parameter or buffer (units,), which grows and shrinks with them."""

    def wanted(self) -> int:
        """How many units should exist."""

    def reason(self) -> str:
        """What it wants that many for."""


class Rewiring(Protocol):
    """A wiring after features or units came and went. index: entry j of the weight was entry
    index[j], or is new (-1). first: the first new unit.
    """

    @property
    def index(self) -> Tensor: ...

    @property
    def first(self) -> int: ...


class Wired(Protocol):
    """Asked by plans, `apply_` and `unit_importance`: a layer with one flat weight, an entry for
    each connection, which the tracer calls "flat".

    Its rows are the entries of the widths that the weight stands between, one after the other: the
    features that it reads, then what its own units put out. drawn_tensors: those whose size is
    drawn when it is built.
    """

    weight: nn.Parameter

    @property
    def drawn_tensors(self) -> tuple[str, ...]: ...

    def row_count(self) -> int:
        """How many rows there are."""

    def connections(self) -> tuple[Tensor, Tensor]:
        """For each weight the row that it goes into, of its unit, and the row that it reads."""

    def rewiring(self, rows: Tensor, units: int | None) -> Any:
        """The `Rewiring` when row j is what was row rows[j], or is new (-1), and there are so many
        units, None for as many as now. Nothing changes.
        """

    def wired_for(self, rewiring: Any) -> bool:
        """Whether the wiring is still the one that a `rewiring` was planned for."""

    def rewire(self, rewiring: Any) -> None:
        """Take the new wiring; the weight has its size already."""

    def rewirer(self) -> Callable[[], None]:
        """What gives the wiring of now back, once the weight has its old size again."""

    def start(self, first: int, generator: Generator | None = None) -> None:
        """Draw the weights of the units from `first` on."""


class KeepsSizes(Protocol):
    """Asked by `apply_` after every change: a layer that keeps sizes beside its tensors."""

    def tensor_sizes(self) -> Mapping[str, Any]:
        """Attributes and the values that its tensors say they should have."""


def _offers(layer: object, method: str) -> bool:
    # of the class: a parameter or a submodule of that name is no answer
    return callable(getattr(type(layer), method, None))


def is_freezable(layer: object) -> "TypeIs[Freezable]":
    return _offers(layer, "to_plain")


def is_foldable(layer: object) -> "TypeIs[Foldable]":
    return _offers(layer, "fold_into_producer")


def is_opaque(layer: object) -> "TypeIs[Opaque]":
    return _offers(layer, "unrolled")


def is_linkage(layer: object) -> "TypeIs[Linkage]":
    return _offers(layer, "unit_outputs")


def learns_size(layer: object) -> "TypeIs[LearnsSize]":
    return _offers(layer, "size_parameters")


def has_blocks(layer: object) -> "TypeIs[HasBlocks]":
    return _offers(layer, "new_block")


def has_units(layer: object) -> "TypeIs[HasUnits]":
    return _offers(layer, "unit_tensor")


def is_wired(layer: object) -> "TypeIs[Wired]":
    return _offers(layer, "rewiring")


def keeps_sizes(layer: object) -> "TypeIs[KeepsSizes]":
    return _offers(layer, "tensor_sizes")


def size_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those of all layers of `model` that learn how large they are."""
    layers = [layer for layer in model.modules() if learns_size(layer)]
    return [parameter for layer in layers for parameter in layer.size_parameters()]


def without_opaque(model: nn.Module) -> nn.Module:
    """A copy of `model` in which every opaque layer is unrolled; the model itself where it has
    none.
    """
    if not any(is_opaque(layer) for layer in model.modules()):
        return model
    model = copy.deepcopy(model)
    if is_opaque(model):
        return model.unrolled()
    for name, layer in [*model.named_modules(remove_duplicate=False)]:
        if is_opaque(layer):
            holder, _, key = name.rpartition(".")
            setattr(model.get_submodule(holder), key, layer.unrolled())
    return model
