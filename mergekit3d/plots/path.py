"""How the mixing ratios moved: every layer's ratios over the epochs of an adaptation, stacked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mergekit3d.errors import InputError
from mergekit3d.plots import style
from mergekit3d.plots.logs import TrainingLog, read_log
from mergekit3d.plots.ratios import colour_patch, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 5
MOST_PANELS = 60
"""Of a page that can still be read; of more layers, as many are shown, evenly along the network."""

WIDTH_IN, HEIGHT_IN = 1.75, 1.15


@style.styled()
def path_figure(log: TrainingLog, sources: Sequence[str], *, title: str = "") -> Figure:
    """A small panel a layer, in the network's order: its ratios over the epochs, stacked, sources in colours, equal shares dashed.

    Args:
        log: of an adaptation.
        sources: names, in their order.
        title: above the figure.

    Raises:
        InputError: the log has no ratios of these sources.
    """
    paths = {source: log.ratios(source) for source in sources}
    layers = [layer for layer in paths[sources[0]] if all(layer in of_source for of_source in paths.values())]
    if not layers:
        raise InputError("the log has no mixing ratios", wanted=f"one of adapt, with {', '.join(sources)}")
    shown = [layers[index] for index in sorted({round(place) for place in np.linspace(0, len(layers) - 1, min(len(layers), MOST_PANELS))})]
    rows = math.ceil(len(shown) / COLUMNS)
    figure = style.new_figure(max(4.0, min(len(shown), COLUMNS) * WIDTH_IN), 0.9 + rows * HEIGHT_IN)
    grid = figure.subplots(rows, min(len(shown), COLUMNS), squeeze=False, sharex=True, sharey=True)
    colours = style.colours(list(sources))
    for axes, layer in zip(grid.flat, shown, strict=False):
        stacked = {source: paths[source][layer] for source in sources}
        _draw(axes, log.epochs, stacked, colours)
        axes.set_title(short_names([layer])[layer], fontsize=6)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    for axes in list(grid.flat)[max(0, len(shown) - grid.shape[1]) : len(shown)]:  # the lowest of every column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("epoch", fontsize=7)
    figure.legend(
        handles=[colour_patch(colour, source) for source, colour in colours.items()], loc="outside upper right", ncols=min(len(sources), 6)
    )
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def plot_path(log: Path, sources: Sequence[str], out: Path) -> None:
    """Write `path_figure` of a log.csv to `out`, PNG or SVG by its ending."""
    style.save_figure(path_figure(read_log(log), sources), out)


def _draw(axes: Axes, epochs: np.ndarray, ratios: Mapping[str, np.ndarray], colours: Mapping[str, str]) -> None:
    """Stacked areas; an adaptation of one epoch shows as a bar."""
    axes.grid(visible=False)
    places = epochs if len(epochs) > 1 else np.array([epochs[0] - 0.5, epochs[0] + 0.5])
    heights = [values if len(epochs) > 1 else np.repeat(values, 2) for values in ratios.values()]
    axes.stackplot(places, heights, colors=[colours[source] for source in ratios], linewidth=0)
    for index in range(1, len(ratios)):
        axes.axhline(index / len(ratios), color=style.INK, linewidth=0.7, linestyle=(0, (3, 2)))
    axes.set_xlim(places[0], places[-1])
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 1])
    axes.tick_params(labelsize=6.5)
