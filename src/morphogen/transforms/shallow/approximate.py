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
from morphogen.linear_regions.piecewise import piecewise
from morphogen.linear_regions.regions import regions
from morphogen.record import Certificate
from morphogen.transforms.shallow.form import distinct, shaped
from morphogen.transforms.shallow.shallow import measured

_LARGEST = 1 << 27  # weights of the second layer


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
    cell = torch.arange(len(cells)).repeat_interleave(torch.tensor(cells.facets))
    outward = (
        torch.where(cells.patterns, -1.0, 1.0).double()[cell, cells.borders, None]
        * z[cell, cells.borders]
    )
    rows, which, _ = distinct(outward / outward[:, :-1].norm(dim=1, keepdim=True))
    count = len(cells)
    outputs = len(net.output.bias)
    hidden = len(rows)
    if 2 * count * outputs * (hidden + net.inputs) > _LARGEST:
        raise Unsupported(
            f"approximate_shallow: {count:,} cells and {hidden:,} sides; give a smaller box or "
            "network"
        )
    centre = (net.box.centre[:, None] * functions[..., :-1]).sum(2)
    reach = (net.box.radius[:, None] * functions[..., :-1].abs()).sum(2)
    # of every cell's function on the whole box
    bound = float(((centre + functions[..., -1]).abs() + reach).max()) + 1.0
    # first hidden layer: the sides, and the inputs, which are above their lower ends
    eye = torch.eye(net.inputs, net.inputs + 1, dtype=torch.float64)
    eye[:, -1] = -net.box.lower[0]
    first = torch.cat([rows, eye])
    wide = torch.zeros(len(first), net.entries, dtype=torch.float64)
    wide[:, list(net.free)] = first[:, :-1]
    steep = torch.zeros(count, hidden, dtype=torch.float64)
    steep[cell, which] = -kappa
    # an output's cells one after the other
    value = functions[..., :-1].transpose(0, 1).flatten(0, 1)
    start = (functions[..., :-1] @ net.box.lower[0] + functions[..., -1]).T.flatten()
    u = torch.cat([steep.repeat(outputs, 1), value], 1)
    w = torch.cat([steep, steep.new_zeros(count, net.inputs)], 1)
    add = torch.kron(
        torch.eye(outputs, dtype=torch.float64), torch.ones(1, count, dtype=torch.float64)
    )
    made = nn.Sequential(
        nn.Flatten(),
        linear(wide, first[:, -1]),
        nn.ReLU(),
        linear(torch.cat([u, w]), torch.cat([start + bound, start.new_full((count,), bound)])),
        nn.ReLU(),
        linear(torch.cat([add, -add.new_ones(outputs, count)], 1), add.new_zeros(outputs)),
        *shaped(net),
    )
    x = net.box.points(10_000, 0, torch.Generator().manual_seed(1))
    with torch.no_grad():
        off = (made(net.given(x)).reshape(len(x), -1) - net(x)).abs().amax(1)
    exact = float((off <= 1e-9 * bound).double().mean())
    ends = (tuple(net.box.lower[0].tolist()), tuple(net.box.upper[0].tolist()))
    with torch.no_grad():
        worst = max(measured(model, net, made)[0], float(off.max()))
    return made, Certificate(
        "measured",
        worst,
        ends,
        False,
        f"equal inside {count:,} cells but for tubes of width at most {2 * bound / kappa:.1e} at "
        f"their halfspaces: exact at {exact:.2%} of 10,000 random points, {float(off.mean()):.1e} "
        f"off in the mean; {hidden + net.inputs:,} and {len(u) + len(w):,} units, whatever kappa "
        "is; the largest error does not vanish",
    )
