"""One small network for every kind of layer and operation: its free widths, known by hand, and
whether growing keeps the function. The contract test walks this table; the support matrix of the
documentation is printed from it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


@dataclass(frozen=True)
class Case:
    """build: the network. shape: of an example. free: width -> (units, step). not_preserved: the
    widths whose growth changes the function.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    free: dict[str, tuple[int, int]]
    not_preserved: tuple[str, ...] = ()


class Net(nn.Module):
    """Modules by name, and a forward pass as a function of them."""

    def __init__(self, forward: Callable[["Net", Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def between(layer: nn.Module, first: nn.Module, last: nn.Module) -> Callable[[], nn.Module]:
    return lambda: copy.deepcopy(nn.Sequential(first, layer, last))


def _attention(m: Net, x: Tensor) -> Tensor:
    q, k, v = (f(x).view(*x.shape[:2], 2, -1).transpose(1, 2) for f in (m.q, m.k, m.v))
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _fused(m: Net, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    return m.o((q @ k.transpose(1, 2)).softmax(-1) @ v)


def _tied(m: Net, x: Tensor) -> Tensor:
    return F.linear(torch.tanh(m.a(x)), m.a.weight.t())


def _squeeze(m: Net, x: Tensor) -> Tensor:
    h = m.conv(x)
    return m.last(h * m.up(m.down(h.mean((2, 3), keepdim=True)).relu()).sigmoid())


def _shuffle(m: Net, x: Tensor) -> Tensor:
    return m.last(F.pixel_shuffle(m.conv(x), 2))


CASES: dict[str, Case] = {
    "linear": Case(between(nn.Tanh(), nn.Linear(3, 4), nn.Linear(4, 2)), (5, 3), {"0": (4, 1)}),
    "conv1d": Case(
        between(nn.ReLU(), nn.Conv1d(2, 4, 3), nn.Conv1d(4, 2, 3)), (3, 2, 9), {"0": (4, 1)}
    ),
    "conv2d": Case(
        between(nn.ReLU(), nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 3)), (3, 2, 7, 7), {"0": (4, 1)}
    ),
    "conv3d": Case(
        between(nn.ReLU(), nn.Conv3d(2, 4, 3), nn.Conv3d(4, 2, 3)), (2, 2, 6, 6, 6), {"0": (4, 1)}
    ),
    "grouped convolution": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 9, 3, groups=3), nn.Conv2d(9, 2, 1)),
        (2, 2, 5, 5),
        {"0": (2, 3), "1": (3, 3)},
    ),
    "depthwise convolution": Case(
        between(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)),
        (2, 2, 5, 5),
        {"0": (4, 1)},
    ),
    "depthwise convolution, multiplied": Case(
        between(nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(2, 4, 1), nn.Conv2d(8, 2, 1)),
        (2, 2, 5, 5),
        {"0": (4, 1)},
    ),
    "transposed convolution": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 6, 2, 2), nn.Conv2d(6, 2, 1)
        ),
        (2, 2, 5, 5),
        {"0": (4, 1), "1": (6, 1)},
    ),
    "batch norm": Case(
        between(nn.BatchNorm2d(4), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)),
        (3, 2, 4, 4),
        {"0": (4, 1)},
    ),
    "instance norm": Case(
        between(nn.InstanceNorm2d(4, affine=True), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)),
        (3, 2, 4, 4),
        {"0": (4, 1)},
    ),
    "layer norm": Case(
        between(nn.LayerNorm(4), nn.Linear(3, 4), nn.Linear(4, 2)), (3, 3), {"0": (4, 1)}, ("0",)
    ),
    "RMS norm": Case(
        between(nn.RMSNorm(4), nn.Linear(3, 4), nn.Linear(4, 2)), (3, 3), {"0": (4, 1)}, ("0",)
    ),
    "group norm": Case(
        between(nn.GroupNorm(2, 8), nn.Conv2d(2, 8, 1), nn.Conv2d(8, 2, 1)),
        (3, 2, 4, 4),
        {"0": (4, 2)},
        ("0",),
    ),
    "weight norm": Case(
        lambda: nn.Sequential(
            weight_norm(nn.Linear(3, 4)), nn.Tanh(), weight_norm(nn.Linear(4, 2))
        ),
        (5, 3),
        {"0": (4, 1)},
    ),
    "PReLU": Case(between(nn.PReLU(4), nn.Linear(3, 4), nn.Linear(4, 2)), (3, 3), {"0": (4, 1)}),
    "multi-head attention": Case(
        lambda: Net(
            lambda m, x: m.b(m.att(*(m.a(x),) * 3)[0]),
            a=nn.Linear(3, 8),
            att=nn.MultiheadAttention(8, 2),
            b=nn.Linear(8, 2),
        ),
        (4, 5, 3),
        {"a": (4, 2)},
        ("a",),
    ),
    "head views": Case(
        lambda: Net(_attention, **{n: nn.Linear(3, 8) for n in "qkv"}, o=nn.Linear(8, 3)),
        (2, 5, 3),
        {"q": (4, 2), "v": (4, 2)},
        ("q",),
    ),
    "fused query, key and value": Case(
        lambda: Net(_fused, qkv=nn.Linear(3, 12), o=nn.Linear(4, 3)),
        (2, 5, 3),
        {"qkv": (4, 1)},
        ("qkv",),
    ),
    "GLU": Case(
        lambda: nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 2)), (5, 3), {"0": (4, 1)}
    ),
    "chunk": Case(
        lambda: Net(
            lambda m, x: m.b(torch.cat(m.a(x).relu().chunk(2, -1)[::-1], -1)),
            a=nn.Linear(3, 8),
            b=nn.Linear(8, 2),
        ),
        (5, 3),
        {"a": (4, 2)},
    ),
    "slice": Case(
        lambda: Net(
            lambda m, x: m.b((h := m.a(x))[:, :3]) + m.c(h[:, 3:]),
            a=nn.Linear(3, 8),
            b=nn.Linear(3, 2),
            c=nn.Linear(5, 2),
        ),
        (5, 3),
        {"a": (5, 1)},
    ),
    "residual": Case(
        lambda: Net(
            lambda m, x: m.c((h := m.a(x)) + m.b(h).relu()),
            a=nn.Linear(3, 4),
            b=nn.Linear(4, 4),
            c=nn.Linear(4, 2),
        ),
        (5, 3),
        {"a": (4, 1)},
    ),
    "concatenation": Case(
        lambda: Net(
            lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)),
            a=nn.Linear(3, 4),
            b=nn.Linear(3, 5),
            c=nn.Linear(9, 2),
        ),
        (5, 3),
        {"a": (4, 1), "b": (5, 1)},
    ),
    "linked pair": Case(
        lambda: Net(
            lambda m, x: m.b(torch.cat([F.relu(h := m.a(x)), F.relu(-h)], 1)),
            a=nn.Linear(3, 4),
            b=nn.Linear(8, 2),
        ),
        (5, 3),
        {"a": (4, 1)},
    ),
    "flatten": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 2)),
        (3, 2, 4, 4),
        {"0": (4, 1)},
    ),
    "permute": Case(
        lambda: Net(
            lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1)), a=nn.Conv2d(2, 4, 1), b=nn.Linear(4, 2)
        ),
        (3, 2, 4, 4),
        {"a": (4, 1)},
    ),
    "squeeze and excite": Case(
        lambda: Net(
            _squeeze,
            conv=nn.Conv2d(2, 6, 1),
            down=nn.Conv2d(6, 3, 1),
            up=nn.Conv2d(3, 6, 1),
            last=nn.Conv2d(6, 2, 1),
        ),
        (3, 2, 4, 4),
        {"conv": (6, 1), "down": (3, 1)},
    ),
    "pixel shuffle": Case(
        lambda: Net(_shuffle, conv=nn.Conv2d(2, 8, 1), last=nn.Conv2d(2, 2, 1)),
        (2, 2, 3, 3),
        {"conv": (2, 1)},
    ),
    "tied weight": Case(lambda: Net(_tied, a=nn.Linear(3, 4)), (5, 3), {"a": (4, 1)}),
    "LSTM": Case(
        lambda: Net(
            lambda m, x: m.b(m.a(x)[0]), a=nn.LSTM(3, 4, 2, batch_first=True), b=nn.Linear(4, 2)
        ),
        (2, 5, 3),
        {"a": (4, 1)},
    ),
    "LSTM, both directions": Case(
        lambda: Net(
            lambda m, x: m.b(m.a(x)[0]), a=nn.LSTM(3, 4, bidirectional=True), b=nn.Linear(8, 2)
        ),
        (5, 2, 3),
        {"a": (4, 1)},
    ),
    "GRU": Case(
        lambda: Net(
            lambda m, x: m.b(m.a(x)[0]), a=nn.GRU(3, 4, batch_first=True), b=nn.Linear(4, 2)
        ),
        (2, 5, 3),
        {"a": (4, 1)},
    ),
}
"""name -> case."""
