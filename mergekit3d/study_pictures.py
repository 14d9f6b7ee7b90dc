"""Slices of one test subject: the truth beside the predictions of every arm (Figure 3 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mergekit3d.datasets.prepare import subject_labels
from mergekit3d.datasets.reading import read_subject
from mergekit3d.options import Options
from mergekit3d.plan.target import open_cohort
from mergekit3d.progress import Reporter
from mergekit3d.reporting.results import display_name
from mergekit3d.summaries import read_metrics_csv
from mergekit3d.volumes.orientation import spacing_of

if TYPE_CHECKING:
    from mergekit3d.study import Arm

SHOWN_MODALITIES = ("flair", "t2", "t1ce", "t1")
"""The first of these that the task has lies behind the masks: tumours show best in FLAIR."""


def write_slices(group: Sequence[Arm], out: Path, *, options: Options, reporter: Reporter) -> None:
    """Draw the test subject whose mean Dice over the arms is the median: neither the best case nor the worst.

    Args:
        group: arms of one size and seed.
        out: PNG or SVG.
        options: device and precision.
        reporter: where progress goes.
    """
    from mergekit3d.plots.slices import slices_figure
    from mergekit3d.plots.style import save_figure
    from mergekit3d.prediction import inference_of, load_predictor, open_subjects, truth_of

    cohort = open_cohort(group[0].loaded, group[0].loaded.recipe.target)
    name = _median_subject([arm.metrics for arm in group])
    subject = next(subject for subject in cohort.subjects("test") if subject.name == name)
    prepared = next(iter(open_subjects(cohort.dataset, [subject], cohort.task, reporter, with_target=True)))
    labels = subject_labels(subject, cohort.task.outputs, cohort.dataset.vocabulary)
    predictions = {}
    for arm in group:
        predictor = load_predictor(arm.checkpoint, options, **inference_of(arm.loaded.recipe.predict))
        predictions[display_name(arm.initialisation)] = np.stack(list(predictor.masks(prepared).values()))
    modality = next((modality for modality in SHOWN_MODALITIES if modality in cohort.task.modalities), cohort.task.modalities[0])
    figure = slices_figure(
        read_subject(subject, [modality], str)[modality].data,
        np.stack(list(truth_of(labels.data, cohort.task).values())),
        predictions,
        list(cohort.task.outputs),
        spacing_mm=spacing_of(labels.affine),
    )
    save_figure(figure, out)


def _median_subject(tables: Sequence[Path]) -> str:
    by_subject: dict[str, list[float]] = {}
    for table in tables:
        for row in read_metrics_csv(table):
            by_subject.setdefault(row.subject, []).append(row.dice)
    ranked = sorted(by_subject, key=lambda subject: (np.nan_to_num(np.nanmean(by_subject[subject])), subject))
    return ranked[len(ranked) // 2]
