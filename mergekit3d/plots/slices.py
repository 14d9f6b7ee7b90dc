"""Figure 3 of the paper: slices of predictions beside the truth, over the image, in the three planes.

Shown as radiologists see it: the patient's right is on the left of the picture, anterior and superior are up; letters say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit3d.metrics import defined_mean, dice
from mergekit3d.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NIGHT = "#0f131a"
"""Background: a page in either theme can carry it, and the eye does not have to adapt from the image to it."""
LIGHT = "#e6eaf0"
DIM = "#98a2b3"
NESTED = ("#4fb3ff", "#ffb000", "#ff4d5e", "#d98cff")
"""Colours of up to four outputs of one task, the largest first: nested tumour regions stay apart."""

FILL = 0.42
TILE_IN = 1.9
MARGIN_VOXELS = 3
LEGEND_ROW_IN = 0.21
HANDLE_IN, LETTER_IN = 0.5, 0.075
"""What an entry of the legend takes: its patch with the gaps around it, and each letter."""


@dataclass(frozen=True)
class Plane:
    """A plane of a RAS+ volume and how it is laid on the page.

    Args:
        name: of the plane.
        normal: axis that it is cut along.
        left: what is on the left of the picture.
        right: what is on the right.
    """

    name: str
    normal: int
    left: str
    right: str


PLANES = (Plane("axial", 2, "R", "L"), Plane("coronal", 1, "R", "L"), Plane("sagittal", 0, "A", "P"))


@style.styled()
def slices_figure(
    image: NDArray[Any],
    truth: NDArray[Any] | None,
    predictions: Mapping[str, NDArray[Any]],
    outputs: Sequence[str],
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    tasks: Sequence[Sequence[str]] = (),
    planes: Sequence[Plane] = PLANES,
    title: str = "",
) -> Figure:
    """A row a plane; in columns the image alone, the truth, and every prediction with its mean Dice.

    Args:
        image: (X, Y, Z), RAS+, any scale.
        truth: (C, X, Y, Z) masks, a channel an output; None where there is none.
        predictions: masks of the same shape by name.
        outputs: names of the C channels.
        spacing_mm: size of a voxel along each axis.
        tasks: the outputs of each of two or more tasks; each task gets its own family of colours. Empty: all are one task.
        planes: which planes, cut where the masks are largest.
        title: above the figure.
    """
    reference = truth if truth is not None else next(iter(predictions.values()), np.zeros((0, *image.shape)))
    colours = output_colours(outputs, reference, tasks)
    columns = {"image": None, **({} if truth is None else {"truth": truth})}
    headings = [*columns, *(_heading(name, masks, truth) for name, masks in predictions.items())]
    columns |= predictions
    box = _foreground_box(image)
    centre = _largest_section(np.any(reference, axis=0), box)
    extents = [_extent_mm(plane, box, spacing_mm) for plane in planes]
    heights = [TILE_IN * height / width for width, height in extents]
    width = TILE_IN * len(columns)
    across = legend_columns(list(colours), width)
    rows_below = math.ceil(len(colours) / across)
    above = 0.2 * max(heading.count("\n") + 1 for heading in headings) + (0.3 if title else 0)
    figure = style.new_figure(width, sum(heights) + above + 0.25 + LEGEND_ROW_IN * rows_below)
    figure.set_facecolor(NIGHT)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.05, wspace=0.0, hspace=0.0)  # type: ignore[call-arg, union-attr]
    grid = figure.subplots(len(planes), len(columns), squeeze=False, height_ratios=heights)
    window = _window(image)
    for row, (plane, extent) in enumerate(zip(planes, extents, strict=True)):
        for axes, heading, masks in zip(grid[row], headings, columns.values(), strict=True):
            _draw_image(axes, _cut(image, plane, centre, box), extent, window)
            if masks is not None:
                _draw_masks(axes, [_cut(mask, plane, centre, box) for mask in masks], list(colours.values()), extent)
            if row == 0:
                axes.set_title(heading, color=LIGHT, loc="center", fontsize=9, pad=5)
        _letters(grid[row][0], plane)
    _legend(figure, colours, title, across)
    return figure


def legend_columns(names: Sequence[str], width_in: float) -> int:
    """How many entries of a legend fit beside one another: as wide as the longest, at most the picture's width together."""
    if not names:
        return 1
    return max(1, min(len(names), int(width_in / (HANDLE_IN + LETTER_IN * max(map(len, names))))))


def output_colours(outputs: Sequence[str], reference: NDArray[Any], tasks: Sequence[Sequence[str]] = ()) -> dict[str, str]:
    """A colour for every output, in the order in which they are drawn: the largest first, so that none covers a smaller one.

    Args:
        outputs: names of the channels.
        reference: (C, X, Y, Z) masks that tell the sizes.
        tasks: outputs of each task; each gets a family of neighbouring hues.

    Returns:
        Colour by output, in the order of `outputs`.
    """
    sizes = {name: int(np.count_nonzero(mask)) for name, mask in zip(outputs, reference, strict=False)}
    by_size = sorted(outputs, key=lambda name: -sizes.get(name, 0))
    if len(tasks) < 2 and len(outputs) <= len(NESTED):
        chosen = dict(zip(by_size, NESTED, strict=False))
    else:
        families = tasks if len(tasks) > 1 else [outputs]
        spans = [(0.47, 0.80), (0.96, 1.19), (0.22, 0.42)] if len(tasks) > 1 else [(0.0, 0.92)]
        chosen = {}
        for index, family in enumerate(families):
            chosen.update(zip(family, _hues(len(family), *spans[index % len(spans)]), strict=True))
    return {name: chosen.get(name, DIM) for name in outputs}


def _hues(count: int, start: float, end: float) -> list[str]:
    """Colours along the circle of hues; neighbours differ in lightness too, for readers who see few hues."""
    from matplotlib.colors import hsv_to_rgb, to_hex

    steps = np.linspace(start, end, count) % 1.0
    return [to_hex(tuple(hsv_to_rgb((hue, 0.55 if index % 2 else 0.85, 1.0 if index % 2 else 0.82)))) for index, hue in enumerate(steps)]


def _heading(name: str, masks: NDArray[Any], truth: NDArray[Any] | None) -> str:
    if truth is None:
        return name
    mean = defined_mean(dice(mask, reference) for mask, reference in zip(masks, truth, strict=True))
    return name if np.isnan(mean) else f"{name}\nDice {mean:.2f}"


def _foreground_box(image: NDArray[Any]) -> tuple[slice, ...]:
    """The box of what differs from the corner (the background), a little larger; the whole image where nothing does."""
    foreground = image != image[0, 0, 0]
    if not foreground.any():
        return tuple(slice(0, size) for size in image.shape)
    box = []
    for axis in range(3):
        occupied = np.flatnonzero(foreground.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(occupied[0]) - MARGIN_VOXELS), min(image.shape[axis], int(occupied[-1]) + 1 + MARGIN_VOXELS)))
    return tuple(box)


def _largest_section(mask: Any, box: tuple[slice, ...]) -> tuple[int, int, int]:
    """The index along each axis where the mask has the most voxels; the middle of the box where it has none."""
    if not mask.any():
        first, second, third = ((side.start + side.stop) // 2 for side in box)
        return first, second, third
    first, second, third = (int(mask.sum(axis=tuple(other for other in range(3) if other != axis)).argmax()) for axis in range(3))
    return first, second, third


def _cut(volume: NDArray[Any], plane: Plane, centre: tuple[int, int, int], box: tuple[slice, ...]) -> NDArray[Any]:
    """The slice as (rows, columns) with rows upwards, horizontally in the radiological order."""
    index: list[Any] = list(box)
    index[plane.normal] = centre[plane.normal]
    # What is left are the axes in order: (X, Y), (X, Z) or (Y, Z). X and Y both grow away from where the picture starts.
    flipped: NDArray[Any] = volume[tuple(index)][::-1].T
    return flipped


def _extent_mm(plane: Plane, box: tuple[slice, ...], spacing_mm: tuple[float, float, float]) -> tuple[float, float]:
    width, height = ((box[axis].stop - box[axis].start) * spacing_mm[axis] for axis in range(3) if axis != plane.normal)
    return width, height


def _window(image: NDArray[Any]) -> tuple[float, float]:
    foreground = image[image != image[0, 0, 0]]
    if foreground.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(foreground, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def _draw_image(axes: Axes, cut: NDArray[Any], extent_mm: tuple[float, float], window: tuple[float, float]) -> None:
    style.hide_frame(axes)
    axes.imshow(
        cut,
        cmap="gray",
        origin="lower",
        vmin=window[0],
        vmax=window[1],
        extent=(0, extent_mm[0], 0, extent_mm[1]),
        interpolation="bilinear",
    )


def _draw_masks(axes: Axes, masks: Sequence[NDArray[Any]], colours: Sequence[str], extent_mm: tuple[float, float]) -> None:
    from matplotlib.colors import to_rgb

    extent = (0.0, extent_mm[0], 0.0, extent_mm[1])
    for mask, colour in sorted(zip(masks, colours, strict=True), key=lambda pair: -int(np.count_nonzero(pair[0]))):
        if not mask.any():
            continue
        overlay = np.zeros((*mask.shape, 4), np.float32)
        overlay[mask != 0] = (*to_rgb(colour), FILL)
        axes.imshow(overlay, origin="lower", extent=extent, interpolation="nearest")
        # Padded, so that the outline closes where the mask touches the edge of the picture.
        step = extent_mm[0] / mask.shape[1], extent_mm[1] / mask.shape[0]
        across = (np.arange(-1, mask.shape[1] + 1) + 0.5) * step[0]
        up = (np.arange(-1, mask.shape[0] + 1) + 0.5) * step[1]
        axes.contour(across, up, np.pad(mask != 0, 1).astype(float), levels=[0.5], colors=[colour], linewidths=0.9)
    axes.set_xlim(0, extent_mm[0])
    axes.set_ylim(0, extent_mm[1])


def _letters(axes: Axes, plane: Plane) -> None:
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=2.0, foreground=NIGHT)]
    for x, y, text, side, height in (
        (0.03, 0.5, plane.left, "left", "center"),
        (0.97, 0.5, plane.right, "right", "center"),
        (0.03, 0.97, plane.name, "left", "top"),
    ):
        axes.text(x, y, text, transform=axes.transAxes, color=LIGHT, fontsize=8, ha=side, va=height, path_effects=outline)


def _legend(figure: Figure, colours: Mapping[str, str], title: str, across: int) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=(colour, FILL), edgecolor=colour, label=name) for name, colour in colours.items()]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=across, labelcolor=LIGHT)
    if title:
        figure.suptitle(title, color=LIGHT, fontsize=11, fontweight="bold")
