"""Polygons side by side, as a picture: `tiled(tiling)`."""

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from morphogen.record import Tiling


def tiled(tiling: Tiling, axes: tuple[str, str] = ("", "")) -> Figure:
    """Equal kinds have one colour, and neighbouring numbers far apart ones."""
    figure = Figure(figsize=(6, 6), layout="constrained")
    plot = figure.subplots()
    kinds = np.asarray(tiling.kinds)
    # multiples of the golden section fill the circle of hues evenly, however many there are
    hue = (kinds * 0.618034) % 1
    light = 0.82 + 0.16 * ((kinds * 0.754878) % 1)
    colours = hsv_to_rgb(np.stack([hue, np.full(len(kinds), 0.38), light], 1))
    width = 0.5 if len(kinds) < 3000 else 0.15
    plot.add_collection(
        PolyCollection(
            list(tiling.polygons), facecolors=colours, edgecolors="#333", linewidths=width
        )
    )
    plot.autoscale_view()
    plot.margins(0)
    plot.set(xlabel=axes[0], ylabel=axes[1], title=tiling.panel, aspect="equal")
    return figure
