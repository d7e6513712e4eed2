"""Networks of the field with the layer shapes of their papers, as people write them. Fewer repeats
of equal blocks where that changes nothing but the time; small images, since widths do not depend on
them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphogen as mg


class BasicBlock(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or channels != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = (
            nn.Conv2d(planes, planes, 3, stride, 1, bias=False),
            nn.BatchNorm2d(planes),
        )
        self.conv3, self.bn3 = (
            nn.Conv2d(planes, 4 * planes, 1, bias=False),
            nn.BatchNorm2d(4 * planes),
        )
        self.downsample = None
        if stride != 1 or channels != 4 * planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)), inplace=True)))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class ResNet(nn.Module):
    """He et al. 2016, table 1: ResNet-18 with `BasicBlock`, ResNet-50 with `Bottleneck`."""

    def __init__(
        self, block: Callable[..., nn.Module], layers: tuple[int, ...], expansion: int
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for stage, count in enumerate(layers):
            planes, blocks = 64 * 2**stage, []
            for number in range(count):
                blocks.append(block(channels, planes, 2 if stage and not number else 1))
                channels = planes * expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class DenseNet(nn.Module):
    """Huang et al. 2017: growth 32, bottleneck 4 * 32, one dense block and its transition."""

    def __init__(self, layers: int = 6, growth: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(64 + i * growth),
                nn.ReLU(),
                nn.Conv2d(64 + i * growth, 4 * growth, 1, bias=False),
                nn.BatchNorm2d(4 * growth),
                nn.ReLU(),
                nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
            )
            for i in range(layers)
        )
        total = 64 + layers * growth
        self.transition = nn.Sequential(
            nn.BatchNorm2d(total),
            nn.ReLU(),
            nn.Conv2d(total, total // 2, 1, bias=False),
            nn.AvgPool2d(2),
        )
        self.fc = nn.Linear(total // 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.fc(self.transition(torch.cat(features, 1)).mean((2, 3)))


class InvertedResidual(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden, self.add = channels * expand, stride == 1 and channels == planes
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [
                nn.Conv2d(channels, hidden, 1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU6(inplace=True),
            ]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
        ]
        layers += [
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.add else self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al. 2018, table 2."""

    def __init__(self) -> None:
        super().__init__()
        channels = 32
        layers: list[nn.Module] = [
            nn.Conv2d(3, 32, 3, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU6(inplace=True),
        ]
        for expand, planes, count, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for number in range(count):
                layers.append(InvertedResidual(channels, planes, 1 if number else stride, expand))
                channels = planes
        layers += [
            nn.Conv2d(channels, 1280, 1, bias=False),
            nn.BatchNorm2d(1280),
            nn.ReLU6(inplace=True),
        ]
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(1280, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class UNet(nn.Module):
    """Ronneberger et al. 2015, three levels: transposed convolutions and skips by concatenation."""

    def __init__(self) -> None:
        super().__init__()

        def double(channels: int, planes: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(channels, planes, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(planes, planes, 3, padding=1),
                nn.ReLU(),
            )

        self.down1, self.down2, self.bottom = double(1, 64), double(64, 128), double(128, 256)
        self.up2, self.join2 = nn.ConvTranspose2d(256, 128, 2, 2), double(256, 128)
        self.up1, self.join1 = nn.ConvTranspose2d(128, 64, 2, 2), double(128, 64)
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.up2(self.bottom(F.max_pool2d(two, 2)))
        x = self.up1(self.join2(torch.cat([two, x], 1)))
        return self.head(self.join1(torch.cat([one, x], 1)))


class ViTBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        h = F.scaled_dot_product_attention(
            self.split(self.q(h)), self.split(self.k(h)), self.split(self.v(h))
        )
        x = x + self.proj(h.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Dosovitskiy et al. 2021, the tiny size of DeiT: 192 channels, 3 heads; two blocks."""

    def __init__(self, dim: int = 192, heads: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 16, 16)
        self.cls, self.pos = (
            nn.Parameter(torch.randn(1, 1, dim) * 0.02),
            nn.Parameter(torch.randn(1, 5, dim) * 0.02),
        )
        self.blocks = nn.Sequential(*(ViTBlock(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


class GPTBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.c_attn, self.c_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.c_fc, self.out = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = (
            part.view(batch, time, self.heads, -1).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).chunk(3, dim=2)
        )
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(h.transpose(1, 2).reshape(batch, time, -1))
        return x + self.out(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Radford et al. 2019, 768 channels and 12 heads; two blocks, a small vocabulary, the head tied
    to the embedding.
    """

    def __init__(self, dim: int = 768, heads: int = 12, depth: int = 2, words: int = 50) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, dim), nn.Embedding(16, dim)
        self.h = nn.ModuleList(GPTBlock(dim, heads) for _ in range(depth))
        self.ln_f, self.lm_head = nn.LayerNorm(dim), nn.Linear(dim, words, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(h)))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Liu et al. 2022, tiny: 96 channels, one stage of two blocks, the step to 192."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = (
            nn.Conv2d(3, 96, 4, 4),
            nn.Sequential(ConvNeXtBlock(96), ConvNeXtBlock(96)),
        )
        self.down, self.last = nn.Conv2d(96, 192, 2, 2), ConvNeXtBlock(192)
        self.norm, self.head = nn.LayerNorm(192), nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.last(self.down(self.blocks(self.stem(x)))).mean((-2, -1))))


class RMSNorm(nn.Module):
    """As decoders write it, not nn.RMSNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class LlamaBlock(nn.Module):
    def __init__(self, dim: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.q, self.o = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.k, self.v = (nn.Linear(dim, dim // heads * groups, bias=False) for _ in range(2))
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def rotated(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[2])[:, None] / 10_000 ** (torch.arange(half) / half)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def repeated(self, x: Tensor) -> Tensor:
        """Grouped queries: every key and value serves several heads."""
        b, groups, n, d = x.shape
        return (
            x[:, :, None].expand(b, groups, self.heads // groups, n, d).reshape(b, self.heads, n, d)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        h = self.norm1(x)
        q, k, v = (
            layer(h).view(b, n, count, -1).transpose(1, 2)
            for layer, count in ((self.q, self.heads), (self.k, self.groups), (self.v, self.groups))
        )
        h = F.scaled_dot_product_attention(
            self.rotated(q), self.repeated(self.rotated(k)), self.repeated(v), is_causal=True
        )
        x = x + self.o(h.transpose(1, 2).reshape(b, n, -1))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """Touvron et al. 2023, small: RMS norm, rotated positions, grouped queries, a gated hidden
    layer, no biases.
    """

    def __init__(self, dim: int = 64, heads: int = 4, groups: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, dim)
        self.layers = nn.ModuleList(LlamaBlock(dim, heads, groups, 172) for _ in range(depth))
        self.norm, self.head = RMSNorm(dim), nn.Linear(dim, 50, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "resnet18": (lambda: ResNet(BasicBlock, (2, 2, 2, 2), 1), lambda: torch.randn(2, 3, 32, 32)),
    "resnet50": (lambda: ResNet(Bottleneck, (3, 4, 6, 3), 4), lambda: torch.randn(2, 3, 32, 32)),
    "densenet": (DenseNet, lambda: torch.randn(2, 3, 8, 8)),
    "mobilenet_v2": (MobileNetV2, lambda: torch.randn(2, 3, 32, 32)),
    "unet": (UNet, lambda: torch.randn(2, 1, 8, 8)),
    "vit": (ViT, lambda: torch.randn(2, 3, 32, 32)),
    "gpt": (GPT, lambda: torch.randint(50, (2, 7))),
    "llama": (Llama, lambda: torch.randint(50, (2, 7))),
    "convnext": (ConvNeXt, lambda: torch.randn(2, 3, 32, 32)),
}
"""name -> (build, example)."""


def grows_by_a_quarter_and_shrinks_back(model: nn.Module, x: Tensor) -> dict[str, mg.Width]:
    """All free widths at once; what was grown and taken away again is the identity, bit for bit.
    The widths that were found.
    """
    found = mg.widths(mg.trace(model, x))
    before, expected = {name: t.clone() for name, t in model.state_dict().items()}, model(x)
    quarter = {w.name: (w.size, max(1, w.size // 4)) for w in found.values() if not w.fixed}
    grown = mg.apply_(
        model,
        mg.plan(model, found, [mg.Grow(n, more) for n, (_, more) in quarter.items()]),
        example=x,
    )
    assert grown.receipt.parameters[1] > 1.2 * grown.receipt.parameters[0]
    edits = [mg.Shrink(n, range(size, size + more)) for n, (size, more) in quarter.items()]
    mg.apply_(model, mg.plan(model, found, edits), example=x)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(model(x), expected)
    return found
