"""How well a segmentation agrees with the truth: Dice and the 95th percentile of the Hausdorff distance, region by region.

Two conventions for empty regions, because the field has two. ``nnunet``: a region empty in both is NaN and left out of means; empty
in one has Dice 0 and no distance (NaN, left out). ``brats``: empty in both is Dice 1 and HD95 0; empty in one is Dice 0 and HD95
373.13 mm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit3d.errors import InputError, UsageError
from mergekit3d.registry import did_you_mean

Mask = NDArray[Any]

CONVENTIONS: Mapping[str, str] = {
    "nnunet": "a region empty in prediction and truth: NaN, left out of means; empty in one of them: Dice 0, HD95 NaN, left out of means",
    "brats": "a region empty in prediction and truth: Dice 1, HD95 0; empty in one of them: Dice 0, HD95 373.13 mm",
}
"""What each convention does with an empty region, in words for outputs."""

HD95_DEFINITION = (
    "the larger of the two 95th percentiles of the distances, in mm, from the surface of either mask to that of the other; "
    "the surface: voxels with one of their six neighbours outside"
)

MISSED_HD95_MM = 373.13
"""HD95 of a missed or an invented region under ``brats``: the diagonal of the 240 x 240 x 155 mm image of BraTS."""


@dataclass(frozen=True)
class SubjectMetrics:
    """One row of metrics.csv: a region of a subject.

    Args:
        subject: name of the subject.
        region: name of the region or class.
        dice: 0 to 1, or NaN where undefined.
        hd95: mm, or NaN where undefined.
    """

    subject: str
    region: str
    dice: float
    hd95: float


@dataclass(frozen=True)
class Counts:
    """Voxels of a region by agreement: in both, in the prediction only, in the truth only, in neither."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def predicted(self) -> int:
        """Voxels of the prediction."""
        return self.true_positives + self.false_positives

    @property
    def reference(self) -> int:
        """Voxels of the truth."""
        return self.true_positives + self.false_negatives


@dataclass(frozen=True)
class SubjectMeasures:
    """All that was measured on one subject.

    Args:
        subject: name of the subject.
        rows: one a region.
        counts: one a region, in the order of `rows`.
        prediction_file: name (no folder) of the prediction's file, where there is one.
        reference_file: name (no folder) of the truth's file.
    """

    subject: str
    rows: tuple[SubjectMetrics, ...]
    counts: tuple[Counts, ...]
    prediction_file: str = ""
    reference_file: str = ""


@dataclass(frozen=True)
class RegionMeans:
    """Means of a region over the subjects where it is defined; NaN where it is so nowhere."""

    dice: float
    hd95: float
    subjects: int


def check_convention(convention: str) -> str:
    """The convention itself.

    Raises:
        UsageError: there is none of that name.
    """
    if convention not in CONVENTIONS:
        raise UsageError(f"unknown convention for empty regions {convention!r}", todo=did_you_mean(convention, CONVENTIONS))
    return convention


def count_voxels(prediction: Mask, truth: Mask) -> Counts:
    """Voxels by agreement.

    Args:
        prediction: (X, Y, Z), true where not 0.
        truth: the same shape.
    """
    predicted, reference = np.asarray(prediction, bool), np.asarray(truth, bool)
    both = int(np.count_nonzero(predicted & reference))
    predicted_only = int(np.count_nonzero(predicted)) - both
    reference_only = int(np.count_nonzero(reference)) - both
    return Counts(both, predicted_only, reference_only, predicted.size - both - predicted_only - reference_only)


def dice(prediction: Mask, truth: Mask, *, convention: str = "nnunet") -> float:
    """Dice coefficient 2 |P and T| / (|P| + |T|) of two masks.

    Args:
        prediction: (X, Y, Z), true where not 0.
        truth: the same shape.
        convention: what two empty masks give: ``nnunet`` NaN, ``brats`` 1.
    """
    return dice_of_counts(count_voxels(prediction, truth), convention)


def dice_of_counts(counts: Counts, convention: str = "nnunet") -> float:
    """Dice coefficient from the voxel counts; see `dice`."""
    total = counts.predicted + counts.reference
    return 2 * counts.true_positives / total if total else _both_empty(convention)


def iou_of_counts(counts: Counts, convention: str = "nnunet") -> float:
    """Intersection over union from the voxel counts; two empty masks as in `dice`."""
    union = counts.true_positives + counts.false_positives + counts.false_negatives
    return counts.true_positives / union if union else _both_empty(convention)


def hd95(prediction: Mask, truth: Mask, spacing_mm: tuple[float, float, float], *, convention: str = "nnunet") -> float:
    """95th percentile of the symmetric Hausdorff distance of two masks, in mm.

    Args:
        prediction: (X, Y, Z), true where not 0.
        truth: the same shape.
        spacing_mm: size of a voxel along each axis.
        convention: what empty masks give: ``nnunet`` NaN, ``brats`` 0 (both) or 373.13 (one).

    Returns:
        The larger of the two directions' 95th percentiles.

    Source: as MONAI's ``compute_hausdorff_distance(percentile=95)`` and Metrics Reloaded (Maier-Hein et al., Nature Methods 2024);
    by a k-d tree over the surfaces instead of distance transforms.
    """
    predicted, reference = np.asarray(prediction, bool), np.asarray(truth, bool)
    box = _bounding_box(predicted | reference)
    if box is None:
        return math.nan if check_convention(convention) == "nnunet" else 0.0
    predicted, reference = predicted[box], reference[box]
    if not (predicted.any() and reference.any()):
        return math.nan if check_convention(convention) == "nnunet" else MISSED_HD95_MM
    surface, reference_surface = _surface(predicted), _surface(reference)
    forth = _distances_mm(surface, reference_surface, spacing_mm)
    back = _distances_mm(reference_surface, surface, spacing_mm)
    return float(max(np.percentile(forth, 95), np.percentile(back, 95)))


def measure_subject(
    subject: str,
    prediction: Mapping[str, Mask],
    truth: Mapping[str, Mask],
    spacing_mm: tuple[float, float, float],
    *,
    convention: str = "nnunet",
    files: tuple[str, str] = ("", ""),
) -> SubjectMeasures:
    """Dice, HD95 and voxel counts of every region of one subject.

    Args:
        subject: name of the subject.
        prediction: mask (X, Y, Z) by region.
        truth: mask of the same shape by region; its regions are the ones measured.
        spacing_mm: size of a voxel along each axis.
        convention: for empty regions, one of `CONVENTIONS`.
        files: names (no folder) of the prediction's and the truth's files.

    Raises:
        InputError: a region or the shape of the truth is not that of the prediction.
    """
    check_convention(convention)
    rows, counts = [], []
    for region, reference in truth.items():
        if region not in prediction:
            raise InputError("the prediction lacks a region of the truth", where=f"subject {subject}", wanted=region)
        if prediction[region].shape != reference.shape:
            shapes = {"wanted": f"shape {reference.shape}", "found": f"shape {prediction[region].shape}"}
            raise InputError("prediction and truth differ in shape", where=f"subject {subject}", **shapes)
        counted = count_voxels(prediction[region], reference)
        distance_mm = hd95(prediction[region], reference, spacing_mm, convention=convention)
        rows.append(SubjectMetrics(subject, region, dice_of_counts(counted, convention), distance_mm))
        counts.append(counted)
    return SubjectMeasures(subject, tuple(rows), tuple(counts), *files)


def means_by_region(rows: Iterable[SubjectMetrics]) -> dict[str, RegionMeans]:
    """Means over the subjects of every region, in the order of first appearance; NaN values are left out."""
    by_region: dict[str, list[SubjectMetrics]] = {}
    for row in rows:
        by_region.setdefault(row.region, []).append(row)
    return {
        region: RegionMeans(
            defined_mean(row.dice for row in of_region),
            defined_mean(row.hd95 for row in of_region),
            sum(not math.isnan(row.dice) for row in of_region),
        )
        for region, of_region in by_region.items()
    }


def mean_over_regions(rows: Iterable[SubjectMetrics]) -> RegionMeans:
    """The mean of the regions' means (nnU-Net's foreground mean), the figure of the paper's Table 2."""
    means = means_by_region(rows).values()
    return RegionMeans(
        defined_mean(mean.dice for mean in means),
        defined_mean(mean.hd95 for mean in means),
        max((mean.subjects for mean in means), default=0),
    )


def defined_mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN where there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _both_empty(convention: str) -> float:
    return math.nan if check_convention(convention) == "nnunet" else 1.0


def _bounding_box(mask: Mask) -> tuple[slice, ...] | None:
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        if occupied.size == 0:
            return None
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


def _surface(mask: Mask) -> Mask:
    from scipy import ndimage

    # Outside the box, as outside the image, counts as background.
    surface: Mask = mask & ~ndimage.binary_erosion(mask)
    return surface


def _distances_mm(start: Mask, goal: Mask, spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Distance of every voxel of `start` to the nearest of `goal`; voxels in both are 0 without a search."""
    from scipy.spatial import KDTree

    distances = np.zeros(int(np.count_nonzero(start)))
    apart = start & ~goal
    if apart.any():
        tree = KDTree(np.argwhere(goal) * np.asarray(spacing_mm))
        found, _ = tree.query(np.argwhere(apart) * np.asarray(spacing_mm))
        distances[: found.size] = found
    return distances
