from __future__ import annotations

import numpy as np

from mergekit3d.plots.curves import curves_figure, plot_curves
from mergekit3d.plots.logs import TrainingLog


def log(epochs=4, regions=("ET", "WT"), **extra):
    numbers = np.arange(1, epochs + 1, dtype=float)
    columns = {"epoch": numbers, "train_loss": 1 / numbers, "validation_loss": 1.1 / numbers, "validation_dice": 1 - 1 / numbers}
    columns |= {f"validation_dice_{region}": 1 - 1 / numbers for region in regions} | {"learning_rate": np.full(epochs, 1e-3)}
    return TrainingLog(columns | extra)


def titles(figure):
    return [axes.get_title("left") for axes in figure.axes]


def test_one_run_shows_every_region_in_one_panel():
    """Loss, Dice (a line a region and the mean), learning rate."""
    figure = curves_figure({"train": log()})
    assert ["loss", "validation Dice", "learning rate"] == titles(figure)
    assert ["ET", "WT", "mean"] == [line.get_label() for line in figure.axes[1].lines]


def test_several_runs_are_overlaid_with_a_panel_a_region():
    """Each panel has a line a run, in that run's colour; runs may differ in length."""
    figure = curves_figure({"none": log(3), "imm": log(5)})
    assert ["loss", "validation Dice, mean of the regions", "validation Dice, ET", "validation Dice, WT", "learning rate"] == titles(figure)
    assert [3, 5] == [len(line.get_xdata()) for line in figure.axes[2].lines]
    assert ["none", "imm"] == [text.get_text() for text in figure.legends[0].get_texts()]


def test_an_adaptation_shows_the_path_of_its_ratios():
    """A line a layer of the first source's ratio."""
    paths = {f"ratio_encoder.{layer}_{source}": np.linspace(0.5, 0.1 * layer, 4) for layer in range(3) for source in ("m1", "m2")}
    for sources in (("m2",), ()):
        figure = curves_figure({"adapt": log(**paths)}, sources=sources)
        assert titles(figure)[-1] == f"ratio of {sources[0] if sources else 'm1'}, a line a layer"
        assert len(figure.axes[-1].lines) == 3


def test_a_run_without_validation_is_drawn(tmp_path):
    """Empty columns leave their panel with a word; a single epoch is a dot."""
    path = tmp_path / "log.csv"
    path.write_text("epoch,step,seconds,learning_rate,train_loss,validation_loss,validation_dice\n1,10,1.5,0.001,0.9,,\n")
    plot_curves([path], tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_fourteen_regions_get_their_legend_below():
    """A legend that would cover the curves stands under them."""
    figure = curves_figure({"train": log(regions=[f"class-{index}" for index in range(14)])})
    assert len(figure.legends[0].get_texts()) == 15


def test_regions_that_one_run_alone_has_get_no_panel():
    """Of runs on different tasks, the mean is what can be compared."""
    figure = curves_figure({"m1": log(regions=("csf", "gm")), "m2": log(regions=("gm", "wm")), "brats": log(regions=("ET",))})
    assert ["loss", "validation Dice, mean of the regions", "validation Dice, gm", "learning rate"] == titles(figure)


def test_panels_have_one_axis_of_epochs():
    """The longest run's, so that they can be read one above the other."""
    figure = curves_figure({"none": log(3), "imm": log(9)})
    assert 1 == len({axes.get_xlim() for axes in figure.axes})
    assert figure.axes[0].get_xlim()[1] > 9


def test_learning_rates_that_coincide_all_show():
    """A line under another one is wider."""
    widths = [line.get_linewidth() for line in curves_figure({"a": log(), "b": log(), "c": log()}).axes[-1].lines]
    assert widths == sorted(widths, reverse=True)
    assert 3 == len(set(widths))
