"""Figure 5 of the paper: the mixing ratio of every layer, in the network's order."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENCODER = re.compile(
    r"(^|[._])(enc|encoder|encoders|encoder_blocks|down|downs|down_layers|downsamples|conv_blocks_context)([._\d]|$)", re.I
)
DECODER = re.compile(r"(^|[._])(dec|decoder|decoders|decoder_blocks|up|ups|up_layers|upsamples|conv_blocks_localization)([._\d]|$)", re.I)

COLUMN = 30
"""Layers in a column before a long part of a network gets a second one."""

ROW_IN = 0.185


@style.styled()
def ratios_figure(ratios: Mapping[str, Any], *, title: str = "") -> Figure:
    """One stacked bar a layer, sources in colours, encoder and decoder apart, the line of equal shares at 1/T.

    Args:
        ratios: the content of ratios.json: ``sources`` and ``layers`` (name -> one ratio a source, or one list over output
            channels a source, drawn by its mean). Readable for some 30 layers and for some hundred.
        title: above the figure.
    """
    sources = [str(source) for source in ratios["sources"]]
    shares = {str(layer): _shares(row) for layer, row in ratios["layers"].items()}
    columns = _columns(list(shares))
    rows = max(len(layers) for _, layers in columns)
    longest = max(len(name) for _, layers in columns for name in short_names(layers).values())
    width = len(columns) * (2.4 + 0.075 * longest)
    figure = style.new_figure(max(5.0, width), 1.25 + ROW_IN * max(rows, 3))
    grid = figure.subplots(1, len(columns), squeeze=False, sharex=True)[0]
    for axes, (heading, layers) in zip(grid, columns, strict=True):
        axes.set_title(heading)
        _draw_bars(axes, {name: shares[layer] for layer, name in short_names(layers).items()}, sources, rows)
    handles = [colour_patch(colour, source) for source, colour in style.colours(sources).items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=min(len(handles), 6))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def plot_ratios(ratios: Mapping[str, Any], out: Path) -> None:
    """Write `ratios_figure` to `out`, PNG or SVG by its ending."""
    style.save_figure(ratios_figure(ratios), out)


def stack_bars(axes: Axes, rows: Sequence[Sequence[float]], sources: Sequence[str]) -> None:
    """A row of bars end to end, one a source in its colour; a row is one number a source."""
    starts = [0.0] * len(rows)
    for index, colour in enumerate(style.colours(sources).values()):
        lengths = [row[index] for row in rows]
        axes.barh(range(len(rows)), lengths, left=starts, height=0.78, color=colour, linewidth=0)
        starts = [start + length for start, length in zip(starts, lengths, strict=True)]


def _draw_bars(axes: Axes, shares: Mapping[str, Sequence[float]], sources: Sequence[str], rows: int) -> None:
    axes.grid(visible=False)
    positions = range(len(shares))
    stack_bars(axes, list(shares.values()), sources)
    equal = [index / len(sources) for index in range(1, len(sources))]
    ends = [-0.5, len(shares) - 0.5]
    for position in equal:
        axes.plot([position, position], ends, color=style.PAPER, linewidth=1.4, solid_capstyle="butt")
        axes.plot([position, position], ends, color=style.INK, linewidth=1.0, linestyle=(0, (3, 2)))
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_yticks(positions, list(shares), color=style.INK, fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, *equal, 1], ["0", *(f"{position:.2g}" for position in equal), "1"])
    axes.set_xlabel("mixing ratio")
    axes.spines[["left", "bottom"]].set_visible(False)


def _shares(row: Sequence[Any]) -> list[float]:
    """A layer's ratios, scaled to sum to 1 (given ones need not)."""
    means = [_mean(ratio) for ratio in row]
    total = math.fsum(means)
    return [mean / total for mean in means]


def _mean(ratio: Any) -> float:
    return math.fsum(ratio) / len(ratio) if isinstance(ratio, Sequence) else float(ratio)


def _columns(layers: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Encoder, decoder and the rest, in the network's order, long parts broken into columns of even length."""
    parts: dict[str, list[str]] = {}
    for layer in layers:
        parts.setdefault(part_of(layer), []).append(layer)
    if len(parts) == 1 and "other" in parts:
        parts = {"layers": parts["other"]}
    columns = []
    # Two columns of any length rather than more of them: wider than a page, the names could not be read.
    longest = max(COLUMN, math.ceil(len(layers) / 2))
    for heading, of_part in parts.items():
        pieces = math.ceil(len(of_part) / longest)
        length = math.ceil(len(of_part) / pieces)
        starts = range(0, len(of_part), length)
        columns += [(heading if start == 0 else f"{heading}, continued", of_part[start : start + length]) for start in starts]
    return columns


def part_of(layer: str) -> str:
    """``encoder``, ``decoder`` or ``other``, told from a layer's name."""
    found = [(match.start(), part) for part, pattern in (("encoder", ENCODER), ("decoder", DECODER)) if (match := pattern.search(layer))]
    return min(found)[1] if found else "other"


def short_names(layers: Sequence[str]) -> dict[str, str]:
    """Names without the first component that all share (``encoder.``); long ones lose their middle."""
    prefixes = {layer.split(".", 1)[0] for layer in layers}
    common = f"{prefixes.pop()}." if len(prefixes) == 1 and len(layers) > 1 else ""
    names = {layer: layer.removeprefix(common) or layer for layer in layers}
    return {layer: name if len(name) <= 44 else f"{name[:20]}…{name[-22:]}" for layer, name in names.items()}


def colour_patch(colour: str, label: str) -> Any:
    """An entry of a legend."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, label=label)
