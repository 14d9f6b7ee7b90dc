"""The files that evaluation leaves: metrics.csv (a row a subject and region) and summary.json (nnU-Net's keys)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from mergekit3d.errors import InputError
from mergekit3d.metrics import (
    CONVENTIONS,
    HD95_DEFINITION,
    NSD_DEFINITION,
    TOLERANCE_MM,
    Counts,
    SubjectMeasures,
    SubjectMetrics,
    check_convention,
    defined_mean,
    iou_of_counts,
)
from mergekit3d.paired import RESAMPLES, bootstrap_interval
from mergekit3d.storage.atomic import write_json, write_text
from mergekit3d.textfiles import read_csv

METRICS_COLUMNS = ("subject", "region", "dice", "hd95")
MORE_COLUMNS = ("nsd", "volume_pred_ml", "volume_ref_ml")
"""Columns of metrics.csv that are written beside those that every reader needs."""
BOOTSTRAP_SEED = 0
FIGURES = {"Dice": "dice", "HD95": "hd95", "NSD": "nsd"}
"""Names of the measures in summary.json, and in rows."""


def write_metrics_csv(path: Path, rows: Iterable[SubjectMetrics]) -> None:
    """Write metrics.csv: `METRICS_COLUMNS`, then `MORE_COLUMNS`; numbers in full precision, ``nan`` where undefined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = (*METRICS_COLUMNS[2:], *MORE_COLUMNS)
    writer.writerow((*METRICS_COLUMNS, *MORE_COLUMNS))
    writer.writerows((row.subject, row.region, *(repr(float(getattr(row, figure))) for figure in figures)) for row in rows)
    write_text(path, text.getvalue())


def read_metrics_csv(path: Path) -> list[SubjectMetrics]:
    """Read metrics.csv; columns beyond ours are passed over, an empty cell is NaN.

    Raises:
        InputError: no such file, not such a table, a value out of its range, or a subject and region twice.
    """
    rows: dict[tuple[str, str], SubjectMetrics] = {}
    for number, cells in read_csv(path, "the metrics", METRICS_COLUMNS):
        row = _row(f"{path}, line {number}", cells)
        if (row.subject, row.region) in rows:
            twice = f"subject {row.subject!r}, region {row.region!r} a second time"
            raise InputError("cannot read the metrics", where=f"{path}, line {number}", found=twice)
        rows[row.subject, row.region] = row
    if not rows:
        raise InputError("cannot read the metrics", where=path, wanted="a row a subject and region", found="a header alone")
    return list(rows.values())


def write_summary_json(
    path: Path, subjects: Sequence[SubjectMeasures], *, convention: str, tolerance_mm: float | Mapping[str, float] = TOLERANCE_MM
) -> dict[str, Any]:
    """Write summary.json with nnU-Net's keys, region names in place of label ids; its content, see `summary`."""
    content = summary(subjects, convention=convention, tolerance_mm=tolerance_mm)
    write_json(path, content)
    return content


def summary(
    subjects: Sequence[SubjectMeasures], *, convention: str, tolerance_mm: float | Mapping[str, float] = TOLERANCE_MM
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        subjects: what was measured.
        convention: the one that the measures were taken with; stated in the file.
        tolerance_mm: of the normalised surface Dice, likewise; for all regions or by region.

    Returns:
        ``foreground_mean``, ``mean`` by region and ``metric_per_case`` as nnU-Net writes them, plus HD95, NSD, volumes, intervals of
        the means and the definitions.
        Undefined numbers are None. Files are names, never folders.
    """
    check_convention(convention)
    cases = [
        {row.region: _measures(row, counts, convention) for row, counts in zip(subject.rows, subject.counts, strict=True)}
        for subject in subjects
    ]
    regions = dict.fromkeys(region for case in cases for region in case)
    mean = {region: _means([case[region] for case in cases if region in case]) for region in regions}
    content = {
        "foreground_mean": _means(list(mean.values())),
        "mean": mean,
        "metric_per_case": [
            {
                "metrics": case,
                "prediction_file": PurePath(subject.prediction_file).name,
                "reference_file": PurePath(subject.reference_file).name,
            }
            for case, subject in zip(cases, subjects, strict=True)
        ],
        "empty_regions": {"convention": convention, "meaning": CONVENTIONS[convention]},
        "hd95": HD95_DEFINITION,
        "nsd": {"tolerance_mm": dict(tolerance_mm) if isinstance(tolerance_mm, Mapping) else tolerance_mm, "meaning": NSD_DEFINITION},
        "interval_95": {
            "meaning": f"percentile bootstrap of the mean over the subjects where it is defined, {RESAMPLES} resamples, seed "
            f"{BOOTSTRAP_SEED}; foreground_mean: of the mean of each subject's regions; foreground_mean and mean: of Dice",
            **_intervals_of([row for subject in subjects for row in subject.rows]),
        },
    }
    without_nan = _nan_as_none(content)
    assert isinstance(without_nan, dict)
    return without_nan


def intervals_of(rows: Sequence[SubjectMetrics], figure: str = "dice") -> dict[str, Any]:
    """95 % bootstrap intervals of the mean of a measure.

    Args:
        rows: one a subject and region; undefined ones are left out.
        figure: dice, hd95 or nsd.

    Returns:
        ``foreground_mean``: (low, high); ``mean``: the same by region. NaN with fewer than 2 subjects.
    """
    by_region: dict[str, list[float]] = {row.region: [] for row in rows}
    by_subject: dict[str, list[float]] = {}
    for row in rows:
        value = float(getattr(row, figure))
        if not math.isnan(value):
            by_region[row.region].append(value)
            by_subject.setdefault(row.subject, []).append(value)
    of_subjects = [defined_mean(values) for values in by_subject.values()]
    return {
        "foreground_mean": list(_interval(of_subjects)),
        "mean": {region: list(_interval(values)) for region, values in by_region.items()},
    }


def _intervals_of(rows: Sequence[SubjectMetrics]) -> dict[str, Any]:
    """Those of every measure by its name; those of Dice stand outside too, where they always were."""
    by_name = {name: intervals_of(rows, figure) for name, figure in FIGURES.items()}
    return {**by_name["Dice"], **by_name}


def _interval(values: Sequence[float]) -> tuple[float, float]:
    return bootstrap_interval(np.asarray(values), np.random.default_rng(BOOTSTRAP_SEED))


def _measures(row: SubjectMetrics, counts: Counts, convention: str) -> dict[str, float]:
    return {
        "Dice": row.dice,
        "HD95": row.hd95,
        "NSD": row.nsd,
        "volume_pred_ml": row.volume_pred_ml,
        "volume_ref_ml": row.volume_ref_ml,
        "IoU": iou_of_counts(counts, convention),
        "TP": counts.true_positives,
        "FP": counts.false_positives,
        "FN": counts.false_negatives,
        "TN": counts.true_negatives,
        "n_pred": counts.predicted,
        "n_ref": counts.reference,
    }


def _means(cases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: defined_mean(case[key] for case in cases) for key in (cases[0] if cases else ())}


def _nan_as_none(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _nan_as_none(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_nan_as_none(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _row(where: str, cells: Mapping[str, str]) -> SubjectMetrics:
    if not cells["subject"] or not cells["region"]:
        raise InputError("cannot read the metrics", where=where, wanted="a subject and a region", found="an empty cell")
    values = {}
    for column, wanted, largest in (("dice", "a number from 0 to 1, or nan", 1.0), ("hd95", "mm, or nan", math.inf)):
        try:
            value = float(cells[column] or "nan")
        except ValueError:
            value = -1.0
        if value < 0 or value > largest:
            raise InputError("cannot read the metrics", where=f"{where}, column {column}", wanted=wanted, found=repr(cells[column]))
        values[column] = value
    return SubjectMetrics(cells["subject"], cells["region"], values["dice"], values["hd95"])
