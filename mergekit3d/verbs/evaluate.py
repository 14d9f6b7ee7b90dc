"""``mergekit3d evaluate``: Dice, HD95, surface Dice and volumes of every subject and region."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.checkpoints import TaskSpec
from mergekit3d.datasets import Dataset, find_dataset, select
from mergekit3d.datasets.find import named, part_of
from mergekit3d.datasets.labels import output_set
from mergekit3d.errors import InputError, UsageError
from mergekit3d.metrics import (
    CONVENTIONS,
    TOLERANCE_MM,
    SubjectMeasures,
    check_convention,
    mean_over_regions,
    means_by_region,
    measure_subject,
    tolerances_mm,
)
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.atomic import refuse_existing
from mergekit3d.storage.lock import output_lock
from mergekit3d.summaries import write_metrics_csv, write_summary_json
from mergekit3d.volumes.nifti import SUFFIXES, read_labels

METRICS, SUMMARY = "metrics.csv", "summary.json"


@dataclass(frozen=True)
class EvaluateResult:
    """What an evaluation found.

    Args:
        metrics: metrics.csv.
        summary: summary.json.
        subjects: number of subjects.
        dice: mean over subjects by region; NaN values left out.
        hd95: the same in mm.
        mean_dice: mean of the regions' means.
        nsd: normalised surface Dice by region.
        intervals: 95 % bootstrap intervals of the mean Dice by region; None at both ends with fewer than two subjects.
        hd95_intervals: the same of HD95.
        nsd_intervals: the same of the normalised surface Dice.
        mean_interval: of the mean Dice over the regions of each subject.
        definitions: what was done with empty regions, and the tolerance.
    """

    metrics: Path
    summary: Path
    subjects: int
    dice: Mapping[str, float]
    hd95: Mapping[str, float]
    mean_dice: float
    nsd: Mapping[str, float]
    intervals: Mapping[str, Sequence[float | None]]
    hd95_intervals: Mapping[str, Sequence[float | None]]
    nsd_intervals: Mapping[str, Sequence[float | None]]
    mean_interval: Sequence[float | None]
    definitions: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``; what is undefined is null."""
        figures = {key: {region: _defined(value) for region, value in getattr(self, key).items()} for key in ("dice", "hd95", "nsd")}
        found = {
            "out": str(self.metrics.parent),
            "metrics": str(self.metrics),
            "summary": str(self.summary),
            "subjects": self.subjects,
            **figures,
        }
        mean = {"mean_dice": _defined(self.mean_dice), "mean_dice_interval_95": list(self.mean_interval)}
        intervals = {"dice": self.intervals, "hd95": self.hd95_intervals, "nsd": self.nsd_intervals}
        by_name = {f"{name}_interval_95": dict(ends) for name, ends in intervals.items()}
        return {**found, **mean, **by_name, "definitions": dict(self.definitions)}

    def lines(self) -> list[str]:
        """A line a region for people, then what the figures mean."""
        rows = [
            f"{region:<20} Dice {dice:.3f}{_between(self.intervals.get(region, ()))}  "
            f"HD95 {self.hd95[region]:.1f} mm{_between(self.hd95_intervals.get(region, ()), decimals=1)}  "
            f"NSD {self.nsd[region]:.3f}{_between(self.nsd_intervals.get(region, ()))}"
            for region, dice in self.dice.items()
        ]
        mean = f"{'mean':<20} Dice {self.mean_dice:.3f}{_between(self.mean_interval)}  ({self.subjects} subjects; {self.metrics})"
        return [*rows, mean, *(f"{name}: {meaning}" for name, meaning in self.definitions.items())]


def evaluate(
    checkpoint: Path | str | None = None,
    data: Path | str | None = None,
    pred: Path | str | None = None,
    truth: Path | str | None = None,
    *,
    layout: str = "auto",
    empty: str = "nnunet",
    tolerance_mm: float | Mapping[str, float] = TOLERANCE_MM,
    regions: str | Mapping[str, tuple[int, ...]] | None = None,
    subjects_file: Path | str | None = None,
    patch_size: tuple[int, int, int] | None = None,
    overlap: float | None = None,
    mirror: bool = False,
    mirror_axes: Sequence[int] | None = None,
    batch_size: int | None = None,
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> EvaluateResult:
    """Evaluate a checkpoint on labelled subjects, or segmentations that are there already.

    Args:
        checkpoint: a network of mergekit3d.
        data: folder or list of labelled subjects, for the checkpoint.
        pred: folder of segmentations ``<subject>.nii.gz``, in place of checkpoint and data.
        truth: their true labels: a folder or list of subjects in any layout, or a folder of files of the same names.
        layout: of the data or the truth.
        empty: convention for empty regions: nnunet (NaN, left out) or brats (1, and 373.13 mm where missed).
        tolerance_mm: of the normalised surface Dice, for all regions or by region, where ``*`` stands for the others.
        regions: shipped set, or label ids by region; needed for pred and truth.
        subjects_file: file of names, one a line: only these subjects.
        patch_size: of the checkpoint's inference: sliding window of this size; None: whole volumes.
        overlap: of neighbouring windows; 0.5 by default.
        mirror: average over mirrored copies.
        mirror_axes: 0 left-right (the default), 1 posterior-anterior, 2 inferior-superior; where they are given, copies are mirrored.
        batch_size: windows at once.
        options: device, precision; ``out`` is the folder to write to.
        reporter: where progress goes.

    Returns:
        Mean figures, and where the tables are.

    Raises:
        MergeKit3DError: arguments that do not go together, or data that cannot be used.
    """
    from mergekit3d.datasets.split import read_names
    from mergekit3d.prediction import inference, load_predictor, measure_subjects

    check_convention(empty)
    names = None if subjects_file is None else read_names(Path(subjects_file))
    how = inference(patch_size=patch_size, overlap=overlap, mirror=mirror, mirror_axes=mirror_axes, batch_size=batch_size)
    if checkpoint is not None and data is not None and pred is None and truth is None:
        predictor = load_predictor(checkpoint, options, **how)
        tolerances = tolerances_mm(tolerance_mm, list(predictor.task.outputs))
        out = options.out or Path(checkpoint).parent / "evaluation"
        dataset = find_dataset(data, layout)
        chosen = named(select(dataset, predictor.task.modalities, need_labels=True), names)
        rows = measure_subjects(predictor, dataset, chosen, convention=empty, tolerance_mm=tolerances, reporter=reporter)
    elif pred is not None and truth is not None and checkpoint is None and data is None:
        if any(value is not None for value in (patch_size, overlap, mirror_axes, batch_size)) or mirror:
            raise UsageError("the flags of inference go with a checkpoint", found="segmentations that are there already")
        outputs = _outputs(regions)
        tolerances = tolerances_mm(tolerance_mm, list(outputs))
        out = options.out or Path(pred)
        rows = _compare_folders(Path(pred), Path(truth), layout, outputs, names, empty, tolerances, reporter)
    else:
        raise UsageError(
            "evaluate needs a checkpoint and --data, or --pred and --truth", todo="for example: evaluate best.safetensors --data brats/"
        )
    same = len(set(tolerances.values())) == 1
    said = next(iter(tolerances.values())) if same else tolerances
    return write_evaluation(out, rows, convention=empty, tolerance_mm=said, force=options.force)


def write_evaluation(
    out: Path,
    rows: Iterator[SubjectMeasures],
    *,
    convention: str,
    tolerance_mm: float | Mapping[str, float] = TOLERANCE_MM,
    force: bool,
) -> EvaluateResult:
    """Write metrics.csv and summary.json once all subjects are measured.

    Args:
        out: the folder.
        rows: measures of every subject.
        convention: for empty regions, as measured.
        tolerance_mm: of the normalised surface Dice, as measured.
        force: write over existing tables.
    """
    for name in (METRICS, SUMMARY):
        refuse_existing(out / name, force=force)
    with output_lock(out):
        subjects = list(rows)
        flat = [row for subject in subjects for row in subject.rows]
        write_metrics_csv(out / METRICS, flat)
        intervals = write_summary_json(out / SUMMARY, subjects, convention=convention, tolerance_mm=tolerance_mm)["interval_95"]
    means = means_by_region(flat)
    return EvaluateResult(
        metrics=out / METRICS,
        summary=out / SUMMARY,
        subjects=len(subjects),
        dice={region: mean.dice for region, mean in means.items()},
        hd95={region: mean.hd95 for region, mean in means.items()},
        mean_dice=mean_over_regions(flat).dice,
        nsd={region: mean.nsd for region, mean in means.items()},
        intervals=intervals["mean"],
        hd95_intervals=intervals["HD95"]["mean"],
        nsd_intervals=intervals["NSD"]["mean"],
        mean_interval=intervals["foreground_mean"],
        definitions={"empty regions": f"{convention}: {CONVENTIONS[convention]}", "NSD": _within(tolerance_mm)},
    )


def _compare_folders(
    pred: Path,
    truth: Path,
    layout: str,
    outputs: dict[str, tuple[int, ...]],
    names: Sequence[str] | None,
    convention: str,
    tolerance_mm: Mapping[str, float],
    reporter: Reporter,
) -> Iterator[SubjectMeasures]:
    from mergekit3d.prediction import truth_of
    from mergekit3d.volumes.orientation import spacing_of
    from mergekit3d.volumes.resample import same_grid

    task = TaskSpec((), outputs)
    predictions, truths = _label_files(pred), _truth_files(truth, layout)
    if names is not None:
        absent = [str(place) for place, name in enumerate(names, 1) if name not in predictions]
        if absent:
            todo = "predict them, or leave them out of the file"
            raise InputError("subjects without a prediction", where=pred, found=f"name {', '.join(absent[:8])} of {len(names)}", todo=todo)
        predictions = {name: predictions[name] for name in names if name in predictions}
    elif len(predictions) < len(truths):
        reporter.warn(f"{len(truths)} subjects have true labels, and {len(predictions)} a prediction: the others are left out")
    alone = [number for number, name in enumerate(predictions, 1) if name not in truths]
    if alone:
        found = f"{len(alone)} of {len(predictions)} have none, the first of them number {alone[0]} by name"
        raise InputError("no true labels for a prediction", where=pred, found=found, todo=f"add them to {truth}")
    if not predictions:
        raise InputError("no predictions", where=pred, wanted="<subject>.nii.gz")
    with reporter.task("evaluate", len(predictions)) as progress:
        for number, (name, path) in enumerate(predictions.items(), 1):
            called = f"prediction {number} by name"
            predicted, reference = read_labels(path, called=called), read_labels(truths[name], called=f"the truth of {called}")
            if not same_grid(predicted.data.shape, predicted.affine, reference.data.shape, reference.affine):
                raise InputError(
                    "prediction and truth lie on different grids",
                    where=called,
                    wanted=reference.data.shape,
                    found=predicted.data.shape,
                )
            masks = truth_of(predicted.data, task), truth_of(reference.data, task)
            files = (path.name, truths[name].name)
            spacing_mm = spacing_of(reference.affine)
            yield measure_subject(name, *masks, spacing_mm, convention=convention, tolerance_mm=tolerance_mm, files=files)
            progress.advance(1, message=f"subject {number}")


def _truth_files(truth: Path, layout: str) -> dict[str, Path]:
    files = {} if part_of(truth)[0].is_file() else _label_files(truth)
    if files and layout == "auto":
        return files
    dataset: Dataset = find_dataset(truth, layout)
    return {subject.name: subject.label for subject in dataset.subjects if subject.label is not None}


def _label_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError("no such folder", where=folder)
    found = {}
    for path in sorted(folder.iterdir()):
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if suffix is not None and path.is_file():
            found[path.name.removesuffix(suffix)] = path
    return found


def _outputs(regions: str | Mapping[str, tuple[int, ...]] | None) -> dict[str, tuple[int, ...]]:
    if regions is None:
        raise UsageError("evaluate needs the regions of the label maps", todo="pass --regions, for example brats or hcp-1-7")
    return output_set(regions) if isinstance(regions, str) else dict(regions)


def _within(tolerance_mm: float | Mapping[str, float]) -> str:
    if not isinstance(tolerance_mm, Mapping):
        return f"within {tolerance_mm:g} mm"
    return f"within {', '.join(f'{mm:g} mm in {region}' for region, mm in tolerance_mm.items())}"


def _between(interval: Sequence[float | None], *, decimals: int = 3) -> str:
    return f" ({interval[0]:.{decimals}f} to {interval[1]:.{decimals}f})" if interval and interval[0] is not None else ""


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
