"""The path of the ratios, drawn from a log."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit3d.errors import InputError
from mergekit3d.plots.logs import TrainingLog
from mergekit3d.plots.path import MOST_PANELS, path_figure, plot_path


def log_of(layers, epochs=4, sources=("m1", "m2")):
    columns = {"epoch": np.arange(1.0, epochs + 1)}
    for layer in layers:
        for index, source in enumerate(sources):
            columns[f"ratio_{layer}_{source}"] = np.full(epochs, [0.25, 0.75][index])
    return TrainingLog(columns)


@pytest.mark.parametrize(("layers", "epochs"), [(1, 4), (7, 1), (26, 12)])
def test_a_panel_a_layer(layers, epochs):
    """In the network's order, each with a stacked area a source; a single epoch shows as well."""
    names = [f"encoder.{number}.conv" for number in range(layers)]
    figure = path_figure(log_of(names, epochs), ["m1", "m2"], title="timm")
    panels = [axes for axes in figure.axes if axes.get_visible()]

    assert names == [axes.get_title(loc="left") for axes in panels]
    assert all(2 == len(axes.collections) for axes in panels)


def test_a_very_deep_network_keeps_to_a_page():
    """The first and the last layer are there, and those between evenly."""
    figure = path_figure(log_of([f"layer{number}" for number in range(300)]), ["m1", "m2"])
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]

    assert MOST_PANELS == len(titles)
    assert ["layer0", "layer299"] == [titles[0], titles[-1]]


def test_a_log_without_ratios_is_refused(tmp_path):
    """A training has none."""
    with pytest.raises(InputError, match="no mixing ratios"):
        path_figure(TrainingLog({"epoch": np.arange(3.0)}), ["m1", "m2"])
    (tmp_path / "log.csv").write_text("epoch,ratio_a_m1,ratio_a_m2\n1,0.5,0.5\n2,0.4,0.6\n")
    plot_path(tmp_path / "log.csv", ["m1", "m2"], tmp_path / "path.svg")
    assert "<svg" in (tmp_path / "path.svg").read_text()
