"""Two hidden layers whose number of units does not depend on how accurate they are:
`approximate_shallow(model, box, kappa)`.

For every cell s with the function A_s x + c_s, |f| and |A_s x + c_s| < B on the box, and sides n_i
x <= d_i, |n_i| = 1:

    v_i = relu(n_i x - d_i),   u_s = relu(A_s x + c_s + B - kappa sum v),   w_s = relu(B - kappa sum
    v),   f ~ sum_s u_s - w_s.

Inside a cell this is exact; outside both vanish where kappa sum v >= 2 B. So it is wrong in tubes
around the cells' borders that get as thin as B / kappa, and there by as much as before: it
converges almost everywhere and in the mean, not uniformly.

Source: equivalent and approximate transformations, Kumar, Serra, Ramalingam 2019 (arXiv
1905.11428), whose theorem fixes the number of units; the construction is ours.
"""

import torch
from torch import Tensor, nn

from morphogen.bounds.box import Box
from morphogen.errors import ShapeError, Unsupported
from morphogen.formats.modules import linear
from morphogen.linear_regions.piecewise import Piecewise, piecewise
from morphogen.linear_regions.regions import Regions, regions
from morphogen.record import Certificate
from morphogen.transforms.shallow.form import distinct, shaped
from morphogen.transforms.shallow.shallow import certified

_LARGEST = 1 << 27  # weights of the second layer
_POINTS = 10_000


def approximate_shallow(
    model: nn.Module,
    box: Box,
    kappa: float,
    along: tuple[Tensor, Tensor] | None = None,
    max_cells: int = 10_000,
) -> tuple[nn.Sequential, Certificate]:
    """A network with two hidden layers (float64), and a certificate that says how often and how far
    it is off.

    kappa: the steepness; the number of units is the same for all. Raises `Unsupported` for more
    cells than `max_cells`, since a part of them would say nothing of the others.
    """
    if not kappa > 0:
        raise ShapeError(f"approximate_shallow: kappa={kappa}; give a number above 0, such as 1e4")
    net = piecewise(model, box, along)
    cells = regions(net, max_cells=max_cells)
    if not cells.complete:
        raise Unsupported(
            f"approximate_shallow: more than {max_cells:,} cells; give a smaller box, or a larger "
            "max_cells"
        )
    z, functions = net.affine(cells.patterns)
    cell, facets = _facets(cells, z)
    sides, which, _ = distinct(facets)
    count, outputs, _ = functions.shape
    hidden = len(sides) + net.inputs
    if 2 * count * outputs * hidden > _LARGEST:
        raise Unsupported(
            f"approximate_shallow: {count:,} cells and {len(sides):,} sides; give a smaller box or "
            "network"
        )
    bound = _bound(net, functions)
    # -kappa sum v of each cell, by the sides
    steep = torch.zeros(count, len(sides), dtype=torch.float64)
    steep[cell, which] = -kappa
    second = _second_layer(net, functions, steep, bound)
    made = nn.Sequential(
        nn.Flatten(),
        _first_layer(net, sides),
        nn.ReLU(),
        second,
        nn.ReLU(),
        _third_layer(outputs, count),
        *shaped(net),
    )
    off = _errors(net, made)
    exact = float((off <= 1e-9 * bound).double().mean())
    worst = max(certified(model, net, made, "", "measured").max_error, float(off.max()))
    ends = (tuple(net.box.lower[0].tolist()), tuple(net.box.upper[0].tolist()))
    reason = (
        f"equal inside {count:,} cells but for tubes of width at most {2 * bound / kappa:.1e} at "
        f"their halfspaces: exact at {exact:.2%} of {_POINTS:,} random points, "
        f"{float(off.mean()):.1e} off in the mean; {hidden:,} and {second.out_features:,} units, "
        "whatever kappa is; the largest error does not vanish"
    )
    return made, Certificate("measured", worst, ends, False, reason)


def _facets(cells: Regions, z: Tensor) -> tuple[Tensor, Tensor]:
    """(the cell of each of all facets, its side (n, -d), with n x > d outside of the cell, |n| =
    1). z: of the cells, (cells, units, free + 1).
    """
    cell = torch.arange(len(cells)).repeat_interleave(torch.tensor(cells.facets))
    unit = cells.borders
    # a unit that is on has z > 0 inside
    sign = torch.where(cells.patterns, -1.0, 1.0).double()
    outward = sign[cell, unit, None] * z[cell, unit]
    return cell, outward / outward[:, :-1].norm(dim=1, keepdim=True)


def _bound(net: Piecewise, functions: Tensor) -> float:
    """More than |A_s x + c_s| of every cell on the whole box."""
    slopes = functions[..., :-1]
    centre = (slopes * net.box.centre[:, None]).sum(2) + functions[..., -1]
    reach = (slopes.abs() * net.box.radius[:, None]).sum(2)
    return float((centre.abs() + reach).max()) + 1.0


def _first_layer(net: Piecewise, sides: Tensor) -> nn.Linear:
    """v, and the inputs above their lower ends."""
    above = torch.eye(net.inputs, net.inputs + 1, dtype=torch.float64)
    above[:, -1] = -net.box.lower[0]
    rows = torch.cat([sides, above])
    weight = torch.zeros(len(rows), net.entries, dtype=torch.float64)
    weight[:, list(net.free)] = rows[:, :-1]
    return linear(weight, rows[:, -1])


def _second_layer(net: Piecewise, functions: Tensor, steep: Tensor, bound: float) -> nn.Linear:
    """u, an output's cells one after the other, then w, once for all outputs."""
    count, outputs, _ = functions.shape
    slopes = functions[..., :-1]
    # A_s x + c_s = A_s (x - lower) + (A_s lower + c_s)
    at_lower = slopes @ net.box.lower[0] + functions[..., -1]
    u = torch.cat([steep.repeat(outputs, 1), slopes.transpose(0, 1).flatten(0, 1)], 1)
    w = torch.cat([steep, steep.new_zeros(count, net.inputs)], 1)
    bias = torch.cat([at_lower.T.flatten() + bound, steep.new_full((count,), bound)])
    return linear(torch.cat([u, w]), bias)


def _third_layer(outputs: int, count: int) -> nn.Linear:
    """sum_s u_s - w_s of each output."""
    eye = torch.eye(outputs, dtype=torch.float64)
    add = torch.kron(eye, eye.new_ones(1, count))
    return linear(torch.cat([add, -eye.new_ones(outputs, count)], 1), eye.new_zeros(outputs))


@torch.no_grad()
def _errors(net: Piecewise, made: nn.Module) -> Tensor:
    """The largest error of any output at random points of the box, (points,)."""
    x = net.box.points(_POINTS, 0, torch.Generator().manual_seed(1))
    made_of: Tensor = made(net.given(x))
    return (made_of.reshape(len(x), -1) - net(x)).abs().amax(1)
