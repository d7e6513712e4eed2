"""Where the units of a tensor stand: `unit_dim(shape, dim, layer)`."""

from collections.abc import Sequence

from morphogen.errors import ShapeError


def unit_dim(shape: Sequence[int], dim: int | None, layer: str) -> int:
    """The dimension of the units, counted from the front: `dim` where it is given.

    Otherwise the last of (features) and of (batch, features), as linear layers have it, and 1 of
    maps (batch, channels, height, width) and of volumes, as convolutions have it. Three dimensions
    may be (batch, time, features) or (batch, channels, length): there it must be given. Raises
    `ShapeError`.
    """
    rank = len(shape)
    if dim is None and rank == 3:
        raise ShapeError(
            f"{layer}: an input of shape {tuple(shape)} may be (batch, time, features) or (batch, "
            "channels, length); give dim=-1 for the first and dim=1 for the second"
        )
    dim = dim if dim is not None else -1 if rank < 3 else 1
    if not -rank <= dim < rank:
        raise ShapeError(
            f"{layer}: dim={dim} of an input of shape {tuple(shape)}; give the dimension of the "
            "units"
        )
    return dim % rank
