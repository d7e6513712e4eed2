"""Resolve and check edits before anything changes: `plan(model, widths, edits) -> Plan`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from morphogen.edit.blocks import is_plain, stacks
from morphogen.edit.edit import (
    AddBlock,
    AddStage,
    DropBlock,
    Edit,
    Grow,
    GrowNodes,
    OfDag,
    PruneWeights,
    Rewire,
    Shrink,
    Split,
)
from morphogen.edit.follow import moved as followed
from morphogen.edit.wiring import extended, grown, pruned, rewired
from morphogen.errors import PlanError, Unsupported
from morphogen.layers.dag.cascade import Cascade
from morphogen.layers.dag.module import Dag, Moved
from morphogen.layers.protocol import Rewiring, has_blocks, is_wired
from morphogen.tracing.widths import FLAT, Slot, Width, find

NEW = -1

_Kind = TypeVar("_Kind", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Row:
    """How one tensor dimension changes: entry j of the result is entry `index[j]` of the tensor, or
    new (`NEW`).

    index: whole numbers, on the CPU.
    """

    tensor: str
    dim: int
    role: str
    index: Tensor

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}]"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        named = (self.tensor, self.dim, self.role) == (other.tensor, other.dim, other.role)
        return named and torch.equal(self.index, other.index)

    def __hash__(self) -> int:
        return hash((self.tensor, self.dim, self.role))

    def new(self) -> Tensor:
        """The places of the new entries."""
        return (self.index == NEW).nonzero()[:, 0]


@dataclass(frozen=True)
class Placed:
    """A module that comes to stand at `name`, in another's place or as the next of a stack.

    kind: what it is, for whoever reads the plan. like: the parameter in whose groups of the
    optimizers its own are trained. build: makes it, a new one at each call, given the model and
    what draws its values.
    """

    name: str
    kind: str
    like: str
    build: Callable[[nn.Module, torch.Generator | None], nn.Module] = field(
        compare=False, repr=False
    )


NO_TENSORS: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Plan:
    """Everything `apply_` will do. Printing it gives one line for each change.

    keeps: whether the function stays exactly as it is, by construction: growth of widths that
    nothing feels (see `Width.not_preserved`), removal of units whose outgoing weights are all zero,
    splits, and new blocks behind closed gates. attributes: (module, attribute, value) that follow,
    see `morphogen.follow`. rows: in an order such that a new row's columns into old units are made
    after the row. blocks: (module, +1 or -1). wirings: what becomes of each wired layer, such as
    a `Dag`, by module. modules: those that come, perhaps in place of others. frozen: parameters
    that learn no more, and leave the optimizers. values: tensors that have a row, by name, as they
    are to be afterwards. rewrites: what is done that no `Edit` says, such as `link`: it makes
    another base model, see `save`.
    """

    edits: tuple[Edit, ...]
    rows: tuple[Row, ...]
    blocks: tuple[tuple[str, int], ...]
    sizes: dict[str, tuple[int, int]]
    covers: dict[str, tuple[Slot, ...]]
    keeps: bool
    attributes: tuple[tuple[str, str, int], ...] = ()
    wirings: tuple[tuple[str, Rewiring], ...] = field(default=(), compare=False)
    modules: tuple[Placed, ...] = ()
    frozen: tuple[str, ...] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    rewrites: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{name} {before} -> {after}: {' '.join(map(str, self.covers.get(name, ())))}"
            for name, (before, after) in self.sizes.items()
        ]
        lines += [_said_of(row) for row in self._uncovered()]
        lines += [f"{module} {'+' if delta > 0 else '-'}1 block" for module, delta in self.blocks]
        lines += [
            _dotted(module, f"{attribute} = {value}")
            for module, attribute, value in self.attributes
        ]
        lines += [f"{placed.name} = {placed.kind}" for placed in self.modules]
        lines += [f"{name} is frozen" for name in self.frozen]
        lines += [f"{name} gets new values" for name in self.values]
        return "\n".join(line.removesuffix(": ") for line in lines) or "nothing to do"

    def _uncovered(self) -> list[Row]:
        """The rows that no width tells of."""
        slots = [slot for each in self.covers.values() for slot in each]
        covered = {(slot.tensor, slot.dim) for slot in slots}
        return [row for row in self.rows if (row.tensor, row.dim) not in covered]


def _said_of(row: Row) -> str:
    new = len(row.new())
    return f"{row}: {len(row.index) - new} entries stay, {new} are new"


@dataclass(frozen=True)
class _Part:
    """What a plan says of some of its edits; see `Plan`."""

    rows: tuple[Row, ...]
    sizes: dict[str, tuple[int, int]]
    covers: dict[str, tuple[Slot, ...]] = field(default_factory=dict)
    wirings: tuple[tuple[str, Rewiring], ...] = ()
    modules: tuple[Placed, ...] = ()
    frozen: tuple[str, ...] = ()


def plan(
    model: nn.Module,
    widths: Mapping[str, Width],
    edits: Iterable[Edit],
    *,
    gradients: Mapping[str, Tensor] = NO_TENSORS,
    generator: torch.Generator | None = None,
) -> Plan:
    """Check `edits` against the model and turn them into index maps. Nothing is changed.

    `widths` may have been found before earlier resizes: sizes are read from the live tensors, only
    the ties are taken from it; edits of blocks and of a `Dag`'s nodes and weights need none. Edits
    of one width are carried out in the given order. gradients: `full_gradient` of each `Dag` that a
    `Rewire` is to follow, by module; generator: draws the new places of the others. Raises
    `PlanError` naming the width, the value and the remedy.
    """
    edits = tuple(edits)
    tensors = tensors_of(model)
    blocks: list[tuple[str, int]] = []
    of_widths: list[Grow | Shrink | Split] = []
    parts: list[_Part] = []
    for edit in edits:
        match edit:
            case Grow() | Shrink() | Split():
                of_widths.append(edit)
            case AddBlock() | DropBlock():
                blocks.append((edit.module, _checked_block(model, edit, blocks)))
            case GrowNodes() | PruneWeights() | Rewire():
                parts.append(_with_wiring(model, edit, tensors, gradients, generator))
            case AddStage():
                parts.append(_with_stage(model, edit))
    whole = _with_sizes(model, widths, of_widths, tensors)
    for part in parts:
        whole = _joined(whole, part)
    rows = whole.rows
    return Plan(
        edits,
        rows,
        tuple(blocks),
        whole.sizes,
        whole.covers,
        all(_keeps(model, widths, edit, rows, tensors) for edit in edits),
        followed(model, changes(rows, whole.sizes, whole.covers, tensors)),
        whole.wirings,
        whole.modules,
        whole.frozen,
    )


def _joined(one: _Part, other: _Part) -> _Part:
    """Both. Raises `PlanError` where they change one dimension."""
    taken = {(row.tensor, row.dim) for row in one.rows}
    twice = [row for row in other.rows if (row.tensor, row.dim) in taken]
    if twice:
        raise PlanError(
            f"two of these edits change {twice[0]}, each in its own way; plan and apply one after "
            "the other"
        )
    return _Part(
        one.rows + other.rows,
        one.sizes | other.sizes,
        one.covers | other.covers,
        one.wirings + other.wirings,
        one.modules + other.modules,
        one.frozen + other.frozen,
    )


def _with_sizes(
    model: nn.Module,
    widths: Mapping[str, Width],
    edits: Sequence[Grow | Shrink | Split],
    tensors: Mapping[str, Tensor],
) -> _Part:
    """What becomes of the tensors that the edited widths cover."""
    maps, sizes = _maps(widths, edits, tensors)
    covers = {name: find(widths, name).slots for name in maps}
    slots = dict.fromkeys(slot for slots in covers.values() for slot in slots)
    rows = []
    wirings: dict[str, Rewiring] = {}
    # rows before columns: a new unit is drawn as the layer's others are, then its effect on old
    # units is set to zero
    for slot in sorted(slots, key=lambda slot: slot.role.startswith("in")):
        if slot.role == FLAT:
            wiring = _wired(model, slot, maps, widths, tensors)
            wirings[slot.tensor.rpartition(".")[0]] = wiring
            sources = wiring.index
        else:
            total = tensors[slot.tensor].shape[slot.dim] if slot.tensor in tensors else 0
            sources = _laid_out(slot, maps, widths, tensors, total)
        rows.append(Row(slot.tensor, slot.dim, slot.role, sources))
    return _Part(tuple(rows), sizes, covers, tuple(wirings.items()))


def _maps(
    widths: Mapping[str, Width],
    edits: Iterable[Grow | Shrink | Split],
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, list[int]], dict[str, tuple[int, int]]]:
    """By width: the unit that each unit afterwards was, and the sizes (before, after)."""
    maps: dict[str, list[int]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for edit in edits:
        width = find(widths, edit.width)
        if width.fixed:
            raise PlanError(f"width '{width.name}' cannot change: {width.fixed}")
        live = live_size(widths, width.name, tensors)
        index = maps.setdefault(width.name, list(range(live)))
        maps[width.name] = _edited(width, index, edit)
        sizes[width.name] = (live, len(maps[width.name]))
    return maps, sizes


def _with_wiring(
    model: nn.Module,
    edit: OfDag,
    tensors: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    generator: torch.Generator | None,
) -> _Part:
    """What becomes of the tensors of a `Dag` whose nodes or weights come and go."""
    dag = _module(model, edit.module, Dag)
    weight = _dotted(edit.module, "weight")
    match edit:
        case GrowNodes():
            wiring = _grown(dag, edit)
        case PruneWeights():
            wiring = pruned(dag, edit.share)
        case Rewire():
            wiring = rewired(dag, edit.share, gradients.get(edit.module), generator)
    rows = [Row(weight, 0, FLAT, wiring.index)]
    sizes = {weight: (dag.weight.numel(), len(wiring.index))}
    if isinstance(edit, GrowNodes):
        rows += [row for row in _of_nodes(dag, edit.module, wiring) if row.tensor in tensors]
        sizes = {_dotted(edit.module, "nodes"): (dag.nodes, wiring.layout.nodes)}
    return _Part(tuple(rows), sizes, wirings=((edit.module, wiring),))


def _grown(dag: Dag, edit: GrowNodes) -> Moved:
    if edit.module and dag.readout is None:
        raise PlanError(
            f"GrowNodes: '{edit.module}' has no readout, so other layers read its nodes; "
            f"Grow('{edit.module}', ...) resizes those, too"
        )
    return grown(dag, edit.count)


def _of_nodes(dag: Dag, module: str, wiring: Moved) -> tuple[Row, Row]:
    """A bias for each new node, and columns of a readout."""
    biases = extended(dag.nodes, wiring.layout.nodes)
    columns = extended(dag.layout.values, wiring.layout.values)
    return (
        Row(_dotted(module, "bias"), 0, "bias", biases),
        Row(_dotted(module, "readout.weight"), 1, "in", columns),
    )


def _with_stage(model: nn.Module, edit: AddStage) -> _Part:
    """A new stage of a `Cascade`, which its readout reads at once; the last one is frozen."""
    cascade = _module(model, edit.module, Cascade)
    if edit.count < 1:
        raise PlanError(f"AddStage: count={edit.count}; give at least 1")
    key, last = list(cascade.stages.named_children())[-1]
    assert isinstance(last, Dag)
    stages = _dotted(edit.module, "stages")
    readout = _dotted(edit.module, "readout.weight")
    count = len(cascade.stages)
    before = cascade.features
    after = before + last.layout.width * edit.count
    stage = Placed(
        f"{stages}.{count}",
        f"Dag of {edit.count} nodes",
        readout,
        lambda model, generator: _module(model, edit.module, Cascade).new_stage(
            edit.count, generator
        ),
    )
    return _Part(
        (Row(readout, 1, "in", extended(before, after)),),
        {stages: (count, count + 1), readout: (before, after)},
        modules=(stage,),
        frozen=tuple(f"{stages}.{key}.{name}" for name, _ in last.named_parameters()),
    )


def _module(model: nn.Module, name: str, kind: type[_Kind]) -> _Kind:
    """The module called `name`. Raises `PlanError` where it is of another kind, or none."""
    known = [known for known, module in model.named_modules() if isinstance(module, kind)]
    if name not in known:
        raise PlanError(
            f"there is no {kind.__name__} '{name}'; this model's are: "
            f"{', '.join(map(repr, known)) or 'none'}"
        )
    module = model.get_submodule(name)
    assert isinstance(module, kind)
    return module


def _dotted(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def changes(
    rows: Iterable[Row],
    sizes: Mapping[str, tuple[int, int]],
    covers: Mapping[str, Iterable[Slot]],
    tensors: Mapping[str, Tensor],
) -> dict[str, list[tuple[int, int]]]:
    """For each tensor, the sizes (before, after) that change: of its dimensions, and of the widths
    in them.
    """
    sizes_of: dict[str, list[tuple[int, int]]] = {}
    for row in rows:
        sizes_of.setdefault(row.tensor, []).append(
            (tensors[row.tensor].shape[row.dim], len(row.index))
        )
    for name, slots in covers.items():
        for slot in slots:
            sizes_of[slot.tensor].append(sizes[name])
    return sizes_of


def _keeps(
    model: nn.Module,
    widths: Mapping[str, Width],
    edit: Edit,
    rows: Iterable[Row],
    tensors: Mapping[str, Tensor],
) -> bool:
    match edit:
        case Grow() | Split():
            return not find(widths, edit.width).not_preserved
        case Shrink():
            width = find(widths, edit.width)
            reading = [row for row in rows if _of(width, row)]
            return (
                not width.not_preserved
                and bool(reading)
                and all(_unread(tensors[row.tensor], row) for row in reading)
            )
        case AddBlock():
            stack = model.get_submodule(edit.module)
            return stack.new_block_is_silent() if has_blocks(stack) else True
        case GrowNodes():
            return _module(model, edit.module, Dag).readout is not None
        case AddStage():
            return True
    return False


def _of(width: Width, row: Row) -> bool:
    """Whether `row` is of columns that read the width."""
    reads = row.role.startswith("in") or row.role == FLAT
    return reads and any((slot.tensor, slot.dim) == (row.tensor, row.dim) for slot in width.slots)


def _unread(tensor: Tensor, row: Row) -> bool:
    """Whether all columns that leave are zero."""
    leaves = torch.ones(tensor.shape[row.dim], dtype=torch.bool)
    leaves[row.index[row.index != NEW]] = False
    gone = tensor.detach().index_select(row.dim, leaves.nonzero()[:, 0].to(tensor.device))
    return not leaves.any() or (not tensor.is_meta and not bool(gone.any()))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by qualified name, tied ones under each of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def live_size(widths: Mapping[str, Width], name: str, tensors: Mapping[str, Tensor]) -> int:
    """The size that width `name` has now, in units: read from a tensor dimension that it fills,
    alone or beside widths that fill one alone.
    """
    width = find(widths, name)
    if width.fixed:
        return width.size
    for slot in sorted(width.slots, key=lambda s: len({span.width for span in s.spans})):
        if slot.tensor not in tensors or slot.role == FLAT:
            continue
        others = {span.width for span in slot.spans} - {width.name}
        sizes = {other: _alone(find(widths, other), tensors) for other in others}
        if None not in sizes.values():
            rest = sum(
                (sizes[span.width] or 0) * span.repeat
                for span in slot.spans
                if span.width in others
            )
            own = sum(span.repeat for span in slot.spans if span.width == width.name)
            return (tensors[slot.tensor].shape[slot.dim] - rest) // own
    raise PlanError(
        f"width '{width.name}': none of its tensors shows its size; call widths(trace(model, "
        "example)) again"
    )


def _alone(width: Width, tensors: Mapping[str, Tensor]) -> int | None:
    for slot in width.slots:
        if (
            slot.tensor in tensors
            and slot.role != FLAT
            and all(span.width == width.name for span in slot.spans)
        ):
            return tensors[slot.tensor].shape[slot.dim] // sum(span.repeat for span in slot.spans)
    return None


def resized(widths: Mapping[str, Width], plan: Plan) -> dict[str, Width]:
    """The same widths with the sizes they have after `plan`."""
    return {
        name: replace(width, size=plan.sizes[name][1]) if name in plan.sizes else width
        for name, width in widths.items()
    }


def _edited(width: Width, index: list[int], edit: Grow | Shrink | Split) -> list[int]:
    name = width.name
    size = len(index)
    if isinstance(edit, Grow):
        if edit.units < 1:
            raise PlanError(
                f"width '{name}': Grow by {edit.units}; give at least 1 unit, or Shrink to remove "
                "some"
            )
        return index + [NEW] * edit.units
    field, units = ("of", edit.of) if isinstance(edit, Split) else ("drop", edit.drop)
    if outside := [unit for unit in units if not 0 <= unit < size]:
        raise PlanError(
            f"width '{name}' has {size} units; {field}={outside} is out of range (0-{size - 1})"
        )
    if isinstance(edit, Split):
        more = ("in and more", FLAT)
        entangled = [
            f"{slot} has columns that do more than read it"
            for slot in width.slots
            if slot.role in more
        ]
        if why := width.not_preserved or next(iter(entangled), ""):
            raise PlanError(
                f"width '{name}': twins would change the function here ({why}); Grow it instead"
            )
        return index + [index[unit] for unit in edit.of]
    if len(edit.drop) >= size:
        raise PlanError(
            f"width '{name}' has {size} units; dropping {len(edit.drop)} leaves none, keep at "
            "least 1"
        )
    gone = set(edit.drop)
    return [source for position, source in enumerate(index) if position not in gone]


def _checked_block(
    model: nn.Module, edit: AddBlock | DropBlock, earlier: list[tuple[str, int]]
) -> int:
    known = stacks(model)
    if edit.module not in known:
        raise PlanError(
            f"there is no stack of blocks '{edit.module}'; this model's are: "
            f"{', '.join(known) or 'none'}"
        )
    if isinstance(edit, AddBlock):
        if is_plain(model, edit.module) and not len(known[edit.module]):
            raise PlanError(
                f"'{edit.module}' has no blocks; AddBlock repeats the last one, so put a first one "
                "there"
            )
        if is_plain(model, edit.module) and not any(
            True for _ in known[edit.module][-1].parameters()
        ):
            kind = type(known[edit.module][-1]).__name__
            raise PlanError(
                f"'{edit.module}' ends with {kind}, which has no parameters; AddBlock repeats the "
                "last block"
            )
        return 1
    count = len(known[edit.module]) + sum(delta for name, delta in earlier if name == edit.module)
    if count < 2:
        raise PlanError(f"'{edit.module}' has {count} block; at least one stays, drop fewer")
    return -1


def _wired(
    model: nn.Module,
    slot: Slot,
    maps: Mapping[str, list[int]],
    widths: Mapping[str, Width],
    tensors: Mapping[str, Tensor],
) -> Rewiring:
    layer = model.get_submodule(slot.tensor.rpartition(".")[0])
    assert is_wired(layer)
    rows = _laid_out(slot, maps, widths, tensors, layer.row_count())
    units = maps.get(slot.spans[-1].width)
    rewiring: Rewiring = layer.rewiring(rows, None if units is None else len(units))
    return rewiring


def _laid_out(
    slot: Slot,
    maps: Mapping[str, list[int]],
    widths: Mapping[str, Width],
    tensors: Mapping[str, Tensor],
    total: int,
) -> Tensor:
    """The index map of one dimension, of `total` entries: its spans one after the other, each entry
    as a block.
    """
    if slot.tensor not in tensors:
        raise PlanError(
            f"tensor '{slot.tensor}' left the model since it was traced; call widths(trace(...)) "
            "again"
        )
    index = []
    start = 0
    for span in slot.spans:
        size = live_size(widths, span.width, tensors)
        sources = torch.tensor(maps[span.width]) if span.width in maps else torch.arange(size)
        entries = start + sources[:, None] * span.repeat + torch.arange(span.repeat)
        entries[sources == NEW] = NEW
        index.append(entries.flatten())
        start += size * span.repeat
    if start != total:
        raise Unsupported(
            f"tensor '{slot.tensor}' has size {total} in dimension {slot.dim} where its widths "
            f"give {start}; call widths(trace(model, example)) again"
        )
    return torch.cat(index)
