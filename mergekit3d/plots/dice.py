"""Test Dice of several methods: a dot a subject, the mean with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekit3d.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_IN = 0.34
GOLDEN = 0.6180339887
"""Multiples of it, modulo 1, spread dots evenly over a band without a random generator."""


@dataclass(frozen=True)
class DiceSample:
    """What one method reached.

    Args:
        dice: of every subject.
        mean: over the subjects.
        interval_95: of the mean; NaN where unknown.
    """

    dice: Sequence[float]
    mean: float
    interval_95: tuple[float, float]


@style.styled()
def dice_figure(samples: Mapping[str, Mapping[str, DiceSample]]) -> Figure:
    """A panel a group (size of the training set), a row a method.

    Args:
        samples: by group and name of the method.
    """
    names = list(dict.fromkeys(name for group in samples.values() for name in group))
    figure = style.new_figure(min(9.6, 4.4 * len(samples) + 3.0), 0.85 + ROW_IN * len(names))
    grid = figure.subplots(1, len(samples), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (group, by_name) in zip(grid, samples.items(), strict=True):
        if len(samples) > 1:
            axes.set_title(group)
        _draw(axes, names, by_name)
    grid[0].set_yticks(range(len(names)), names, color=style.INK, fontsize=9)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def _draw(axes: Axes, names: Sequence[str], samples: Mapping[str, DiceSample]) -> None:
    colours = style.colours(names)
    for row, name in enumerate(names):
        if name not in samples or math.isnan(samples[name].mean):
            continue
        sample = samples[name]
        heights = [row + 0.44 * ((index * GOLDEN) % 1.0 - 0.5) for index in range(len(sample.dice))]
        axes.scatter(sample.dice, heights, s=13, color=colours[name], alpha=0.6, linewidth=0)
        if not math.isnan(sample.interval_95[0]):
            axes.plot(sample.interval_95, [row, row], color=style.INK, linewidth=1.6)
        axes.scatter([sample.mean], [row], s=46, marker="D", color=colours[name], edgecolor=style.INK, linewidth=1.1, zorder=3)
    axes.set_xlim(0, 1.005)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("mean Dice of the regions, a dot a test subject")
