"""How every figure looks and how it is written: colours that colour-blind readers tell apart, PNG or SVG, no dates, no paths."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.errors import UsageError
from mergekit3d.storage.atomic import atomic_open

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = "#ffffff"
INK = "#1c2330"
MUTED = "#5d6879"
GRID = "#e3e7ed"
BETTER = "#0b69b7"
WORSE = "#d4571e"
PLAIN = "#8b93a1"
"""For what has no source: random initialisation, the reference line of a group."""

SERIES = ("#1170c4", "#e8930c", "#0a9a72", "#c5479b", "#5b5bd6", "#a16a1d", "#38a9d6", "#d63f3f")
"""Colours of sources, runs and regions in order: after Okabe and Ito, darkened to stand out on white."""

EMPHASIS = 2.2
LINE = 1.5
PNG_DPI = 200
ENDINGS = (".png", ".svg")

_RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": PAPER,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": LINE,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "mergekit3d",
    "text.color": INK,
    "text.parse_math": False,  # names may hold dollar signs
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": 8.5,
}


@contextmanager
def styled(**extra: object) -> Iterator[None]:
    """Matplotlib's settings for our figures, for as long as the block (or the decorated function) runs."""
    import matplotlib

    settings: Any = {**_RC, **extra}
    with matplotlib.rc_context(settings):
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure that lays itself out, free of pyplot.

    Args:
        width_in: inches.
        height_in: inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def colours(names: Sequence[str], *, plain: Sequence[str] = ("none", "random")) -> dict[str, str]:
    """A colour for every name, in order; those in `plain` are grey. Colours return after the eighth name."""
    coloured = [name for name in names if name not in plain]
    by_name = {name: SERIES[index % len(SERIES)] for index, name in enumerate(coloured)}
    return {name: by_name.get(name, PLAIN) for name in names}


def hide_frame(axes: Axes) -> None:
    """Take grid, ticks and frame off axes that show a picture."""
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def check_ending(path: Path) -> None:
    """Refuse a figure's file name that ends in neither .png nor .svg.

    Raises:
        UsageError: it ends otherwise.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UsageError("cannot tell the kind of picture", where=path, wanted=" or ".join(ENDINGS), found=path.suffix or "no ending")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically, as PNG or SVG by the ending of `path`.

    Raises:
        UsageError: another ending.
        OutputError: the file system refused.
    """
    check_ending(path)
    content = svg_bytes(figure) if path.suffix.lower() == ".svg" else png_bytes(figure)
    with atomic_open(path) as file:
        file.write(content)


def png_bytes(figure: Figure, *, dpi: int = PNG_DPI) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    content = io.BytesIO()
    with styled():
        figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None}, facecolor=figure.get_facecolor())
    return content.getvalue()


def svg_bytes(figure: Figure, *, live_text: bool = False) -> bytes:
    """The figure as SVG, without date; the same figure gives the same bytes.

    Args:
        figure: any.
        live_text: keep text as text (selectable, in the reader's font) instead of outlines.
    """
    content = io.BytesIO()
    with styled(**{"svg.fonttype": "none" if live_text else "path"}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None}, facecolor=figure.get_facecolor())
    return content.getvalue()
