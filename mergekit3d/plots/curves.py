"""Learning curves of one or several runs: loss, validation Dice, learning rate, and the ratios' path of an adaptation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mergekit3d.plots import style
from mergekit3d.plots.logs import RATIO_PREFIX, Column, TrainingLog, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_IN = (3.6, 2.6)
MOST_COLUMNS = 3
FEW_REGIONS = 4
"""Of one run: the legend of more stands below, as it would cover their curves."""
MOST_REGION_PANELS = 6
"""Of several runs; a 14-class task would fill pages."""


@style.styled()
def curves_figure(logs: Mapping[str, TrainingLog], *, sources: Sequence[str] = ()) -> Figure:
    """Panels over the epochs: loss (training dashed, validation solid), validation Dice, regions, learning rate, ratios.

    Args:
        logs: the runs by name; several are overlaid, a colour each.
        sources: names of the sources of an adaptation, for the path of the ratios; by default the ones that its log tells.
    """
    panels = ["loss", "dice", *_region_panels(logs), "learning rate"]
    adaptations = {name: log for name, log in logs.items() if any(column.startswith(RATIO_PREFIX) for column in log.columns)}
    panels += [f"ratios {name}" for name in adaptations]
    columns = 2 if len(panels) == 4 else min(MOST_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    lines = max(len(log.regions) for log in logs.values()) + 1 if len(logs) == 1 else 0
    legend_in = 0.35 if len(logs) > 1 else 0.22 * math.ceil(lines / 5) * (lines > FEW_REGIONS + 1)
    figure = style.new_figure(PANEL_IN[0] * columns, PANEL_IN[1] * rows + legend_in)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    colours = style.colours(list(logs))
    _draw_loss(axes[0], logs, colours)
    _draw_dice(axes[1], logs, colours)
    for axis, region in zip(axes[2:], _region_panels(logs), strict=False):
        _draw_region(axis, region, logs, colours)
    _draw_learning_rate(axes[len(panels) - len(adaptations) - 1], logs, colours)
    for axis, (name, log) in zip(axes[len(panels) - len(adaptations) :], adaptations.items(), strict=False):
        _draw_ratios(axis, log, sources, name if len(logs) > 1 else "")
    first, last = _span(logs)
    for axis in axes[: len(panels)]:
        axis.set_xlabel("epoch")
        axis.set_xlim(first - 0.02 * (last - first), last + 0.02 * (last - first))
        _whole_ticks(axis)
    for axis in axes[len(panels) :]:
        axis.remove()
    if len(logs) > 1:
        handles = [_line(colour, name) for name, colour in colours.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(8, len(handles)))
    return figure


def plot_curves(logs: Sequence[Path], out: Path, *, names: Sequence[str] = (), sources: Sequence[str] = ()) -> None:
    """Write `curves_figure` of some log.csv files to `out`, PNG or SVG by its ending.

    Args:
        logs: the files.
        out: the picture.
        names: what to call the runs; by default their numbers.
        sources: of an adaptation, for the path of the ratios.

    Raises:
        InputError: a file that is no log.csv.
    """
    called = names or [f"run {number}" for number, _ in enumerate(logs, 1)]
    style.save_figure(curves_figure({name: read_log(log) for name, log in zip(called, logs, strict=True)}, sources=sources), out)


def _region_panels(logs: Mapping[str, TrainingLog]) -> list[str]:
    """Regions that two runs or more have: of runs on different tasks there is nothing to see side by side."""
    counts = Counter(region for log in logs.values() for region in log.regions)
    return [region for region, count in counts.items() if count > 1][:MOST_REGION_PANELS]


def _span(logs: Mapping[str, TrainingLog]) -> tuple[float, float]:
    """The epochs of all runs: one axis for every panel, so that they can be read one above the other."""
    first, last = min(float(log.epochs[0]) for log in logs.values()), max(float(log.epochs[-1]) for log in logs.values())
    return (first, last) if last > first else (first - 0.5, last + 0.5)


def _draw_loss(axes: Axes, logs: Mapping[str, TrainingLog], colours: Mapping[str, str]) -> None:
    axes.set_title("loss")
    both = False
    for name, log in logs.items():
        validation = log.get("validation_loss")
        both |= validation is not None
        _plot(axes, log, log.get("train_loss"), colours[name], linestyle=(0, (2, 1.4)) if validation is not None else "-", alpha=0.75)
        _plot(axes, log, validation, colours[name])
    if both:
        handles = [_line(style.MUTED, "training", dashed=True), _line(style.MUTED, "validation")]
        axes.legend(handles=handles, loc="best")


def _draw_dice(axes: Axes, logs: Mapping[str, TrainingLog], colours: Mapping[str, str]) -> None:
    axes.set_title("validation Dice" if len(logs) == 1 else "validation Dice, mean of the regions")
    axes.set_ylim(0, 1)
    for name, log in logs.items():
        if len(logs) == 1:
            for (region, values), colour in zip(log.regions.items(), _region_colours(len(log.regions)), strict=True):
                _plot(axes, log, values, colour, label=region, linewidth=1.2)
            _plot(axes, log, log.get("validation_dice"), style.INK, label="mean", linewidth=style.EMPHASIS)
            if 0 < len(axes.lines) <= FEW_REGIONS + 1:
                axes.legend(loc="best", ncols=2)
            elif axes.lines:
                axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        else:
            _plot(axes, log, log.get("validation_dice"), colours[name])
    _say_if_empty(axes, "no validation")


def _draw_region(axes: Axes, region: str, logs: Mapping[str, TrainingLog], colours: Mapping[str, str]) -> None:
    axes.set_title(f"validation Dice, {region}")
    axes.set_ylim(0, 1)
    for name, log in logs.items():
        _plot(axes, log, log.regions.get(region), colours[name])


def _draw_learning_rate(axes: Axes, logs: Mapping[str, TrainingLog], colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_title("learning rate")
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")
    for index, (name, log) in enumerate(logs.items()):
        rate = log.get("learning_rate")
        # Runs often share a schedule: the first one's line shows on both sides of those above it.
        width = style.LINE * (1 + 1.6 * (len(logs) - 1 - index) / max(len(logs) - 1, 1))
        _plot(axes, log, rate, colours[name], drawstyle="steps-post", linewidth=width)
        if rate is not None and np.nanmin(rate) > 0 and np.nanmax(rate) / np.nanmin(rate) > 5:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.0e}")
            axes.yaxis.set_minor_formatter(lambda *_: "")


def _draw_ratios(axes: Axes, log: TrainingLog, sources: Sequence[str], name: str) -> None:
    """The path of the first source's ratio, a thin line a layer, from the first layer (dark) to the last (light)."""
    source = sources[0] if sources else _last_word(log)
    paths = log.ratios(source)
    axes.set_title(f"ratio of {source}, a line a layer" + (f" ({name})" if name else ""))
    axes.set_ylim(0, 1)
    for path, colour in zip(paths.values(), depth_colours(len(paths)), strict=True):
        _plot(axes, log, path, colour, linewidth=1.0)
    if paths:
        first, last = depth_colours(2)
        axes.legend(handles=[_line(first, "first layer"), _line(last, "last layer")], loc="best", ncols=2)


def depth_colours(count: int) -> list[str]:
    """Colours from the first layer to the last, along a perceptually even map."""
    import matplotlib
    from matplotlib.colors import to_hex

    colour_map = matplotlib.colormaps["viridis"]
    return [to_hex(colour_map(0.05 + 0.8 * index / max(1, count - 1))) for index in range(count)]


def _region_colours(count: int) -> list[str]:
    return list(style.SERIES[:count]) if count <= len(style.SERIES) else depth_colours(count)


def _last_word(log: TrainingLog) -> str:
    """A source, told from the first ratio column where the caller does not know: what follows its last underscore."""
    return next(name for name in log.columns if name.startswith(RATIO_PREFIX)).rpartition("_")[2]


def _plot(axes: Axes, log: TrainingLog, values: Column | None, colour: str, **options: object) -> None:
    if values is None:
        return
    defined = np.isfinite(values)
    # A line needs two points; a run of one epoch shows as a dot.
    marker = "o" if np.count_nonzero(defined) == 1 else None
    axes.plot(log.epochs[defined], values[defined], color=colour, marker=marker, markersize=4, **options)  # type: ignore[arg-type]


def _line(colour: str, label: str, *, dashed: bool = False) -> object:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, linestyle=(0, (2, 1.4)) if dashed else "-")


def _whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _say_if_empty(axes: Axes, text: str) -> None:
    if not axes.lines:
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=style.MUTED)
