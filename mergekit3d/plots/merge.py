"""What a fusion made of each layer: how much every source weighs, how far the result is from it, where nothing was known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.plots import style
from mergekit3d.plots.ratios import colour_patch, part_of, short_names, stack_bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_IN = 0.185
PANELS = ("share after the Fisher", "relative distance from the source", "entries without information")


@style.styled()
def merge_figure(report: Mapping[str, Any], *, title: str = "") -> Figure:
    """A row a layer in the network's order; panels for what the report holds.

    Args:
        report: the content of a report that ``fuse`` writes: ``sources`` and ``per_layer``.
        title: above the figure.
    """
    sources = [str(source) for source in report["sources"]]
    layers: Mapping[str, Mapping[str, Any]] = report["per_layer"]
    names = short_names(list(layers))
    drawn = [
        (heading, draw)
        for heading, key, draw in zip(PANELS, ("share", "distance", "no_information"), (_shares, _distances, _unknown), strict=True)
        if any(key in row for row in layers.values())
    ]
    longest = max((len(name) for name in names.values()), default=0)
    figure = style.new_figure(2.5 * len(drawn) + 0.075 * longest + 0.8, 1.25 + ROW_IN * max(len(layers), 3))
    grid = figure.subplots(1, len(drawn), squeeze=False, sharey=True)[0]
    for axes, (heading, draw) in zip(grid, drawn, strict=True):
        axes.set_title(heading)
        axes.grid(visible=False, axis="y")
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        draw(axes, list(layers.values()), sources)
    grid[0].set_yticks(range(len(layers)), list(names.values()), color=style.INK, fontsize=7.5)
    grid[0].set_ylim(len(layers) - 0.4, -0.6)
    _mark_parts(grid, list(layers))
    handles = [colour_patch(colour, source) for source, colour in style.colours(sources).items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=min(len(handles), 6))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def plot_merge(report: Mapping[str, Any], out: Path) -> None:
    """Write `merge_figure` to `out`, PNG or SVG by its ending."""
    style.save_figure(merge_figure(report), out)


def _shares(axes: Axes, rows: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> None:
    stack_bars(axes, [[float(row.get("share", {}).get(source) or 0.0) for source in sources] for row in rows], sources)
    axes.set_xlim(0, 1)


def _distances(axes: Axes, rows: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> None:
    for source, colour in style.colours(sources).items():
        found = [(row["distance"][source], index) for index, row in enumerate(rows) if row.get("distance", {}).get(source) is not None]
        axes.scatter([distance for distance, _ in found], [index for _, index in found], s=16, color=colour, linewidth=0, zorder=3)
    axes.set_xlim(left=0)


def _unknown(axes: Axes, rows: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> None:  # noqa: ARG001  as the other panels
    unknown = [float(row.get("no_information") or 0.0) for row in rows]
    axes.barh(range(len(rows)), unknown, height=0.78, color=style.PLAIN, linewidth=0)
    axes.set_xlim(0, min(1.0, max(0.05, 1.15 * max(unknown))))


def _mark_parts(grid: Sequence[Axes], layers: Sequence[str]) -> None:
    """A line between encoder and decoder."""
    for index in range(1, len(layers)):
        if part_of(layers[index]) != part_of(layers[index - 1]):
            for axes in grid:
                axes.axhline(index - 0.5, color=style.MUTED, linewidth=0.8)
