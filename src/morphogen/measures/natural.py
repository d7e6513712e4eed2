"""How much a step along the natural gradient would gain: `natural_norm(model, loss)`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.edit.preserve_state import preserve_state

Rows = list[tuple[Tensor, Tensor]]
"""(inputs, shape (n, positions, in), gradients of the outputs, shape (n, positions, out)), one pair
for each call.
"""


def natural_norm(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], damping: float = 1e-3
) -> float:
    """g' F^-1 g over the weights and biases of all `nn.Linear` and ungrouped `nn.Conv2d`: to second
    order, twice what a step along the natural gradient gains. In nats, if the loss is.

    loss: model -> a scalar, the mean over a batch of training examples. F: the empirical Fisher
    matrix, a block for each layer, S (x) A of the gradients of its outputs and of its inputs.
    damping: added to the diagonals of S and A, as a share of their largest eigenvalues; so a unit
    that no gradient reaches adds nothing. Layers of other kinds are left out. The gradients and
    buffers of the model, and the random state, are not touched.

    Source: Mitchell et al. 2023 (arXiv 2307.04526), the expansion score; F as in Martens & Grosse
    2015, for convolutions Grosse & Martens 2016. Differs: the empirical Fisher matrix, from the
    labels of the batch, in place of sampled ones.
    """
    seen: dict[nn.Module, Rows] = {m: [] for m in model.modules() if _is_measured(m)}
    trained = [p for p in model.parameters() if p.requires_grad]
    handles = [m.register_forward_hook(_recorder(rows)) for m, rows in seen.items()]
    try:
        with preserve_state(model), torch.enable_grad():
            # the gradients themselves are not needed, only what passes the hooks
            torch.autograd.grad(loss(model), trained, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return sum(_layer_norm(rows, damping) for rows in seen.values() if rows)


def _is_measured(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)


def _recorder(rows: Rows) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach()

        def record(gradient: Tensor) -> None:
            rows.append((_inputs(module, x), _positions(module, gradient.detach())))

        if output.requires_grad:
            output.register_hook(record)

    return hook


def _positions(module: nn.Module, gradient: Tensor) -> Tensor:
    """(n, positions, out)."""
    if isinstance(module, nn.Conv2d):
        return gradient.flatten(2).transpose(1, 2)
    return gradient.reshape(len(gradient), -1, gradient.shape[-1])


def _inputs(module: nn.Module, x: Tensor) -> Tensor:
    """What each position of the output is computed from, (n, positions, in), with a 1 for the bias
    where there is one.
    """
    if isinstance(module, nn.Conv2d):
        if module.padding == "same":
            x = F.pad(x, module._reversed_padding_repeated_twice)
        padding = module.padding if isinstance(module.padding, tuple) else 0
        x = F.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
        x = x.transpose(1, 2)
    else:
        x = x.reshape(len(x), -1, x.shape[-1])
    return F.pad(x, (0, 1), value=1.0) if module.bias is not None else x


def _layer_norm(rows: Rows, damping: float) -> float:
    """<G, S^-1 G A^-1>: G the gradient of the weight, S and A the second moments of the gradients
    of the outputs and of the inputs.
    """
    n = sum(len(x) for x, _ in rows)
    x = torch.cat([x.flatten(0, 1) for x, _ in rows]).double()
    d = torch.cat([d.flatten(0, 1) for _, d in rows]).double()
    d = d * n  # of each example's own loss
    gradient = d.T @ x / n
    by_outputs = _damped(d.T @ d / len(d), damping)
    by_inputs = _damped(x.T @ x / n, damping)
    left = torch.linalg.solve(by_outputs, gradient)
    both = torch.linalg.solve(by_inputs, left.T).T
    return float((gradient * both).sum())


def _damped(matrix: Tensor, damping: float) -> Tensor:
    """matrix + damping * its largest eigenvalue * I."""
    largest = float(torch.linalg.eigvalsh(matrix)[-1])
    added = max(damping * largest, torch.finfo(torch.float64).tiny)
    return matrix + added * torch.eye(len(matrix)).to(matrix)
