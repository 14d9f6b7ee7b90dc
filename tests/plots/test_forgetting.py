"""Table 4 as a picture."""

from __future__ import annotations

import math

from mergekit3d.plots.forgetting import forgetting_figure


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_number_a_cell_and_the_mean_of_the_tasks():
    """What is undefined is a dash, and left out of the mean."""
    figure = forgetting_figure(["m1", "imm"], ["m1", "m2"], [[0.9, 0.1], [0.5, math.nan]])

    assert ["0.90", "0.10", "0.50", "0.50", "–", "0.50"] == texts(figure)
    assert ["task of m1", "task of m2", "mean"] == [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_one_task_has_no_mean():
    """It would be said twice."""
    assert ["0.90", "0.50"] == texts(forgetting_figure(["m1", "imm"], ["m1"], [[0.9], [0.5]]))


def test_numbers_can_be_read_on_dark_and_light_cells():
    """White on dark blue, ink on light blue."""
    colours = [text.get_color() for text in forgetting_figure(["a"], ["m1", "m2"], [[0.99, 0.05]]).axes[0].texts]

    assert colours[0] != colours[1]
