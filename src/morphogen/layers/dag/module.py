"""Neurons without layers: every node may read every input and every earlier node.

    h_i = g(b_i + sum over the sources j of node i of w_ij h_j),   i = 0, 1, ..., n - 1,   indices:
    inputs and earlier nodes

A multilayer perceptron and a dense-connected one are special cases (`wiring="block"`), cascade
correlation grows one.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.errors import ShapeError
from morphogen.layers.dag.dense import SOLVERS, Layout, Part, dag, inside, tril_index
from morphogen.layers.dag.sparse import Wiring, reader_of, sparse_dag, wiring
from morphogen.layers.dag.stats import Stats, stats
from morphogen.layers.dag.unrolled import by_levels
from morphogen.layers.linked import Linked, odd_part, second_moment
from morphogen.layers.linked_op import KINDS
from morphogen.layers.protocol import Fold

WIRINGS = ("full", "random", "block")
# from this share of the full wiring on, matrix products over the zeros too are faster than single
# weights
DENSE = 0.12


class Dag(nn.Module):
    """(..., in_features) -> (..., out_features), or all nodes' values (..., nodes), linked (..., 2
    nodes), without a readout.

    wiring: "full", each node reads all inputs and all earlier nodes; "random", each reads `fan_in`
    of them, drawn once, all equally likely, and stored; "block", each reads all inputs and the
    nodes of earlier blocks of `block_size` nodes, so that nothing inside a block waits: a
    dense-connected perceptron. The readout is linear and sees inputs and nodes, so that no node is
    in vain. activation: a name of `KINDS`; linked: each node puts out [g(z), g(-z)], and what reads
    it has two weights for it. generator: of the weights and of the wiring.

    block_size: how many nodes a matrix product makes at once; with "full" it changes speed only.
    solver: of the nodes inside a block, see `dense.dag`; "auto" is exact and fast. Weights are one
    flat parameter without the zeros of the upper triangle, block after block, so that no decay or
    momentum can reach a weight that is not there; a "random" wiring has one weight for each source.
    `matrix()` shows them as a matrix.

    Each row starts by its own fan-in: the variance 1 / (fan_in E[g(z)^2]), 2 / fan_in for ReLU,
    keeps the second moment of all nodes alike, and gradients fall as (d + n) / (d + i), a power and
    never exponentially. Linked rows start linear where g allows, weights (v, -v) of variance
    1 / fan_in.

    Source: the wiring, Fahlman & Lebiere 1990; "connect every node with every prior node" and its
    random form, a post of 2017 (DagNN), which leaves activation, start and readout open. Errors:
    `ShapeError` for sizes and names that cannot be.
    """

    def __init__(
        self,
        in_features: int,
        nodes: int,
        out_features: int | None = None,
        wiring: Literal["full", "random", "block"] = "full",
        *,
        fan_in: int | None = None,
        block_size: int | None = None,
        activation: Literal["relu", "elu", "selu", "silu", "gelu"] = "relu",
        linked: bool = False,
        bias: bool = True,
        solver: Literal["auto", "native", "jacobi", "loop"] = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "nodes": nodes, "out_features": out_features or 1}
        for name, size in sizes.items():
            if size < 1:
                raise ShapeError(f"Dag: {name}={size}; give at least 1")
        _require_known("wiring", wiring, WIRINGS)
        _require_known("activation", activation, KINDS)
        _require_known("solver", solver, SOLVERS)
        _require_sources(wiring, fan_in, block_size)
        self.in_features = in_features
        self.nodes = nodes
        self.out_features = out_features
        self.activation = activation
        self.linked = linked
        self.solver = solver
        self.block_size = block_size
        self.seed = int(torch.randint(2**62, (), generator=generator))
        self.layout = Layout(
            in_features, blocks_of(nodes, block_size), wiring != "block", activation, linked
        )
        self.indices: Tensor | None
        self.indptr: Tensor | None
        self.fan_in = fan_in
        indices = None
        indptr = None
        if fan_in:
            indices, indptr = drawn_wiring(self.layout, fan_in, 0, generator)
        self.register_buffer("indices", indices)
        self.register_buffer("indptr", indptr)
        weights = self.layout.weights if indices is None else len(indices)
        self.weight = nn.Parameter(torch.empty(weights))
        self.bias: Tensor
        if bias:
            self.register_parameter("bias", nn.Parameter(torch.zeros(nodes)))
        else:
            self.register_buffer("bias", torch.zeros(nodes))
        self.readout = None if out_features is None else nn.Linear(self.layout.values, out_features)
        self._arrange()
        self.reset_parameters(generator)

    @property
    def sparse(self) -> bool:
        """Whether single weights are kept, one for each source."""
        return self.indices is not None

    @property
    def density(self) -> float:
        """Weights over those of the full wiring."""
        full = Layout(self.in_features, self.layout.blocks, True, self.activation, self.linked)
        return self.weight.numel() / full.weights

    def rearrange(self, layout: Layout, indices: Tensor | None, indptr: Tensor | None) -> None:
        """Take another wiring; the weights must have its sizes already."""
        # a network of shapes alone keeps its wiring
        device = "cpu" if self.weight.is_meta else self.weight.device
        self.layout = layout
        self.indices, self.indptr = (
            None if t is None else t.to(device, copy=True) for t in (indices, indptr)
        )
        self.in_features = layout.inputs
        self.nodes = layout.nodes
        self._arrange()

    @property
    def blocks(self) -> tuple[int, ...]:
        """How many nodes each block has. Set, they say how the weights, which must have the sizes
        already, are to be read.
        """
        return self.layout.blocks

    @blocks.setter
    def blocks(self, sizes: Sequence[int]) -> None:
        self.rearrange(
            replace(self.layout, inputs=self.in_features, blocks=tuple(sizes)),
            self.indices,
            self.indptr,
        )

    def _arrange(self) -> None:
        """What follows from the stored wiring; not part of the state."""
        for name in ("order", "readers", "ends", "levels", "places"):
            self._buffers.pop(name, None)
        if self.indices is None or self.indptr is None:
            return
        if self.density < DENSE:
            wires = wiring(
                self.indices.cpu(), self.indptr.cpu(), self.in_features, self.layout.width
            )
            derived = {
                name: getattr(wires, name) for name in ("order", "readers", "ends", "levels")
            }
        else:
            derived = {"places": places(self.layout, self.indices.cpu(), self.indptr.cpu())}
        for name, value in derived.items():
            self.register_buffer(name, value.to(self.indices.device), persistent=False)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        """A stored wiring replaces the one that was drawn; linked, it may have another number of
        weights.
        """
        stored = state.get(f"{prefix}indices")
        if self.indices is not None and stored is not None and len(stored) != len(self.indices):
            self.indices = torch.empty_like(stored, device=self.indices.device)
            self.weight.data = self.weight.new_empty(len(stored))
        super()._load_from_state_dict(state, prefix, *others)
        self._arrange()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew; biases are 0."""
        self.start(0, generator)
        self.bias.zero_()
        if self.readout is not None:
            bound = 1 / math.sqrt(self.layout.values)
            for parameter in self.readout.parameters():
                parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)

    @torch.no_grad()
    def start(self, first: int, generator: torch.Generator | None = None) -> None:
        """Draw the weights of the nodes from `first` on; those of shapes alone cannot be."""
        if first == self.nodes or self.weight.is_meta:
            return
        scale, linear = self._scale()
        weight = self.weight.data  # written to as by a resize, which can be undone
        if self.indices is None or self.indptr is None:
            for part in self.layout.parts(weight):
                if part.node + part.size > first:
                    self._start_part(
                        part, max(0, first - part.node), scale[part.nodes, None], linear, generator
                    )
            return
        begin = int(self.indptr[first])
        node_of = self._reader()[begin:]
        indices = self.indices[begin:].cpu()
        drawn = torch.randn(len(node_of), generator=generator) * scale[node_of]
        reads_node = indices >= self.in_features
        if linear:
            second = torch.where(reads_node & ((indices - self.in_features) % 2 == 1))[0]
            drawn[second] = -drawn[second - 1]
            drawn[reads_node] /= linear
        weight[begin:] = drawn.to(weight)

    def _start_part(
        self,
        part: Part,
        first: int,
        scale: Tensor,
        linear: float | None,
        generator: torch.Generator | None,
    ) -> None:
        """Rows of a block, from `first` on."""
        end = part.node + part.size if self.layout.inner else part.node
        scale = scale[first:]
        drawn = torch.randn(part.size - first, self.in_features + end, generator=generator) * scale
        inputs, nodes = drawn.split([self.in_features, end], 1)
        if self.linked and linear:
            # g(z) - g(-z) = linear z
            nodes = torch.stack((nodes, -nodes), 2).flatten(1) / linear
        elif self.linked:
            other = torch.randn(nodes.shape, generator=generator) * scale
            nodes = torch.stack((nodes, other), 2).flatten(1)
        rows = torch.cat((inputs, nodes), 1).to(self.weight)
        part.panel[first:] = rows[:, : part.before]
        if self.layout.inner:
            # the triangle's rows before `first` have 0, 1, ..., first - 1 nodes
            width = self.layout.width
            kept = width * first * (first - 1) // 2
            places = tril_index(part.size, width, rows.device)[kept:] - first * width * part.size
            part.triangle[kept:] = rows[:, part.before :].take(places)

    def _scale(self) -> tuple[Tensor, float | None]:
        """The standard deviation of each node's weights, and g(z) - g(-z) over z of a start that is
        linear.
        """
        passed, linear = self._energy_passed()
        inputs, nodes = self._source_counts()
        # 1 / sqrt(inputs + passed * nodes): inputs have the second moment 1
        return (inputs + passed * nodes).clamp_min(1e-12).rsqrt(), linear

    def _energy_passed(self) -> tuple[float, float | None]:
        """(how much of a sum's second moment a node passes on to what reads it, the slope of a
        start that is linear).
        """
        if not self.linked:
            return _passed(self.activation), None
        linked = Linked(KINDS[self.activation].module())
        linear = odd_part(linked)
        return (1.0 if linear else 2 * second_moment(linked)), linear

    def _source_counts(self) -> tuple[Tensor, Tensor]:
        """How many inputs and how many nodes each node reads."""
        if self.indices is not None:
            reads_node = self.indices.cpu() >= self.in_features
            node_of = self._reader()
            inputs = torch.bincount(node_of[~reads_node], minlength=self.nodes).float()
            values = torch.bincount(node_of[reads_node], minlength=self.nodes)
            return inputs, values / self.layout.width
        inputs = torch.full((self.nodes,), float(self.in_features))
        if self.layout.inner:
            return inputs, torch.arange(self.nodes)
        blocks = torch.tensor(self.layout.blocks)
        return inputs, (blocks.cumsum(0) - blocks).repeat_interleave(blocks)

    def entries(self) -> tuple[Tensor, Tensor]:
        """(node, row of values that it reads) of every weight, in order; on the CPU."""
        return (
            entries(self.layout) if self.indices is None else (self._reader(), self.indices.cpu())
        )

    def _reader(self) -> Tensor:
        """The node of each weight of a sparse wiring."""
        assert self.indptr is not None
        return reader_of(self.indptr.cpu())

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """All weights as a matrix (nodes, in_features + nodes), linked with two columns a node; 0
        where there is none.
        """
        full = self.weight.new_zeros(self.nodes, self.layout.values)
        if self.indices is not None:
            full[self._reader().to(full.device), self.indices] = self.weight
            return full
        for part in self.layout.parts(self.weight):
            full[part.nodes, : part.before] = part.panel
            full[part.nodes, part.rows(self.layout.width)] = inside(self.layout, part)
        return full

    def stats(self) -> Stats:
        """Levels, sinks, reach, hops and path lengths: see `dag_stats`."""
        return stats(self)

    def values(self, x: Tensor) -> Tensor:
        """Inputs and nodes, feature-major: rows x (batch, in_features) -> (in_features + nodes,
        batch).
        """
        if not self.sparse or "places" in self._buffers:
            return dag(
                x, self.weight, self.bias, self.layout, self.solver, self._buffers.get("places")
            )
        names = ("indices", "indptr", "order", "readers", "ends", "levels")
        wires = Wiring(*map(self.get_buffer, names))
        return sparse_dag(x, self.weight, self.bias, wires, self.activation, self.linked)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ShapeError(
                f"Dag: input of shape {tuple(x.shape)}; the last dimension must be "
                f"in_features={self.in_features}"
            )
        return self.read(self.values(x.reshape(-1, self.in_features))).reshape(*x.shape[:-1], -1)

    def read(self, values: Tensor) -> Tensor:
        """What the module returns, (batch, features), from the values of inputs and nodes."""
        if self.readout is not None:
            out: Tensor = self.readout(values.T)
            return out
        nodes = values[self.in_features :]
        # the positive halves first, as a linked activation has them
        return (
            nodes.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1) if self.linked else nodes
        ).T

    # What the rest of the library asks, see `layers.protocol`
    # ----------------------------------------------------------------------------------

    def unrolled(self) -> nn.Module:
        """See `by_levels`."""
        return by_levels(self)

    def to_plain(self, fold: Fold) -> nn.Module:
        """A linear layer for each level."""
        return by_levels(self)

    def tensor_sizes(self) -> dict[str, Any]:
        """What is kept beside the tensors."""
        return {
            "in_features": self.layout.inputs,
            "blocks": self.layout.blocks,
            "seed": self.seed,
        }

    @property
    def drawn_tensors(self) -> tuple[str, ...]:
        """A random wiring, linked, has as many weights as its draw gave it."""
        return ("weight", "indices", "indptr") if self.sparse else ()

    def row_count(self) -> int:
        """Rows of values: inputs, then what the nodes put out."""
        return self.layout.values

    def connections(self) -> tuple[Tensor, Tensor]:
        """(first row of the node, row that it reads) of every weight."""
        node, row = self.entries()
        return self.in_features + self.layout.width * node, row

    def rewiring(self, rows: Tensor, units: int | None) -> "Moved":
        """See `moved`."""
        nodes = self.nodes if units is None else units
        return moved(self, rows, len(rows) - self.layout.width * nodes)

    def wired_for(self, rewiring: "Moved") -> bool:
        """Whether `rewiring` was made of the wiring of now. A network of shapes alone has no
        numbers to compare.
        """
        layout, *wires = rewiring.before
        live = (self.indices, self.indptr)
        return self.layout == layout and all(map(_same, live, wires))

    def rewire(self, rewiring: "Moved") -> None:
        """Take the new wiring."""
        self.rearrange(rewiring.layout, rewiring.indices, rewiring.indptr)

    def rewirer(self) -> Callable[[], None]:
        """What gives the wiring of now back."""
        return partial(self.rearrange, self.layout, self.indices, self.indptr)

    def extra_repr(self) -> str:
        wired = "full" if self.layout.inner else "block"
        if self.sparse:
            wired = f"{self.density:.0%} of the full wiring"
        return (
            f"{self.in_features}, nodes={self.nodes}, activation={self.activation}, "
            f"linked={self.linked}, wiring={wired}"
        )


def entries(layout: Layout) -> tuple[Tensor, Tensor]:
    """(node, row of values that it reads) of every weight of a flat layout, in order."""
    nodes = []
    rows = []
    for part in layout.parts(torch.empty(layout.weights, device="meta")):
        node = torch.arange(part.node, part.node + part.size)
        nodes.append(node.repeat_interleave(part.before))
        rows.append(torch.arange(part.before).repeat(part.size))
        if layout.inner:
            nodes.append(node.repeat_interleave(layout.width * torch.arange(part.size)))
            rows += [part.before + torch.arange(layout.width * row) for row in range(part.size)]
    return torch.cat(nodes), torch.cat(rows)


def flat_places(layout: Layout, node: Tensor, row: Tensor) -> Tensor:
    """Where the weights by which nodes read rows of values stand in a flat layout; -1 where it has
    none.
    """
    # of each node: where its row of the panel and of the triangle begin, and how long both are
    starts, slants, befores, limits = [], [], [], []
    at = 0
    parts = layout.parts(torch.empty(layout.weights, device="meta"))
    for (panel, triangle), part in zip(layout.sizes(), parts, strict=True):
        own = torch.arange(part.size)
        starts.append(at + own * part.before)
        # rows of the triangle have 0, width, 2 width, ... entries
        slants.append(at + panel + layout.width * (own * (own - 1) // 2) - part.before)
        befores.append(torch.full_like(own, part.before))
        limits.append(part.before + layout.width * own * layout.inner)
        at += panel + triangle
    none = torch.tensor([0])  # for node -1
    start, slant, before, limit = (
        torch.cat([*each, none])[node] for each in (starts, slants, befores, limits)
    )
    place = row + torch.where(row < before, start, slant)
    return torch.where((row >= 0) & (row < limit), place, -1)


def places(layout: Layout, indices: Tensor, indptr: Tensor) -> Tensor:
    """Where the entries of a sparse wiring stand in the flat weight of the full one."""
    return flat_places(layout, reader_of(indptr), indices)


def blocks_of(nodes: int, block_size: int | None) -> tuple[int, ...]:
    """The nodes of each block, all but the last alike; by default as many as are fast."""
    step = block_size or (128 if nodes <= 512 else 256)
    return tuple(min(step, nodes - first) for first in range(0, nodes, step))


@dataclass(frozen=True)
class Moved:
    """A wiring after inputs or nodes came and went: entry j of the weight was entry index[j], or is
    new (-1). first: the first of the new nodes. before: layout, indices and indptr as they were.
    """

    before: tuple[Layout, Tensor | None, Tensor | None]
    layout: Layout
    indices: Tensor | None
    indptr: Tensor | None
    index: Tensor
    first: int


def moved(dag: Dag, source: Tensor, inputs: int) -> Moved:
    """What becomes of the weights when row j of the values is what was row source[j], or is new
    (-1); new nodes come last.

    inputs: how many of the rows are inputs. New nodes read inputs and nodes before them, as the
    wiring says; old nodes read nothing new, but new inputs where they read all. The sources of new
    nodes of a random wiring depend on `dag.seed` and on their number alone, so that copies grow
    alike.
    """
    old = dag.layout
    before = (old, dag.indices, dag.indptr)
    nodes = source[inputs :: old.width]
    known = torch.div(nodes - old.inputs, old.width, rounding_mode="floor")
    nodes = torch.where(nodes < 0, nodes, known)
    first = int((nodes >= 0).sum())
    layout = replace(old, inputs=inputs, blocks=_blocks_after(dag, nodes))
    if dag.indices is None or dag.indptr is None:
        node, row = entries(layout)
        index = flat_places(old, nodes[node], source[row])
        return Moved(before, layout, None, None, index, first)
    # where each old node and each old row is now
    node = _inverse(nodes[:first], old.nodes)[reader_of(dag.indptr.cpu())]
    row = _inverse(source, old.values)[dag.indices.cpu()]
    kept = torch.where((node >= 0) & (row >= 0))[0]
    counts = torch.bincount(node[kept], minlength=first)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    indices = row[kept]
    if first < layout.nodes:
        fan_in = dag.fan_in or max(1, round(len(dag.indices) / (dag.nodes * old.width)))
        draw = torch.Generator().manual_seed((dag.seed + layout.nodes) % 2**63)
        more, ends = drawn_wiring(layout, fan_in, first, draw)
        indices = torch.cat([indices, more])
        indptr = torch.cat([indptr, len(kept) + ends[1:]])
    index = torch.cat([kept, kept.new_full((len(indices) - len(kept),), -1)])
    return Moved(before, layout, indices, indptr, index, first)


def _inverse(source: Tensor, size: int) -> Tensor:
    """The j with source[j] = i for each i below `size`, -1 where there is none."""
    kept = torch.where(source >= 0)[0]
    inverse = torch.full((size,), -1)
    inverse[source[kept]] = kept
    return inverse


def _blocks_after(dag: Dag, nodes: Tensor) -> tuple[int, ...]:
    """Blocks are but a matter of speed where nodes read inside them; else the last one is filled
    before another begins.
    """
    if dag.layout.inner:
        return blocks_of(len(nodes), dag.block_size)
    ends = pairwise((0, *accumulate(dag.layout.blocks)))
    kept = [int(((nodes >= first) & (nodes < end)).sum()) for first, end in ends]
    *full, last = [size for size in kept if size]
    new = int((nodes < 0).sum())
    size = dag.block_size or max(dag.layout.blocks)
    filled = min(new, max(0, size - last))
    return (*full, last + filled, *blocks_of(new - filled, size))


def drawn_wiring(
    layout: Layout, fan_in: int, first: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """(rows of values that each node from `first` on reads, rising; where each node's begin):
    `fan_in` sources for each, all equally likely.
    """
    draw = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    rows: list[np.ndarray] = []
    begins = np.cumsum((0, *layout.blocks))[:-1].repeat(layout.blocks)  # of each node's block
    for node in range(first, layout.nodes):
        prior = layout.inputs + (node if layout.inner else int(begins[node]))
        chosen = np.sort(draw.choice(prior, min(fan_in, prior), replace=False, shuffle=False))
        rows.append(_rows_of(chosen, layout))
    indptr = np.cumsum([0, *map(len, rows)])
    return torch.from_numpy(np.concatenate(rows)), torch.from_numpy(indptr)


def _rows_of(chosen: np.ndarray, layout: Layout) -> np.ndarray:
    """The rows of values of indices: inputs by number, then nodes."""
    if not layout.linked:
        return chosen
    inputs = chosen[chosen < layout.inputs]
    nodes = chosen[chosen >= layout.inputs] - layout.inputs
    return np.concatenate([inputs, (layout.inputs + 2 * nodes[:, None] + np.arange(2)).ravel()])


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.is_meta or other.is_meta or torch.equal(one, other.to(one.device))


def _require_known(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ShapeError(f"Dag: {name}={value!r}; choose one of {', '.join(known)}")


def _require_sources(wiring: str, fan_in: int | None, block_size: int | None) -> None:
    if (fan_in is None) == (wiring == "random") or (fan_in or 1) < 1:
        raise ShapeError(
            f"Dag: fan_in={fan_in}, wiring={wiring!r}; give fan_in, at least 1, with "
            f'wiring="random" alone'
        )
    if (block_size or 1) < 1 or (wiring == "block" and block_size is None):
        raise ShapeError(
            f"Dag: block_size={block_size}, wiring={wiring!r}; give how many nodes make a "
            "block, at least 1"
        )


def _passed(activation: str) -> float:
    """E[g(z)^2] of a standard normal z."""
    z = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(KINDS[activation].value(z).square() * density, z))
