"""``mergekit3d predict``: segmentations of subjects, each on its own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit3d.checkpoints import TaskSpec
from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.find import named, usable
from mergekit3d.datasets.labels import decode
from mergekit3d.datasets.prepare import pasted
from mergekit3d.datasets.reading import image_identities
from mergekit3d.datasets.split import read_names
from mergekit3d.errors import InputError, Interrupted, MergeKit3DError, Problems, UsageError
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.prediction import ensemble_of, inference, mean_probabilities, open_subjects
from mergekit3d.prediction_record import PredictionRecord
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.atomic import real_path, refuse_existing, sweep_leftovers
from mergekit3d.storage.lock import output_lock
from mergekit3d.storage.seal import file_digest, json_digest
from mergekit3d.training.interruption import catch_signals
from mergekit3d.volumes.nifti import write_volume

if TYPE_CHECKING:
    from mergekit3d.datasets import Dataset, Subject
    from mergekit3d.datasets.cache import SubjectStore
    from mergekit3d.datasets.prepare import Prepared
    from mergekit3d.prediction import Predictor

RECORD = "predictions.json"
RESUME = "run it again with --resume"
PROBABILITIES = "probabilities"
BRATS = "brats"
SUBMISSIONS: Mapping[str, Mapping[str, tuple[int, ...]]] = {BRATS: {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)}}
"""Label ids that a challenge takes, by region."""


@dataclass(frozen=True)
class PredictResult:
    """What a prediction wrote.

    Args:
        out: the folder.
        files: one segmentation a subject.
        kept: how many of them were there before.
    """

    out: Path
    files: tuple[Path, ...]
    kept: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"out": str(self.out), "subjects": len(self.files), "kept": self.kept, "files": [str(path) for path in self.files]}

    def lines(self) -> list[str]:
        """Lines for people."""
        kept = f", {self.kept} of them from before" if self.kept else ""
        return [f"{self.out}: {len(self.files)} segmentations{kept}"]


def predict(
    checkpoint: Path | str | Sequence[Path | str],
    data: Path | str,
    out: Path | str,
    *,
    layout: str = "auto",
    patch_size: tuple[int, int, int] | None = None,
    overlap: float | None = None,
    mirror: bool = False,
    mirror_axes: Sequence[int] | None = None,
    batch_size: int | None = None,
    probabilities: bool = False,
    submission: str | None = None,
    subjects_file: Path | str | None = None,
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> PredictResult:
    """Segment the subjects of a folder or list.

    A record beside the segmentations, predictions.json, tells by hashes what they were made from; ``resume`` goes by it. Started by
    torchrun, the processes share the subjects.

    Args:
        checkpoint: a network of mergekit3d, which says its modalities and regions; several: the mean of their probabilities.
        data: folder or list of subjects; labels are not needed.
        out: folder for ``<subject>.nii.gz``, label ids on the grid of the subject's first modality.
        layout: of the data.
        patch_size: sliding window of this size; None: whole volumes.
        overlap: of neighbouring windows; 0.5 by default.
        mirror: average over mirrored copies.
        mirror_axes: 0 left-right, 1 posterior-anterior, 2 inferior-superior; where they are given, copies are mirrored; left out: those
            that nnU-Net's checkpoints allow, else 0.
        batch_size: windows at once.
        probabilities: write ``probabilities/<subject>.nii.gz`` too, (X, Y, Z, outputs) float32.
        submission: write the label ids that a challenge takes: brats (4, 1, 2 from ET, TC, WT).
        subjects_file: file of names, one a line: only these subjects.
        options: device, precision; ``resume`` keeps the segmentations of the same checkpoints, settings and images.
        reporter: where progress goes.

    Returns:
        The files, written now or before.

    Raises:
        InputError: a subject cannot be used (`Problems` where several cannot); the others are done.
        Interrupted: a signal came; whole segmentations stand in the output, and ``resume`` goes on.
        MergeKit3DError: a checkpoint cannot be used, or the output cannot be written.
    """
    from mergekit3d.training.processes import shared_work

    out = Path(out)
    checkpoints = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    how = inference(patch_size=patch_size, overlap=overlap, mirror=mirror, mirror_axes=mirror_axes, batch_size=batch_size)
    with shared_work(options, reporter) as (group, own_options, own_reporter):
        members = ensemble_of(checkpoints, own_options, **how)
        task, written = members[0].task, _submitted(members[0].task, submission)
        dataset = find_dataset(data, layout)
        subjects, unusable = usable(_only(dataset, subjects_file), task.modalities, need_labels=False)
        settings = {
            "checkpoints": [member.digest for member in members],
            "labels": {name: list(ids) for name, ids in written.outputs.items()},
            "patch_size": patch_size and list(patch_size),
            "overlap": members[0].overlap,
            "mirror_axes": list(members[0].mirror_axes),
            "probabilities": probabilities,
            "precision": members[0].runtime.precision,
        }
        paths = [out / f"{subject.name}.nii.gz" for subject in subjects]
        _refuse_inputs(paths, dataset.subjects, out)
        record = PredictionRecord(out / RECORD, settings, group.rank if group.size > 1 else None)
        group.share(lambda: _refuse([*paths, record.path], record, options))
        store = open_subjects(dataset, subjects, task, own_reporter)

        def work() -> _Work:
            own, done = store.numbers[group.rank :: group.size], _Work()
            with catch_signals() as interruption, own_reporter.task("predict", len(own)) as progress:
                for ended, number in enumerate(own):
                    if interruption.signal_number is not None:
                        failed = f"predict: stopped by a signal after {ended} of {len(own)} subjects"
                        raise Interrupted(failed, signal_number=interruption.signal_number, todo=RESUME)
                    try:
                        done.kept += _segment(store, number, out, members, written, record, probabilities=probabilities)
                        done.segmented += 1
                    except InputError as error:
                        done.problems.append(error)
                    progress.advance(1, message=f"subject {number}")
            return done

        with group.first_holds(lambda: output_lock(out)):
            record.done = group.share(lambda: _begin(record, out, options))
            works = group.gather(group.agree(work))
            records = group.gather(record.done)
            group.share(lambda: record.end(records))
        failed = [*unusable, *(problem for work in works for problem in work.problems)]
        if failed:
            segmented = f"{sum(work.segmented for work in works)} of {len(subjects) + len(unusable)} subjects"
            own_reporter.warn(f"{segmented} are segmented; correct the others or leave them out, and {RESUME}")
            group.share(lambda: _raise(failed))
        return PredictResult(out, tuple(paths), sum(work.kept for work in works))


def _begin(record: PredictionRecord, out: Path, options: Options) -> dict[str, list[str]]:
    """What was done before; what a killed run left half-written goes."""
    sweep_leftovers(out / PROBABILITIES)
    return record.begin(resume=options.resume, force=options.force)


def _only(dataset: Dataset, subjects_file: Path | str | None) -> Dataset:
    """The data set with the subjects of a file alone; all, where there is none."""
    names = None if subjects_file is None else read_names(Path(subjects_file))
    return replace(dataset, subjects=tuple(named(dataset.subjects, names)))


@dataclass
class _Work:
    """What one process did: its segmentations, how many of them it kept, and which subjects it could not use."""

    segmented: int = 0
    kept: int = 0
    problems: list[InputError] = field(default_factory=list)


def _raise(problems: Sequence[MergeKit3DError]) -> None:
    raise problems[0] if len(problems) == 1 else Problems(problems)


def _refuse_inputs(paths: Sequence[Path], subjects: Sequence[Subject], out: Path) -> None:
    """Refuse to replace images or label maps, whatever the options: nothing brings those back."""
    given = {real_path(file) for subject in subjects for file in (*subject.images.values(), subject.label) if file is not None}
    if given & set(map(real_path, paths)):
        raise UsageError("segmentations would replace files of the data", where=out, todo="pass another --out")


def _refuse(paths: Sequence[Path], record: PredictionRecord, options: Options) -> None:
    """Refuse to write over what is there; without a record, it is not ours to replace."""
    if not (options.resume and record.known()):
        for path in paths:
            refuse_existing(path, force=options.force)


def _segment(
    store: SubjectStore,
    number: int,
    out: Path,
    members: Sequence[Predictor],
    task: TaskSpec,
    record: PredictionRecord,
    *,
    probabilities: bool,
) -> bool:
    """Write the files of one subject; whether they were there already."""
    subject = store.subjects[number]
    path = out / f"{subject.name}.nii.gz"
    extra = out / PROBABILITIES / path.name
    store.check_files(number)  # what is hashed here is what is prepared below
    images, files = _digest(subject, number, members[0].task), [path, extra] if probabilities else [path]
    if record.has(images, files):
        return True
    prepared = store.get(number)
    values = mean_probabilities(members, prepared)
    if probabilities:
        write_volume(extra, _last(pasted(values, prepared)), native=prepared.native)
    write_volume(path, _labels(values, task, prepared), native=prepared.native)
    record.add(images, files)
    return False


def _digest(subject: Subject, number: int, task: TaskSpec) -> str:
    try:
        return json_digest(image_identities(subject, task.modalities, file_digest))
    except OSError as error:
        raise InputError("cannot read an image", where=f"subject {number}", found=(error.strerror or "an error").lower()) from error


def _labels(probabilities: np.ndarray[Any, Any], task: TaskSpec, prepared: Prepared) -> np.ndarray[Any, Any]:
    return np.asarray(pasted(decode(probabilities, task), prepared))


def _last(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Channels behind the axes of space, as NIfTI has them."""
    return np.moveaxis(values, 0, -1).astype(np.float32)


def _submitted(task: TaskSpec, submission: str | None) -> TaskSpec:
    if submission is None:
        return task
    if submission not in SUBMISSIONS:
        raise UsageError("unknown submission", where="--submission", wanted=" or ".join(SUBMISSIONS), found=submission)
    ids = SUBMISSIONS[submission]
    if set(ids) != set(task.outputs) or task.exclusive:
        wanted, found = f"a checkpoint of the regions {', '.join(ids)}", ", ".join(task.outputs)
        raise UsageError(f"no labels for a submission to {submission}", where="--submission", wanted=wanted, found=found)
    return replace(task, outputs={name: ids[name] for name in task.outputs})
