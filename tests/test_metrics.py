from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from mergekit3d.errors import InputError, UsageError
from mergekit3d.metrics import (
    MISSED_HD95_MM,
    Counts,
    SubjectMetrics,
    count_voxels,
    dice,
    hd95,
    iou_of_counts,
    mean_over_regions,
    means_by_region,
    measure_subject,
    nsd,
)

NAN = math.nan


def cube(start, size, shape=(12, 12, 12)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))] = True
    return mask


def brute_force_hd95(prediction, truth, spacing_mm):
    """The definition, over all pairs of surface voxels."""

    def surface(mask):
        padded = np.pad(mask, 1)
        neighbours = [np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] for axis, step in itertools.product(range(3), (-1, 1))]
        return np.argwhere(mask & ~np.all(neighbours, axis=0)) * np.asarray(spacing_mm)

    distances = np.linalg.norm(surface(prediction)[:, None] - surface(truth)[None], axis=-1)
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


def test_dice_of_half_overlapping_cubes_is_one_half():
    """Two cubes of 64 voxels that share 32 have Dice 2 * 32 / 128."""
    assert dice(cube((2, 2, 2), (4, 4, 4)), cube((4, 2, 2), (4, 4, 4))) == 0.5


def test_counts_tell_every_voxel_once():
    """The four counts sum to the volume, and give IoU 32 / 96."""
    counts = count_voxels(cube((2, 2, 2), (4, 4, 4)), cube((4, 2, 2), (4, 4, 4)))
    assert counts == Counts(32, 32, 32, 12**3 - 96)
    assert (counts.predicted, counts.reference) == (64, 64)
    assert iou_of_counts(counts) == 1 / 3


def test_hd95_of_a_shifted_cube_is_the_shift_in_mm():
    """A plate moved by 3 voxels of 2 mm lies 6 mm from the truth."""
    truth, prediction = cube((2, 2, 2), (1, 5, 5)), cube((5, 2, 2), (1, 5, 5))
    assert hd95(prediction, truth, (2.0, 1.0, 1.0)) == 6.0
    assert hd95(truth, truth, (2.0, 1.0, 1.0)) == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_hd95_equals_its_definition_on_random_masks(seed):
    """The k-d tree gives what all pairs of surface voxels give, at any spacing, also where masks touch the border."""
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(4, 11, size=3))
    prediction, truth = (generator.random((2, *shape)) > generator.uniform(0.3, 0.8, size=(2, 1, 1, 1))).astype(bool)
    spacing_mm = tuple(generator.uniform(0.5, 3.0, size=3))
    assert hd95(prediction, truth, spacing_mm) == pytest.approx(brute_force_hd95(prediction, truth, spacing_mm), abs=1e-9)


def test_hd95_does_not_depend_on_the_order_of_the_masks():
    """The larger of the two directions is taken."""
    small, large = cube((5, 5, 5), (1, 1, 1)), cube((1, 1, 1), (10, 10, 10))
    assert hd95(small, large, (1, 1, 1)) == hd95(large, small, (1, 1, 1))


def test_surface_dice_of_a_shifted_cube_depends_on_the_tolerance():
    """A plate of 25 voxels, all of them surface, moved by 2 mm: nothing within 1 mm, all of it within 2."""
    truth, prediction = cube((2, 2, 2), (1, 5, 5)), cube((3, 2, 2), (1, 5, 5))
    found = [nsd(prediction, truth, (2.0, 1.0, 1.0), tolerance_mm=tolerance_mm) for tolerance_mm in (0.0, 1.0, 1.99, 2.0)]
    assert [0.0, 0.0, 0.0, 1.0] == found
    assert 1.0 == nsd(truth, truth, (2.0, 1.0, 1.0), tolerance_mm=0.0)


@pytest.mark.parametrize("seed", range(4))
def test_surface_distances_give_what_monai_computes(seed):
    """HD95 and normalised surface Dice, at any spacing."""
    metrics = pytest.importorskip("monai.metrics")
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(2, 14, 12, 10))
    smooth = noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + np.roll(noise, 1, 3)
    prediction, truth = smooth > generator.uniform(-0.5, 1.5, size=(2, 1, 1, 1))
    spacing_mm = tuple(float(value) for value in generator.uniform(0.5, 3.0, size=3))
    tensors = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (prediction, truth)]

    for tolerance_mm in (0.7, 1.5):
        wanted = metrics.compute_surface_dice(*tensors, [tolerance_mm], include_background=True, spacing=spacing_mm)
        assert float(wanted) == pytest.approx(nsd(prediction, truth, spacing_mm, tolerance_mm=tolerance_mm), abs=1e-6)
    wanted = metrics.compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing_mm)
    assert float(wanted) == pytest.approx(hd95(prediction, truth, spacing_mm), rel=1e-5)


@pytest.mark.parametrize(
    ("convention", "both", "one"),
    [("nnunet", (NAN, NAN, NAN), (0.0, NAN, 0.0)), ("brats", (1.0, 0.0, 1.0), (0.0, MISSED_HD95_MM, 0.0))],
)
def test_conventions_for_empty_regions(convention, both, one):
    """nnU-Net leaves an absent region out; BraTS gives 1 and 0 mm, and 373.13 mm to a missed one."""
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    for expected, prediction, truth in ((both, empty, empty), (one, full, empty), (one, empty, full)):
        (row,) = measure_subject("a", {"ET": prediction}, {"ET": truth}, (1, 1, 1), convention=convention).rows
        measured = (
            dice(prediction, truth, convention=convention),
            hd95(prediction, truth, (1, 1, 1), convention=convention),
            nsd(prediction, truth, (1, 1, 1), convention=convention),
        )
        assert measured == pytest.approx((row.dice, row.hd95, row.nsd), nan_ok=True)
        assert measured == pytest.approx(expected, nan_ok=True)


def test_unknown_convention_suggests_the_nearest():
    """A misspelt convention is named with the one that was meant."""
    with pytest.raises(UsageError, match=r"unknown convention for empty regions 'nnunets'; did you mean 'nnunet'\?"):
        measure_subject("a", {}, {}, (1, 1, 1), convention="nnunets")


def test_measure_subject_goes_by_the_truths_regions():
    """A row a region of the truth, with its counts and the files' names."""
    truth = {"ET": cube((2, 2, 2), (4, 4, 4)), "WT": cube((1, 1, 1), (6, 6, 6))}
    measured = measure_subject("a", {"WT": truth["WT"], "ET": cube((4, 2, 2), (4, 4, 4))}, truth, (1, 1, 1), files=("p.nii.gz", "t.nii.gz"))
    et, wt = measured.rows
    assert ("a", "ET", 0.5, 2.0, 0.064, 0.064) == (et.subject, et.region, et.dice, et.hd95, et.volume_pred_ml, et.volume_ref_ml)
    assert SubjectMetrics("a", "WT", 1.0, 0.0, 1.0, 0.216, 0.216) == wt
    assert measured.counts[1].false_positives == 0
    assert (measured.prediction_file, measured.reference_file) == ("p.nii.gz", "t.nii.gz")


def test_measure_subject_refuses_other_shapes_and_missing_regions():
    """The subject and both shapes, or the region, are named."""
    truth = {"ET": cube((2, 2, 2), (4, 4, 4))}
    with pytest.raises(InputError, match=r"differ in shape: subject a: wanted shape \(12, 12, 12\), found shape \(6, 6, 6\)"):
        measure_subject("a", {"ET": np.zeros((6, 6, 6))}, truth, (1, 1, 1))
    with pytest.raises(InputError, match="the prediction lacks a region of the truth: subject a: wanted ET"):
        measure_subject("a", {}, truth, (1, 1, 1))


def test_means_leave_undefined_values_out():
    """A region's mean is over the subjects that have it; the foreground mean is the mean of the regions' means."""
    rows = [SubjectMetrics("a", "ET", NAN, NAN), SubjectMetrics("b", "ET", 0.5, 4.0)]
    rows += [SubjectMetrics("a", "WT", 0.8, 2.0), SubjectMetrics("b", "WT", 1.0, NAN)]
    means = means_by_region(rows)
    assert (means["ET"].dice, means["ET"].hd95, means["ET"].subjects) == (0.5, 4.0, 1)
    assert (means["WT"].dice, means["WT"].hd95, means["WT"].subjects) == (0.9, 2.0, 2)
    assert mean_over_regions(rows).dice == pytest.approx(0.7)
    assert math.isnan(mean_over_regions([]).dice)
