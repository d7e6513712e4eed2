"""Colour images for the experiments that grow convolutional networks, and the scores of a network
on them.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.data.load import load_data
from morphogen.data.split import split
from morphogen.training.train import predict

Part = tuple[Tensor, Tensor]
"""Images (n, 3, size, size) in [0, 1] and labels (n,)."""


@dataclass(frozen=True)
class Images:
    """Three parts. title: the name that results are given under. notes: what a reader must know of
    the data.
    """

    title: str
    train: Part
    validation: Part
    test: Part
    classes: int
    notes: tuple[str, ...]


def images(name: str, seed: int, size: int = 32, held: float = 0.1, device: str = "cpu") -> Images:
    """The set `name` at `size` x `size` pixels, averaged or repeated where it has another size,
    with three channels.

    held: the share of the training part that is for validation; 0 gives the test part in its place.
    """
    dataset = load_data(name)
    x = torch.as_tensor(dataset.x_train)
    y = torch.as_tensor(dataset.y_train)
    inside, apart = map(torch.as_tensor, split(dataset.y_train, held, seed, stratify=True))
    part = partial(fitted, size, device)
    test = part(torch.as_tensor(dataset.x_test), torch.as_tensor(dataset.y_test))
    notes = list(dataset.notes)
    if not held:
        notes.append("the validation part is the TEST part")
    if x.shape[1] != 3 or x.shape[-1] != size:
        notes.append(f"{name}: images of {tuple(x.shape[1:])} were brought to (3, {size}, {size})")
    titles = [note.partition(":")[0] for note in dataset.notes if note.startswith("CIFAR")]
    return Images(
        title=titles[0] if titles else name,
        train=part(x[inside], y[inside]),
        validation=part(x[apart], y[apart]) if held else test,
        test=test,
        classes=len(dataset.classes),
        notes=tuple(notes),
    )


def fitted(size: int, device: str, x: Tensor, y: Tensor) -> Part:
    """Images of any size and number of channels as three channels of one size."""
    fitting = x if x.shape[-1] == size else F.interpolate(x, (size, size), mode="area")
    return fitting.expand(-1, 3, -1, -1).contiguous().to(device), y.to(device)


def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def scores(model: nn.Module, part: Part) -> tuple[float, float]:
    """(mean cross-entropy, accuracy)."""
    logits = predict(model, part[0])
    return float(F.cross_entropy(logits, part[1])), float(
        logits.argmax(1).eq(part[1]).double().mean()
    )
