"""How well a segmentation agrees with the truth: Dice, HD95, normalised surface Dice and volumes, region by region.

Two conventions for empty regions, because the field has two. ``nnunet``: a region empty in both is NaN and left out of means; empty
in one has Dice and surface Dice 0 and no distance (NaN, left out). ``brats``: empty in both is Dice and surface Dice 1 and HD95 0;
empty in one is Dice and surface Dice 0 and HD95 373.13 mm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit3d.errors import InputError, UsageError
from mergekit3d.registry import did_you_mean
from mergekit3d.surfaces import Mask, surface_distances

CONVENTIONS: Mapping[str, str] = {
    "nnunet": "a region empty in prediction and truth: NaN, left out of means; empty in one of them: Dice and NSD 0, HD95 NaN, left out of "
    "means",
    "brats": "a region empty in prediction and truth: Dice and NSD 1, HD95 0; empty in one of them: Dice and NSD 0, HD95 373.13 mm",
}
"""What each convention does with an empty region, in words for outputs."""

HD95_DEFINITION = (
    "the larger of the two 95th percentiles of the distances, in mm, from the surface of either mask to that of the other; "
    "the surface: voxels with one of their six neighbours outside"
)

NSD_DEFINITION = "the part of both surfaces that lies within the tolerance of the other; the surfaces are those of HD95"

TOLERANCE_MM = 1.0
"""Of the normalised surface Dice, where nobody says."""

REST = "*"
"""Stands for all other regions where tolerances are given by region."""

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
        nsd: normalised surface Dice, 0 to 1, or NaN where undefined or not measured.
        volume_pred_ml: volume of the prediction, or NaN where not measured.
        volume_ref_ml: volume of the truth, likewise.
    """

    subject: str
    region: str
    dice: float
    hd95: float
    nsd: float = math.nan
    volume_pred_ml: float = math.nan
    volume_ref_ml: float = math.nan


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
    nsd: float = math.nan


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
    return hd95_of_distances(*surface_distances(prediction, truth, spacing_mm), convention)


def hd95_of_distances(forth: NDArray[np.float64], back: NDArray[np.float64], convention: str = "nnunet") -> float:
    """HD95 from the distances of either surface to the other, in mm; see `hd95`."""
    if not (forth.size or back.size):
        return math.nan if check_convention(convention) == "nnunet" else 0.0
    if not (forth.size and back.size):
        return math.nan if check_convention(convention) == "nnunet" else MISSED_HD95_MM
    return float(max(np.percentile(forth, 95), np.percentile(back, 95)))


def nsd(
    prediction: Mask,
    truth: Mask,
    spacing_mm: tuple[float, float, float],
    *,
    tolerance_mm: float = TOLERANCE_MM,
    convention: str = "nnunet",
) -> float:
    """Normalised surface Dice of two masks: the part of both surfaces within a tolerance of the other.

    Args:
        prediction: (X, Y, Z), true where not 0.
        truth: the same shape.
        spacing_mm: size of a voxel along each axis.
        tolerance_mm: what counts as no difference.
        convention: what two empty masks give: ``nnunet`` NaN, ``brats`` 1; one empty mask is 0 in both.

    Source: Nikolov et al., "Clinically Applicable Segmentation of Head and Neck Anatomy", JMIR 2021; over voxels of the surfaces, as
    MONAI's ``compute_surface_dice``, where the original takes areas.
    """
    return nsd_of_distances(*surface_distances(prediction, truth, spacing_mm), tolerance_mm, convention)


def nsd_of_distances(forth: NDArray[np.float64], back: NDArray[np.float64], tolerance_mm: float, convention: str = "nnunet") -> float:
    """Normalised surface Dice from the distances of either surface to the other, in mm; see `nsd`."""
    if not (forth.size or back.size):
        return _both_empty(convention)
    within = np.count_nonzero(forth <= tolerance_mm) + np.count_nonzero(back <= tolerance_mm)
    return float(within / (forth.size + back.size))


def measure_subject(
    subject: str,
    prediction: Mapping[str, Mask],
    truth: Mapping[str, Mask],
    spacing_mm: tuple[float, float, float],
    *,
    convention: str = "nnunet",
    tolerance_mm: float | Mapping[str, float] = TOLERANCE_MM,
    files: tuple[str, str] = ("", ""),
) -> SubjectMeasures:
    """Dice, HD95, normalised surface Dice, volumes and voxel counts of every region of one subject.

    Args:
        subject: name of the subject.
        prediction: mask (X, Y, Z) by region.
        truth: mask of the same shape by region; its regions are the ones measured.
        spacing_mm: size of a voxel along each axis.
        convention: for empty regions, one of `CONVENTIONS`.
        tolerance_mm: of the normalised surface Dice, for all regions or by region.
        files: names (no folder) of the prediction's and the truth's files.

    Raises:
        InputError: a region or the shape of the truth is not that of the prediction.
    """
    check_convention(convention)
    tolerances = tolerances_mm(tolerance_mm, list(truth))
    voxel_ml = math.prod(spacing_mm) / 1000
    rows, counts = [], []
    for region, reference in truth.items():
        if region not in prediction:
            raise InputError("the prediction lacks a region of the truth", where=f"subject {subject}", wanted=region)
        if prediction[region].shape != reference.shape:
            shapes = {"wanted": f"shape {reference.shape}", "found": f"shape {prediction[region].shape}"}
            raise InputError("prediction and truth differ in shape", where=f"subject {subject}", **shapes)
        counted = count_voxels(prediction[region], reference)
        distances = surface_distances(prediction[region], reference, spacing_mm)
        figures = (
            dice_of_counts(counted, convention),
            hd95_of_distances(*distances, convention),
            nsd_of_distances(*distances, tolerances[region], convention),
        )
        rows.append(SubjectMetrics(subject, region, *figures, counted.predicted * voxel_ml, counted.reference * voxel_ml))
        counts.append(counted)
    return SubjectMeasures(subject, tuple(rows), tuple(counts), *files)


def tolerances_mm(given: float | Mapping[str, float], regions: Sequence[str]) -> dict[str, float]:
    """The tolerance of every region.

    Args:
        given: one for all, or by region, `REST` standing for all others, whose tolerance is `TOLERANCE_MM` else.
        regions: names.

    Raises:
        UsageError: a region that there is not, or a tolerance that is no length.
    """
    by_region = dict(given) if isinstance(given, Mapping) else {REST: given}
    for region, tolerance in by_region.items():
        if region not in (REST, *regions):
            todo = did_you_mean(region, regions)
            raise UsageError("a tolerance for an unknown region", where="--tolerance-mm", found=region, todo=todo)
        if not 0 <= tolerance < math.inf:
            raise UsageError("no such tolerance", where="--tolerance-mm", wanted="0 or more", found=tolerance)
    return {region: by_region.get(region, by_region.get(REST, TOLERANCE_MM)) for region in regions}


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
            defined_mean(row.nsd for row in of_region),
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
        defined_mean(mean.nsd for mean in means),
    )


def defined_mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN where there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _both_empty(convention: str) -> float:
    return math.nan if check_convention(convention) == "nnunet" else 1.0
