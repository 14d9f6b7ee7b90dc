from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb

from mergekit3d.plots.slices import legend_columns, output_colours, slices_figure


def subject():
    """A head of 1s in a 12 x 14 x 10 volume with a lesion in its right, anterior, superior corner, largest at (8, 9, 6)."""
    image = np.zeros((12, 14, 10), np.float32)
    image[2:10, 2:12, 1:9] = 1.0
    lesion = np.zeros((1, *image.shape), bool)
    lesion[0, 7:10, 8:11, 5:8] = True
    lesion[0, 8, 9, 6] = True
    image[lesion[0]] = 2.0
    return image, lesion


def pictures(figure):
    """The grey picture of every panel, rows from bottom to top, by position."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_columns_are_image_truth_and_predictions_with_their_dice():
    """The headings of the first row; Dice is of the whole volume."""
    image, lesion = subject()
    shifted = np.roll(lesion, 1, axis=1)
    figure = slices_figure(image, lesion, {"IMM": lesion, "none": shifted}, ["ET"])
    assert ["image", "truth", "IMM\nDice 1.00", "none\nDice 0.67"] == [axes.get_title() for axes in figure.axes[:4]]
    assert len(figure.axes) == 12


def test_the_view_is_radiological():
    """The patient's right is on the left (axial, coronal), anterior on the left (sagittal), superior is up; letters say so."""
    image, lesion = subject()
    figure = slices_figure(image, lesion, {}, ["ET"])
    axial, coronal, sagittal = pictures(figure)[::2]
    for picture in (axial, coronal, sagittal):
        rows, columns = np.nonzero(picture == 2)
        assert rows.mean() > (picture.shape[0] - 1) / 2
        assert columns.mean() < (picture.shape[1] - 1) / 2
    assert ["R", "L", "axial", "R", "L", "coronal", "A", "P", "sagittal"] == [
        text.get_text() for axes in figure.axes for text in axes.texts
    ]


def test_pixels_have_the_shape_of_the_voxels():
    """Anisotropic voxels are drawn at their size in mm."""
    image, lesion = subject()
    axial = slices_figure(image, lesion, {}, ["ET"], spacing_mm=(1.0, 2.0, 5.0)).axes[0].images[0]
    # The head of 8 x 10 voxels with a margin of up to 3 voxels that the volume allows: 12 x 14.
    assert list(axial.get_extent()) == pytest.approx([0, 12, 0, 28])


def test_empty_masks_and_missing_truth_are_drawn():
    """Nothing predicted, or nothing known, is no error."""
    image, lesion = subject()
    slices_figure(image, None, {"none": np.zeros_like(lesion)}, ["ET"])
    slices_figure(np.zeros_like(image), np.zeros_like(lesion), {}, ["ET"])


def test_nested_regions_get_colours_by_size():
    """The largest is drawn first, so that it does not cover what lies inside; its colour does not depend on the order of outputs."""
    masks = np.zeros((3, 4, 4, 4), bool)
    masks[0, 0, 0, 0] = masks[1, 0, 0] = masks[2, 0] = True
    forth = output_colours(["ET", "TC", "WT"], masks)
    back = output_colours(["WT", "TC", "ET"], masks[::-1])
    assert forth == back
    assert len(set(forth.values())) == 3


def test_two_tasks_have_two_families_of_colours():
    """Cool hues for the first, warm ones for the second, all different."""
    tasks = [[f"a{index}" for index in range(7)], [f"b{index}" for index in range(7)]]
    colours = output_colours([*tasks[0], *tasks[1]], np.zeros((14, 1, 1, 1)), tasks)
    hues = {name: rgb_to_hsv(to_rgb(colour))[0] for name, colour in colours.items()}
    assert len(set(colours.values())) == 14
    assert all(0.45 < hues[name] < 0.82 for name in tasks[0])
    assert all(hues[name] < 0.2 or hues[name] > 0.94 for name in tasks[1])


def test_legend_has_no_more_columns_than_fit():
    """Long names under a narrow picture stand in several rows."""
    assert 3 == legend_columns(["ET", "TC", "WT"], 5.7)
    assert 1 < legend_columns([f"cerebellum-wm-{index}" for index in range(14)], 5.7) < 5
    assert 1 == legend_columns(["a" * 200], 5.7)
    image, lesion = subject()
    names = [f"a-long-name-{index}" for index in range(9)]
    figure = slices_figure(image, np.repeat(lesion, 9, axis=0), {}, names)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0
    assert box.x1 <= figure.bbox.x1
