"""Which model knows what: the Fisher information of every layer, of several models side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit3d.errors import InputError
from mergekit3d.plots import style
from mergekit3d.plots.ratios import colour_patch, part_of, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mergekit3d.checkpoints import Checkpoint

ROW_IN = 0.185
LEAST = 1e-12
"""Of a layer's information beside the largest: what lies below is no point of the logarithmic panel."""


@dataclass(frozen=True)
class Information:
    """What one Fisher file holds of one layer.

    Args:
        trace: sum over its parameters.
        parameters: how many those are.
        standard_error: of the trace; None where the file does not say.
    """

    trace: float
    parameters: int
    standard_error: float | None = None


Sidecars = Mapping[str, Mapping[str, Information]]
"""Information by model and layer, layers in the network's order."""


def information_of(fisher: Checkpoint) -> dict[str, Information]:
    """The information of every layer of a Fisher file.

    Raises:
        InputError: it is a checkpoint, holds values that are none, or nothing at all.
    """
    import numpy as np

    from mergekit3d.checkpoints import FISHER
    from mergekit3d.merging.partitions import layer_of

    if fisher.metadata is None or fisher.metadata.kind != FISHER:
        todo = "run `mergekit3d fisher` on it and plot what that writes"
        raise InputError("not a Fisher diagonal", where=fisher.path, found="a checkpoint", todo=todo)
    traces: dict[str, float] = {}
    parameters: dict[str, int] = {}
    for name in fisher.owners:
        values, layer = fisher.read(name), layer_of(name)
        trace = float(np.sum(values, dtype=np.float64))
        if not math.isfinite(trace) or np.any(values < 0):
            raise InputError("a Fisher diagonal is finite and not negative", where=f"{fisher.path}: {name}", todo="compute it again")
        traces[layer], parameters[layer] = traces.get(layer, 0.0) + trace, parameters.get(layer, 0) + values.size
    if not sum(traces.values()) > 0:
        raise InputError("no information to draw", where=fisher.path, found="zeros alone")
    told = fisher.metadata.provenance.get("trace_by_layer", {})
    errors = {layer: figures[1] for layer, figures in told.items()}
    return {layer: Information(trace, parameters[layer], errors.get(layer)) for layer, trace in traces.items()}


@style.styled()
def fisher_figure(sidecars: Sidecars, *, title: str = "") -> Figure:
    """A row a layer in the network's order. Left, each model's share of it; right, the mean information of a parameter.

    For the shares each file is divided by its own trace: models differ in scale by orders of magnitude. Of a single file, the left
    panel shows how its information is spread over the layers. Lines of the right panel are one standard error over subjects.

    Args:
        sidecars: information by model and layer; a layer that a model lacks (another head) has none of it.
        title: above the figure.
    """
    layers = _in_order(sidecars)
    names = short_names(layers)
    longest = max(len(name) for name in names.values())
    figure = style.new_figure(5.6 + 0.075 * longest, 1.5 + ROW_IN * max(len(layers), 3))
    shares, means = figure.subplots(1, 2, sharey=True)
    for axes in (shares, means):
        axes.grid(visible=False, axis="y")
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    _draw_shares(shares, sidecars, layers)
    _draw_means(means, sidecars, layers)
    shares.set_yticks(range(len(layers)), [names[layer] for layer in layers], color=style.INK, fontsize=7.5)
    shares.set_ylim(len(layers) - 0.4, -0.6)
    for index in range(1, len(layers)):
        if part_of(layers[index]) != part_of(layers[index - 1]):
            for axes in (shares, means):
                axes.axhline(index - 0.5, color=style.MUTED, linewidth=0.8)
    handles = [colour_patch(colour, name) for name, colour in style.colours(list(sidecars)).items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=min(len(handles), 6))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def plot_fisher(sidecars: Sidecars, out: Path) -> None:
    """Write `fisher_figure` to `out`, PNG or SVG by its ending."""
    style.save_figure(fisher_figure(sidecars), out)


def _in_order(sidecars: Sidecars) -> list[str]:
    """The layers of all models: the first one's, and what only others have, each after the layer that it follows there."""
    layers: list[str] = []
    for model in sidecars.values():
        place = 0
        for layer in model:
            if layer not in layers:
                layers.insert(place, layer)
            place = layers.index(layer) + 1
    return layers


def _draw_shares(axes: Axes, sidecars: Sidecars, layers: Sequence[str]) -> None:
    parts = {name: _parts(model) for name, model in sidecars.items()}
    alone = len(parts) == 1
    axes.set_title("share of the trace" if alone else "whose information, at equal traces")
    totals = [math.fsum(part.get(layer, 0.0) for part in parts.values()) for layer in layers]
    starts = [0.0] * len(layers)
    for name, colour in style.colours(list(parts)).items():
        known = [parts[name].get(layer, 0.0) for layer in layers]
        lengths = known if alone else [part / total if total else 0.0 for part, total in zip(known, totals, strict=True)]
        axes.barh(range(len(layers)), lengths, left=starts, height=0.78, color=colour, linewidth=0)
        starts = [start + length for start, length in zip(starts, lengths, strict=True)]
    axes.set_xlim(0, None if alone else 1)
    axes.locator_params(axis="x", nbins=5)


def _parts(model: Mapping[str, Information]) -> dict[str, float]:
    """Each layer's part of the trace."""
    trace = math.fsum(layer.trace for layer in model.values())
    return {name: layer.trace / trace for name, layer in model.items()}


def _draw_means(axes: Axes, sidecars: Sidecars, layers: Sequence[str]) -> None:
    axes.set_title("log10 of the mean F of a parameter")
    colours = style.colours(list(sidecars))
    for number, (name, model) in enumerate(sidecars.items()):
        least = LEAST * max(layer.trace / layer.parameters for layer in model.values())
        # Beside one another, so that models that agree can be told apart.
        offset = 0.0 if len(sidecars) == 1 else 0.5 * (number / (len(sidecars) - 1) - 0.5)
        for row, layer in enumerate(layers):
            known = model.get(layer)
            if known is None or known.trace / known.parameters <= least:
                continue
            mean, relative = math.log10(known.trace / known.parameters), (known.standard_error or 0.0) / known.trace
            if relative:
                # An error of 100 % or more reaches to nothing; the line ends after a decade.
                lower = max(-1.0, math.log10(1 - relative)) if relative < 1 else -1.0
                ends = [mean + lower, mean + math.log10(1 + relative)]
                axes.plot(ends, [row + offset] * 2, color=colours[name], linewidth=1.2, alpha=0.55, solid_capstyle="butt")
                axes.set_xlabel("lines: one standard error over subjects")
            axes.scatter([mean], [row + offset], s=11, color=colours[name], linewidth=0, zorder=3)
