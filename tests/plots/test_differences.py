from __future__ import annotations

from mergekit3d.comparison import compare_rows
from mergekit3d.metrics import SubjectMetrics
from mergekit3d.plots.dice import DiceSample, dice_figure
from mergekit3d.plots.differences import differences_figure


def rows(*dice):
    return [SubjectMetrics(f"s{index}", "ET", value, 1.0) for index, value in enumerate(dice)]


def heights(axes):
    return [round(bar.get_height(), 6) for bar in axes.patches]


def test_subjects_are_sorted_by_the_firsts_dice():
    """Bars of every panel follow that order; the Dice itself rises below."""
    figure = differences_figure(compare_rows({"timm": rows(0.9, 0.3, 0.6), "imm": rows(0.8, 0.4, 0.6), "none": rows(0.1, 0.1, 0.1)}))
    imm, none, dice, _ = figure.axes
    assert heights(imm) == [-0.1, 0.0, 0.1]
    assert heights(none) == [0.2, 0.5, 0.8]
    assert heights(dice) == [0.3, 0.6, 0.9]
    assert (imm.get_title("left"), none.get_title("left")) == ("timm - imm", "timm - none")
    assert imm.get_ylim() == none.get_ylim()


def test_gains_and_losses_differ_in_colour():
    """The sign can be told without reading the axis."""
    figure = differences_figure(compare_rows({"timm": rows(0.9, 0.3), "imm": rows(0.8, 0.4)}))
    loss, gain = figure.axes[0].patches
    assert loss.get_facecolor() != gain.get_facecolor()


def test_dice_figure_has_a_dot_a_subject_in_each_group():
    """A panel a group; methods that a group lacks leave their row empty."""
    sample = DiceSample([0.2, 0.4, 0.6], 0.4, (0.3, 0.5))
    figure = dice_figure({"4 %": {"none": sample, "imm": sample}, "8 %": {"imm": sample}})
    first, second = figure.axes
    assert [3, 1, 3, 1] == [len(dots.get_offsets()) for dots in first.collections]
    assert [3, 1] == [len(dots.get_offsets()) for dots in second.collections]
    assert ["none", "imm"] == [label.get_text() for label in first.get_yticklabels()]
