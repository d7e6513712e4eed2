"""What every shallow form of a network can do, and how it becomes plain modules."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from morphogen.errors import Unsupported
from morphogen.formats.modules import linear
from morphogen.linear_regions.piecewise import Piecewise, summed

_AT_ONCE = 1 << 22  # numbers in one table of values


@dataclass(frozen=True)
class Form(ABC):
    """A network as functions of one hidden layer each, put together by maxima. Inputs are (batch,
    *shape) as those of the network, outputs (batch, *shape of its output), float64.

    net: what it is a form of.
    """

    net: Piecewise

    @property
    @abstractmethod
    def n_terms(self) -> int:
        """Functions of one hidden layer."""

    @property
    @abstractmethod
    def n_units(self) -> int:
        """Different hidden units of them all."""

    @property
    @abstractmethod
    def log2_formal(self) -> float:
        """Of how many terms it would have without looking at the box, the logarithm."""

    @abstractmethod
    def prune(self) -> "Form":
        """The same function on the box, with fewer terms."""

    @abstractmethod
    def to_torch(self) -> nn.Sequential:
        """Plain modules, float64, equal to the form everywhere."""

    @abstractmethod
    def _value(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _lower(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _upper(self, x: Tensor) -> Tensor: ...

    @property
    def _size(self) -> int:
        """Numbers that one input needs at once."""
        return self.n_terms * max(1, self.net.units) * len(self.net.output.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output on the box."""
        return self._by_parts(self._value, x)

    def lower(self, x: Tensor) -> Tensor:
        """At most the network's output, at any input, whichever terms there are."""
        return self._by_parts(self._lower, x)

    def upper(self, x: Tensor) -> Tensor:
        """At least the network's output, at any input, whichever terms there are."""
        return self._by_parts(self._upper, x)

    def _by_parts(self, function: object, x: Tensor) -> Tensor:
        assert callable(function)
        rows = max(1, _AT_ONCE // max(1, self._size))
        out = torch.cat([function(part) for part in self.net.free_of(x).split(rows)])
        return out.view(len(out), *self.net.shape)


def one_hidden(net: Piecewise, hidden: Tensor, outer: Tensor, straight: Tensor) -> list[nn.Module]:
    """outer relu(hidden [x; 1]) + straight [x; 1] as modules that take whole examples.

    hidden: (units, free + 1), outer: (terms, units), straight: (terms, free + 1). What is straight
    goes through two more units an input, since t = relu(t) - relu(-t).
    """
    carried = straight[:, :-1].any(0).nonzero()[:, 0]
    ways = torch.zeros(len(carried), hidden.shape[1], dtype=torch.float64)
    ways[torch.arange(len(carried)), carried] = 1.0
    rows = torch.cat([hidden, ways, -ways])
    wide = torch.zeros(len(rows), net.entries, dtype=torch.float64)
    wide[:, list(net.free)] = rows[:, :-1]
    through = straight[:, carried]
    return [
        nn.Flatten(),
        linear(wide, rows[:, -1]),
        nn.ReLU(),
        linear(torch.cat([outer, through, -through], 1), straight[:, -1]),
    ]


def largest_of(groups: int, size: int) -> list[nn.Module]:
    """(batch, groups * size) -> (batch, groups): the largest of each."""
    return [nn.Unflatten(1, (groups, size)), nn.MaxPool1d(size), nn.Flatten()]


def relu_tree(net: nn.Sequential) -> nn.Sequential:
    """Maxima as layers of ReLUs: max(u, v) = v + relu(u - v), with v carried as relu(v) - relu(-v).
    What it takes: modules of `to_torch`, in which a linear layer comes before every maximum.
    """
    modules: list[nn.Module] = []
    for module in net:
        if isinstance(module, nn.MaxPool1d):
            modules.pop()  # the Unflatten, whose sizes say what is compared
            before = modules.pop()
            assert isinstance(before, nn.Linear)
            assert isinstance(module.kernel_size, int)
            modules += _tree(before, before.out_features // module.kernel_size)
        elif not (isinstance(module, nn.Flatten) and module.start_dim and modules):
            modules.append(module)
    merged: list[nn.Module] = []
    for module in modules:
        if merged and isinstance(module, nn.Linear) and isinstance(merged[-1], nn.Linear):
            first = merged.pop()
            assert isinstance(first, nn.Linear)
            module = linear(module.weight @ first.weight, module.weight @ first.bias + module.bias)
        merged.append(module)
    return nn.Sequential(*merged)


@torch.no_grad()
def _tree(values: nn.Linear, groups: int) -> list[nn.Module]:
    modules: list[nn.Module] = [values]
    size = values.out_features // groups
    while size > 1:
        pairs = size // 2
        odd = size % 2
        eye = torch.eye(size, dtype=torch.float64)
        u = eye[0 : 2 * pairs : 2]
        v = eye[1 : 2 * pairs : 2]
        alone = eye[size - odd :]
        up = torch.cat([u - v, v, -v, alone, -alone])
        i = torch.eye(pairs, dtype=torch.float64)
        j = torch.eye(odd, dtype=torch.float64)
        down = torch.block_diag(torch.cat([i, i, -i], 1), torch.cat([j, -j], 1))
        of_each = torch.eye(groups, dtype=torch.float64)
        up = torch.kron(of_each, up)
        down = torch.kron(of_each, down)
        modules += [
            linear(up, up.new_zeros(len(up))),
            nn.ReLU(),
            linear(down, down.new_zeros(len(down))),
        ]
        size = math.ceil(size / 2)
    return modules


def distinct(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(the different rows, which of these each is, where the first of each stands): equal to 1e-12
    of the largest entry; no row is rounded.
    """
    scale = rows.abs().amax().clamp_min(1e-300) * 1e-12 if rows.numel() else torch.ones(())
    _, which = (rows / scale).round().unique(dim=0, return_inverse=True)
    count = int(which.max()) + 1 if len(which) else 0
    first = torch.full((count,), len(rows)).scatter_reduce(
        0, which, torch.arange(len(rows)), "amin"
    )
    return rows[first], which, first


def shaped(net: Piecewise) -> list[nn.Module]:
    """From (batch, outputs) to the network's own shape."""
    if len(net.shape) == 1:
        return []
    return [nn.Unflatten(1, net.shape)] if net.shape else [nn.Flatten(0)]


def base(net: Piecewise, x: Tensor) -> Tensor:
    """[x, what the first layer puts out, 1], (batch, free + units of it + 1)."""
    ones = x.new_ones(len(x), 1)
    if not net.layers:
        return torch.cat([x, ones], 1)
    z = summed(net.layers[0], [x])
    return torch.cat([x, torch.maximum(z, net.layers[0].slope * z), ones], 1)


def over_base(net: Piecewise, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Functions of `base`, (terms, its columns), as `one_hidden` takes them: (hidden, outer,
    straight).
    """
    if not net.layers:
        return rows.new_zeros(0, rows.shape[1]), rows.new_zeros(len(rows), 0), rows
    first = net.layers[0]
    weight = first.weights.get(0, torch.zeros(first.units, net.inputs, dtype=torch.float64))
    hidden = torch.cat([weight, first.bias[:, None]], 1)
    x, h, one = rows.split([net.inputs, first.units, 1], 1)
    # max(z, slope z) = (1 - slope) relu(z) + slope z
    return hidden, (1 - first.slope) * h, torch.cat([x, one], 1) + first.slope * h @ hidden


def refused(what: str, log2: float, limit: float) -> None:
    """Raise `Unsupported` where a form would have more than 2^limit terms."""
    if log2 > limit:
        raise Unsupported(
            f"shallow: form={what!r} would have 2^{log2:.1f} terms, and the limit is 2^{limit:g}; "
            "give form='maximum', which needs one for each cell, a smaller box, or a larger limit"
        )
