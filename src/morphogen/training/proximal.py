"""Proximal steps: how a penalty with a kink brings weights to exactly zero."""

import torch
from torch import Tensor


def soft(weight: Tensor, amount: float) -> Tensor:
    """The proximal step of amount * |weight|_1: every entry moves towards zero by `amount`, and
    stops there.
    """
    return weight - weight.clamp(-amount, amount)


def group_soft(rows: Tensor, amount: float) -> Tensor:
    """The proximal step of amount * the sum of the rows' lengths: (groups, entries), each row
    shorter by `amount`, or zero.
    """
    lengths = rows.norm(dim=1, keepdim=True)
    return torch.where(lengths > amount, rows - rows * (amount / lengths), 0.0)


def sparse_head(
    features: Tensor, y: Tensor, price: float, iterations: int, tolerance: float = 1e-7
) -> tuple[Tensor, Tensor]:
    """The weight (outputs, features) and bias (outputs,) that minimise the binary cross-entropy +
    price * |weight|_1.

    Accelerated proximal gradient steps on all rows, until the largest entry moves by less than
    `tolerance`. Source: Yoon et al., eq. 3; Beck & Teboulle 2009 (FISTA), with the restart of
    O'Donoghue & Candes 2015.
    """
    rows = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    # the Hessian is at most rows' rows / (4 n outputs)
    steepest = torch.linalg.eigvalsh(rows.T @ rows / len(rows))[-1] / 4 / y.shape[1]

    def proximal_step(at: Tensor) -> Tensor:
        # soft(at - gradient / steepest), the bias not shrunk
        slope = ((rows @ at.T).sigmoid() - y).T @ rows / y.numel()
        new: Tensor = at - slope / steepest
        new[:, :-1] = soft(new[:, :-1], price / float(steepest))
        return new

    now = ahead = rows.new_zeros(y.shape[1], rows.shape[1])
    momentum = 1.0
    for _ in range(iterations):
        new = proximal_step(ahead)
        moved = new - now
        last = momentum
        momentum = (1 + (1 + 4 * last**2) ** 0.5) / 2
        if float(((ahead - new) * moved).sum()) > 0:
            momentum = last = 1.0
        ahead = new + (last - 1) / momentum * moved
        now = new
        if float(moved.abs().max()) < tolerance:
            break
    return now[:, :-1], now[:, -1]
