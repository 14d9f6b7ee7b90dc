"""Figure 4 of the paper: the per-subject Dice difference of one method to every other, subjects sorted by that method's Dice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit3d.comparison import p_words
from mergekit3d.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mergekit3d.comparison import CompareResult, Comparison

PANEL_IN = (2.6, 2.2)
MOST_COLUMNS = 4
SMALLEST_REACH = 0.05
"""Of the axis of differences, so that noise of a hundredth does not fill the panel."""


@style.styled()
def differences_figure(result: CompareResult) -> Figure:
    """A panel an other method with one bar a subject, the mean difference as a line; the first's Dice below.

    Args:
        result: of `compare`; its comparisons of the mean over the regions are drawn.
    """
    order = sorted((subject for subject, dice in result.first_dice.items() if not math.isnan(dice)), key=lambda s: result.first_dice[s])
    comparisons = result.of_mean()
    columns = min(MOST_COLUMNS, max(len(comparisons), 1))
    rows = math.ceil(len(comparisons) / columns)
    figure = style.new_figure(max(4.6, PANEL_IN[0] * columns), PANEL_IN[1] * rows + 1.5)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[2.0] * rows + [1.0])
    reach = 1.12 * max([SMALLEST_REACH, *(abs(value) for comparison in comparisons for value in comparison.differences.values())])
    for index, comparison in enumerate(comparisons):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        _draw_differences(axes, result.first, comparison, order)
        axes.set_ylim(-reach, reach)
        if index % columns == 0:
            axes.set_ylabel(f"Dice, {result.first} - other")
        else:
            axes.tick_params(labelleft=False)
    # The Dice that the subjects are sorted by stands once under each column, so that it can be read against the bars above.
    for column in range(columns):
        axes = figure.add_subplot(grid[rows, column])
        _draw_dice(axes, [result.first_dice[subject] for subject in order])
        if column == 0:
            axes.set_ylabel(f"Dice, {result.first}")
        else:
            axes.tick_params(labelleft=False)
    return figure


def _draw_differences(axes: Axes, first: str, comparison: Comparison, order: Sequence[str]) -> None:
    values = [comparison.differences[subject] for subject in order]
    axes.set_title(f"{first} - {comparison.other}", pad=20)
    colours = [style.BETTER if value >= 0 else style.WORSE for value in values]
    axes.bar(range(1, len(values) + 1), values, width=0.82, color=colours, linewidth=0)
    axes.axhline(0, color=style.MUTED, linewidth=0.8)
    if values:
        axes.axhline(comparison.mean_difference, color=style.INK, linewidth=1.2, linestyle=(0, (3, 2)))
    _subject_axis(axes, len(values))
    axes.tick_params(labelbottom=False)
    verdict = axes.annotate(_verdict(comparison), (0, 1), (0, 7), "axes fraction", "offset points", fontsize=7.5, color=style.MUTED)
    verdict.set_in_layout(False)


def _draw_dice(axes: Axes, values: Sequence[float]) -> None:
    axes.bar(range(1, len(values) + 1), values, width=0.82, color=style.PLAIN, linewidth=0)
    axes.set_ylim(0, 1)
    _subject_axis(axes, len(values))
    axes.set_xlabel("subject, sorted by that Dice")


def _subject_axis(axes: Axes, count: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.grid(visible=False, axis="x")
    axes.set_xlim(0.3, count + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, prune=None))


def _verdict(comparison: Comparison) -> str:
    if not comparison.differences:
        return "no pairs"
    return f"{comparison.mean_difference:+.3f}, better on {comparison.wins} of {len(comparison.differences)}, {p_words(comparison.p)}"
