"""Edits are values: what should change, by name; nothing about how."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from morphogen.errors import PlanError
from morphogen.record import revive


@dataclass(frozen=True)
class Grow:
    """`units` new entries at the end of the width that `width` names."""

    width: str
    units: int

    def __str__(self) -> str:
        return f"grow {self.width} by {self.units}"


@dataclass(frozen=True)
class Shrink:
    """Entries `drop` (indices) of a width leave; the others keep their order."""

    width: str
    drop: tuple[int, ...]

    def __init__(self, width: str, drop: Iterable[int]) -> None:
        object.__setattr__(self, "width", width)
        object.__setattr__(self, "drop", tuple(sorted({int(d) for d in drop})))

    def __str__(self) -> str:
        return f"shrink {self.width} by {len(self.drop)}"


@dataclass(frozen=True)
class Split:
    """Units `of` (indices, one twice for two twins) of a width get a twin each, at its end; the
    function stays as it is.

    A twin computes what its unit does, and their outgoing weights are shared out between them
    (Net2Net, duplicate and halve).
    """

    width: str
    of: tuple[int, ...]

    def __init__(self, width: str, of: Iterable[int]) -> None:
        object.__setattr__(self, "width", width)
        object.__setattr__(self, "of", tuple(int(unit) for unit in of))

    def __str__(self) -> str:
        return f"split {len(self.of)} of {self.width}"


@dataclass(frozen=True)
class AddBlock:
    """One more block at the end of `module`: a `LearnedDepth`, or an `nn.Sequential` or
    `nn.ModuleList` of residual blocks.

    The function stays as it is: the gate is closed, or the last layer of each of its branches is
    zero, so that it is the identity. A block of a plain stack is a copy of the last one, as freshly
    initialised as its parts know how to. Attributes that number the blocks (`layer_idx`) give it
    the next number, and those that count them (`num_hidden_layers` of the module that holds the
    stack, or of its `config`) go along.
    """

    module: str

    def __str__(self) -> str:
        return f"add a block to {self.module}"


@dataclass(frozen=True)
class DropBlock:
    """The last block of such a `module` leaves."""

    module: str

    def __str__(self) -> str:
        return f"drop the last block of {self.module}"


@dataclass(frozen=True)
class GrowNodes:
    """`count` more nodes at the end of the `Dag` called `module`, which has a readout or is the
    model itself; a `Dag` that other layers read grows by `Grow`.
    """

    module: str
    count: int

    def __str__(self) -> str:
        return f"grow {self.count} nodes{_of(self.module)}"


@dataclass(frozen=True)
class PruneWeights:
    """The share of a `Dag`'s weights that is smallest in size leaves; a dense `Dag` becomes
    sparse.
    """

    module: str
    share: float

    def __str__(self) -> str:
        return f"prune {self.share:g} of the weights{_of(self.module)}"


@dataclass(frozen=True)
class Rewire:
    """The share of a sparse `Dag`'s weights that is smallest in size moves to places that have
    none, see `dag.rewire`.
    """

    module: str
    share: float

    def __str__(self) -> str:
        return f"rewire {self.share:g} of the weights{_of(self.module)}"


@dataclass(frozen=True)
class AddStage:
    """A new stage of `count` nodes in the `Cascade` called `module`; the older ones are frozen."""

    module: str
    count: int

    def __str__(self) -> str:
        return f"begin a stage of {self.count} nodes{_of(self.module)}"


def _of(module: str) -> str:
    """ " of NAME"; nothing for the model itself."""
    return f" of {module}" if module else ""


OfWidth = Grow | Shrink | Split
OfDag = GrowNodes | PruneWeights | Rewire
Edit = OfWidth | AddBlock | DropBlock | OfDag | AddStage
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in get_args(Edit)}


def edit_to_dict(edit: Edit) -> dict[str, Any]:
    """A JSON-ready dictionary; `edit_from_dict` is its inverse."""
    return {"edit": type(edit).__name__, **asdict(edit)}


def edit_from_dict(value: dict[str, Any]) -> Edit:
    """The edit that `edit_to_dict` wrote. Raises `PlanError` on an unknown kind and on values that
    it cannot have.
    """
    if not isinstance(value, dict):
        raise PlanError(f"ledger: an edit is a dictionary, not {value!r}")
    wanted = value.get("edit")
    kind = _KINDS.get(wanted) if isinstance(wanted, str) else None
    if kind is None:
        raise PlanError(f"ledger: unknown edit {wanted!r}; known are {', '.join(_KINDS)}")
    names = {"edit", *(f.name for f in fields(kind))}
    if strange := sorted(value.keys() - names, key=str):
        raise PlanError(f"ledger: {wanted} has no {strange[0]!r}")
    try:
        return revive(kind, value, str(wanted))  # type: ignore[no-any-return]
    except ValueError as error:
        raise PlanError(f"ledger: {error}") from error
