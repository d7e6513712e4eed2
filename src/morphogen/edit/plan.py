"""Resolve and check edits before anything changes: `plan(model, widths, edits) -> Plan`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from morphogen.edit.blocks import is_plain, stacks
from morphogen.edit.edit import AddBlock, DropBlock, Edit, Grow, Shrink, Split
from morphogen.edit.follow import moved as followed
from morphogen.errors import PlanError, Unsupported
from morphogen.layers.protocol import Rewiring, has_blocks, is_wired
from morphogen.tracing.widths import FLAT, Slot, Width, find

NEW = -1


@dataclass(frozen=True)
class Row:
    """How one tensor dimension changes: entry j of the result is entry `index[j]` of the tensor, or
    new (`NEW`).
    """

    tensor: str
    dim: int
    role: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}]"


@dataclass(frozen=True)
class Plan:
    """Everything `apply_` will do. Printing it gives one line a width, or a block.

    keeps: whether the function stays exactly as it is, by construction: growth of widths that
    nothing feels (see `Width.not_preserved`), removal of units whose outgoing weights are all zero,
    splits, and new blocks behind closed gates. attributes: (module, attribute, value) that follow,
    see `morphogen.follow`. rows: in an order such that a new row's columns into old units are made
    after the row. blocks: (module, +1 or -1). wirings: what becomes of each wired layer, such as
    a `Dag`, by module.
    """

    edits: tuple[Edit, ...]
    rows: tuple[Row, ...]
    blocks: tuple[tuple[str, int], ...]
    sizes: dict[str, tuple[int, int]]
    covers: dict[str, tuple[Slot, ...]]
    keeps: bool
    attributes: tuple[tuple[str, str, int], ...] = ()
    wirings: tuple[tuple[str, Rewiring], ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        lines = [
            f"{name} {before} -> {after}: {' '.join(map(str, self.covers[name]))}"
            for name, (before, after) in self.sizes.items()
        ]
        lines += [f"{module} {'+' if delta > 0 else '-'}1 block" for module, delta in self.blocks]
        lines += [
            f"{module}.{attribute} = {value}".removeprefix(".")
            for module, attribute, value in self.attributes
        ]
        return "\n".join(lines) or "nothing to do"


def plan(model: nn.Module, widths: Mapping[str, Width], edits: Iterable[Edit]) -> Plan:
    """Check `edits` against the model and turn them into index maps. Nothing is changed.

    `widths` may have been found before earlier resizes: sizes are read from the live tensors, only
    the ties are taken from it. Edits of one width are carried out in the given order. Raises
    `PlanError` naming the width, the value and the remedy.
    """
    edits = tuple(edits)
    tensors = tensors_of(model)
    maps: dict[str, list[int]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    blocks: list[tuple[str, int]] = []
    for edit in edits:
        match edit:
            case Grow() | Shrink() | Split():
                width = find(widths, edit.width)
                if width.fixed:
                    raise PlanError(f"width '{width.name}' cannot change: {width.fixed}")
                live = live_size(widths, width.name, tensors)
                index = maps.setdefault(width.name, list(range(live)))
                maps[width.name] = _edited(width, index, edit)
                sizes[width.name] = (live, len(maps[width.name]))
            case AddBlock() | DropBlock():
                blocks.append((edit.module, _checked_block(model, edit, blocks)))
    covers = {name: find(widths, name).slots for name in maps}
    slots = dict.fromkeys(slot for slots in covers.values() for slot in slots)
    # rows before columns: a new unit is drawn as the layer's others are, then its effect on old
    # units is set to zero
    ordered = sorted(slots, key=lambda slot: slot.role.startswith("in"))
    wirings = {s.tensor: _wired(model, s, maps, widths, tensors) for s in ordered if s.role == FLAT}
    rows = tuple(
        Row(s.tensor, s.dim, s.role, tuple(wirings[s.tensor].index.tolist()))
        if s.role == FLAT
        else Row(
            s.tensor,
            s.dim,
            s.role,
            _laid_out(s, maps, widths, tensors, tensors[s.tensor].shape[s.dim]),
        )
        for s in ordered
    )
    keeps = all(_keeps(model, widths, edit, rows, tensors) for edit in edits)
    attributes = followed(model, changes(rows, sizes, covers, tensors))
    named = tuple((tensor.rpartition(".")[0], change) for tensor, change in wirings.items())
    return Plan(edits, rows, tuple(blocks), sizes, covers, keeps, attributes, named)


def changes(
    rows: Iterable[Row],
    sizes: Mapping[str, tuple[int, int]],
    covers: Mapping[str, Iterable[Slot]],
    tensors: Mapping[str, Tensor],
) -> dict[str, list[tuple[int, int]]]:
    """For each tensor, the sizes (before, after) that change: of its dimensions, and of the widths
    in them.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for row in rows:
        found.setdefault(row.tensor, []).append(
            (tensors[row.tensor].shape[row.dim], len(row.index))
        )
    for name, slots in covers.items():
        for slot in slots:
            found[slot.tensor].append(sizes[name])
    return found


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
    return False


def _of(width: Width, row: Row) -> bool:
    """Whether `row` is of columns that read the width."""
    reads = row.role.startswith("in") or row.role == FLAT
    return reads and any((slot.tensor, slot.dim) == (row.tensor, row.dim) for slot in width.slots)


def _unread(tensor: Tensor, row: Row) -> bool:
    """Whether all columns that leave are zero."""
    leave = sorted(set(range(tensor.shape[row.dim])).difference(row.index))
    gone = tensor.detach().index_select(
        row.dim, torch.tensor(leave, dtype=torch.long, device=tensor.device)
    )
    return not leave or (not tensor.is_meta and not bool(gone.any()))


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
) -> tuple[int, ...]:
    """The index map of one dimension, of `total` entries: its spans one after the other, each entry
    as a block.
    """
    if slot.tensor not in tensors:
        raise PlanError(
            f"tensor '{slot.tensor}' left the model since it was traced; call widths(trace(...)) "
            "again"
        )
    index: list[int] = []
    start = 0
    for span in slot.spans:
        size = live_size(widths, span.width, tensors)
        sources = torch.tensor(maps[span.width]) if span.width in maps else torch.arange(size)
        entries = start + sources[:, None] * span.repeat + torch.arange(span.repeat)
        entries[sources == NEW] = NEW
        index += entries.flatten().tolist()
        start += size * span.repeat
    if start != total:
        raise Unsupported(
            f"tensor '{slot.tensor}' has size {total} in dimension {slot.dim} where its widths "
            f"give {start}; call widths(trace(model, example)) again"
        )
    return tuple(index)
