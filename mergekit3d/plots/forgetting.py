"""What every network still knows of every source's task: Table 4 of the paper as a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mergekit3d.metrics import defined_mean
from mergekit3d.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL_IN = (1.05, 0.36)
DARK = 0.45
"""Dice from which a cell is so dark that its number is white."""


@style.styled()
def forgetting_figure(networks: Sequence[str], tasks: Sequence[str], dice: Sequence[Sequence[float]]) -> Figure:
    """A row a network, a column a task, and the mean of the tasks where there are several; darker is better known.

    Args:
        networks: names of the rows.
        tasks: names of the sources whose tasks they are.
        dice: mean Dice, a row a network; NaN where undefined.
    """
    from matplotlib.colors import LinearSegmentedColormap

    headings = [f"task of {task}" for task in tasks]
    values = [list(row) for row in dice]
    if len(tasks) > 1:
        headings.append("mean")
        values = [[*row, defined_mean(row)] for row in values]
    longest = max(len(name) for name in networks)
    figure = style.new_figure(0.09 * longest + CELL_IN[0] * len(headings) + 0.5, 0.9 + CELL_IN[1] * len(networks))
    axes = figure.subplots()
    style.hide_frame(axes)
    colours = LinearSegmentedColormap.from_list("known", ["#eef4fb", style.SERIES[0], "#0a3d6b"]).with_extremes(bad=style.GRID)
    axes.imshow(np.ma.masked_invalid(np.array(values, float)), cmap=colours, vmin=0, vmax=1, aspect="auto")
    for row, cells in enumerate(values):
        for column, value in enumerate(cells):
            text = "–" if math.isnan(value) else f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", color=style.PAPER if value >= DARK else style.INK)
    axes.set_xticks(range(len(headings)), headings, color=style.INK)
    axes.set_yticks(range(len(networks)), networks, color=style.INK)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    for edge in range(1, len(headings)):
        axes.axvline(edge - 0.5, color=style.PAPER, linewidth=5 if len(tasks) > 1 and edge == len(tasks) else 1.5)
    for edge in range(1, len(networks)):
        axes.axhline(edge - 0.5, color=style.PAPER, linewidth=1.5)
    axes.set_title("mean test Dice", pad=14)
    return figure
