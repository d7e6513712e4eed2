"""A deep autoregressive network: `Darn`.

    p(x, h) = p(x | h1, ..) p(h1 | h2, ..) ... p(hL)        every factor autoregressive
    q(h | x) = q(h1 | x) q(h2 | h1) ... q(hL | hL-1)        factorial, or autoregressive

h1 ... hL are layers of bits. Deterministic tanh layers may stand between them. Without any such
layer it is a MADE, a NADE or a logistic regression for each variable.

Source: Gregor et al. 2014 (arXiv 1310.8499), sections 2 and 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from morphogen.density.autoregressive import AutoregressiveBernoulli, HeadName
from morphogen.density.groups import Groups
from morphogen.density.local import Local, Window, local_layers
from morphogen.errors import ShapeError
from morphogen.record import revive

Draw = Callable[[Tensor], Tensor]
"""Logits of bits -> bits, with whatever gradient an estimator gives them."""

EncoderName = Literal["factorial", "autoregressive"]


@dataclass(frozen=True)
class DarnShape:
    """units: bits of each stochastic layer, from the one next to x on. hidden: tanh units between
    two stochastic layers, 0 for none. decoder_hidden: those of the decoder, None for as many.
    visible, prior: a name of HEADS, of p(x | h) and of every p(h | ...). visible_hidden: hidden
    units of "made" and "nade". skips: every layer is conditioned on all layers above it, not only
    on the next. dropout: see `AutoregressiveBernoulli`, of x. local: of images, layers that the
    encoder begins with. window: of images, what a pixel sees of those before it, for "local".
    """

    units: tuple[int, ...] = (16,)
    hidden: int = 100
    visible: HeadName = "linear"
    prior: HeadName = "linear"
    visible_hidden: tuple[int, ...] = ()
    encoder: EncoderName = "factorial"
    skips: bool = False
    dropout: float = 0.0
    decoder_hidden: int | None = None
    local: tuple[Local, ...] = ()
    window: Window | None = None


@dataclass(frozen=True)
class Sample:
    """h: bits of each stochastic layer. logits: of q, for those that were drawn. negentropy:
    sum_h q log q of every layer given the one before, (n,): exact, where log q(h) has noise.
    """

    h: tuple[Tensor, ...] = ()
    logits: tuple[Tensor, ...] = ()
    negentropy: Tensor = field(default_factory=lambda: torch.zeros(()))


class Darn(nn.Module):
    """groups: the variables of a row. means: of each bit, where the visible logits start and what
    the encoder's input is centred by.

    Rows are (n, groups.bits), of zeros and ones.
    """

    means: Tensor

    def __init__(
        self, groups: Groups, shape: DarnShape | None = None, means: Tensor | None = None
    ) -> None:
        super().__init__()
        self.groups = groups
        self.shape = shape = shape or DarnShape()
        if any(size < 1 for size in shape.units):
            raise ShapeError(f"units={shape.units}: every stochastic layer has at least 1 unit")
        behind = shape.hidden if shape.decoder_hidden is None else shape.decoder_hidden
        sizes = (groups.bits, *shape.units)
        levels = (groups, *(Groups.of_bits(size) for size in shape.units))
        self.decoders = nn.ModuleList()
        self.between = nn.ModuleList()  # tanh layers of the decoder
        for level, variables in enumerate(levels):
            above = sum(sizes[level + 1 :] if shape.skips else sizes[level + 1 : level + 2])
            self.between.append(_tanh(above, behind))
            context = behind if above and behind else above
            head, hidden = (
                (shape.visible, shape.visible_hidden) if level == 0 else (shape.prior, ())
            )
            dropout = shape.dropout if level == 0 else 0.0
            window = shape.window if level == 0 else None
            self.decoders.append(
                AutoregressiveBernoulli(variables, context, head, hidden, dropout, window)
            )
        self.encoders = nn.ModuleList()
        self.features = nn.ModuleList()  # tanh layers of the encoder
        for level, (below, size) in enumerate(zip(sizes, shape.units, strict=False)):
            self.features.append(_features(below, shape, level))
            head = "linear" if shape.encoder == "autoregressive" else "independent"
            self.encoders.append(
                AutoregressiveBernoulli(Groups.of_bits(size), shape.hidden or below, head)
            )
        self.register_buffer("means", torch.full((groups.bits,), 0.5) if means is None else means)
        with torch.no_grad():
            self.decoder(0).bias.copy_(groups.starting_logits(self.means))

    def decoder(self, level: int) -> AutoregressiveBernoulli:
        """p of a level (0: of x) given the levels above."""
        layer = self.decoders[level]
        assert isinstance(layer, AutoregressiveBernoulli)
        return layer

    def encoder(self, level: int) -> AutoregressiveBernoulli:
        """q of a stochastic layer given the level below."""
        layer = self.encoders[level]
        assert isinstance(layer, AutoregressiveBernoulli)
        return layer

    @property
    def stochastic(self) -> int:
        """How many stochastic layers there are."""
        return len(self.encoders)

    @property
    def units(self) -> tuple[int, ...]:
        """Bits of each stochastic layer, as they are now."""
        return tuple(len(self.encoder(level).bias) for level in range(self.stochastic))

    @property
    def present_shape(self) -> DarnShape:
        """What a new network with as many bits is built of."""
        return replace(self.shape, units=self.units)

    def forward(self, x: Tensor) -> Tensor:
        """Description length of each row in nats, (n,), where every bit of h is the likelier one:
        what is traced. An autoregressive encoder's are all chosen at once, as if those before them
        were 0. To train, give `cost` a draw of ESTIMATORS.
        """
        return self.cost(x, likelier, at_once=True)

    def log_joint(self, x: Tensor, h: Sequence[Tensor]) -> Tensor:
        """log p(x, h), (n,)."""
        parts = [self.decoder(0).log_prob(x, self.context(0, h)), *self.log_prior_parts(h)]
        return torch.stack(parts).sum(0)

    def log_prior_parts(self, h: Sequence[Tensor]) -> list[Tensor]:
        """log p of each stochastic layer given those above, each (n,)."""
        return [
            self.decoder(level).log_prob(value, self.context(level, h))
            for level, value in enumerate(h, 1)
        ]

    def context(self, level: int, h: Sequence[Tensor]) -> Tensor | None:
        """What p of a level is conditioned on (0: of x), given the stochastic layers."""
        return self.context_of(level, h[level:])

    def context_of(self, level: int, above: Sequence[Tensor]) -> Tensor | None:
        """`context`, given the stochastic layers above the level alone."""
        if not above:
            return None
        read = above if self.shape.skips else above[:1]
        made: Tensor = self.between[level](torch.cat([*read], 1))
        return made

    def log_posterior(self, x: Tensor, h: Sequence[Tensor]) -> Tensor:
        """log q(h | x), (n,)."""
        total = x.new_zeros(len(x))
        for level, value in enumerate(h):
            below = x if level == 0 else h[level - 1]
            total = total + self.encoder(level).log_prob(value, self.encoding(level, below))
        return total

    def encoding(self, level: int, below: Tensor) -> Tensor:
        """What q of a stochastic layer is conditioned on, given the layer below."""
        made: Tensor = self.features[level](below - (self.means if level == 0 else 0.5))
        return made

    def encode(
        self, x: Tensor, draw: Draw, given: Sequence[Tensor] = (), at_once: bool = False
    ) -> Sample:
        """Draw the stochastic layers from q. given: layers from the lowest on that are known.
        at_once: see `forward`.
        """
        h = [*given]
        logits = []
        negentropy = x.new_zeros(len(x))
        for level in range(len(given), self.stochastic):
            below = x if level == 0 else h[level - 1]
            value, own = self._drawn(level, self.encoding(level, below), draw, at_once)
            h.append(value)
            logits.append(own)
            negentropy = negentropy + bernoulli_negentropy(own).sum(1)
        return Sample(tuple(h), tuple(logits), negentropy)

    def _drawn(
        self, level: int, context: Tensor, draw: Draw, at_once: bool
    ) -> tuple[Tensor, Tensor]:
        encoder = self.encoder(level)
        if self.shape.encoder == "factorial":
            logits = encoder.base(context)
            return draw(logits), logits
        if at_once:
            value = draw(encoder.base(context))
            return value, encoder(value, context)
        # unit by unit: a forward pass for each, since a walk changes its sums in place
        value = context.new_zeros(len(context), self.units[level])
        parts: list[Tensor] = []
        for unit in range(value.shape[1]):
            seen = torch.cat([*parts, value[:, unit:]], 1)
            parts.append(draw(encoder(seen, context)[:, unit : unit + 1]))
        value = torch.cat(parts, 1)
        return value, encoder(value, context)

    def cost(
        self, x: Tensor, draw: Draw, given: Sequence[Tensor] = (), at_once: bool = False
    ) -> Tensor:
        """Description length of each row in nats, (n,): an upper bound of -log p(x) in
        expectation. given: see `encode`; the layers given cost nothing to be drawn.
        """
        sample = self.encode(x, draw, given, at_once)
        return sample.negentropy - self.log_joint(x, sample.h)

    @torch.no_grad()
    def sample(self, rows: int) -> Tensor:
        """(rows, bits), exactly from p(x), layer by layer from the top, unit by unit."""
        h: list[Tensor] = []
        for level in reversed(range(self.stochastic)):
            h.insert(0, self.decoder(level + 1).sample(rows, self.context_of(level + 1, h)))
        return self.decoder(0).sample(rows, self.context(0, h))

    def config(self) -> dict[str, Any]:
        """What `Darn.from_config` builds the same network from."""
        return {"groups": list(self.groups.sizes), "shape": asdict(self.shape)}

    @staticmethod
    def from_config(config: dict[str, Any]) -> "Darn":
        """With new weights."""
        return Darn(Groups(tuple(config["groups"])), revive(DarnShape, config["shape"]))


def bernoulli_negentropy(logits: Tensor) -> Tensor:
    """q log q + (1 - q) log(1 - q) of each bit, q = sigmoid(logits)."""
    q = torch.sigmoid(logits)
    return q * logits - nn.functional.softplus(logits)


@torch.no_grad()
def bernoulli(logits: Tensor) -> Tensor:
    """Bits, without a gradient."""
    return torch.bernoulli(torch.sigmoid(logits))


def likelier(logits: Tensor) -> Tensor:
    """The value of each bit that has the greater probability."""
    return (logits > 0).to(logits.dtype)


def _features(below: int, shape: DarnShape, level: int) -> nn.Module:
    """What q of a stochastic layer reads, given the layer below."""
    if not shape.local or level > 0:
        return _tanh(below, shape.hidden)
    if shape.window is None:
        raise ShapeError("local layers need window=Window(height, width): the size of the images")
    layers, size = local_layers((shape.window.height, shape.window.width), shape.local)
    return nn.Sequential(*layers, nn.Linear(size, shape.hidden or below), nn.Tanh())


def _tanh(inputs: int, units: int) -> nn.Module:
    if inputs and units:
        return nn.Sequential(nn.Linear(inputs, units), nn.Tanh())
    return nn.Identity()
