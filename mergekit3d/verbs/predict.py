"""``mergekit3d predict``: segmentations of subjects, each on its own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit3d.checkpoints import TaskSpec
from mergekit3d.checkpoints.metadata import tool
from mergekit3d.datasets import find_dataset, select
from mergekit3d.datasets.labels import decode
from mergekit3d.datasets.prepare import pasted
from mergekit3d.errors import UsageError
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.prediction import ensemble_of, inference, mean_probabilities, open_subjects
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.atomic import refuse_existing, write_json
from mergekit3d.storage.lock import output_lock
from mergekit3d.storage.seal import file_digest, json_digest
from mergekit3d.textfiles import read_json_object
from mergekit3d.volumes.nifti import write_volume

if TYPE_CHECKING:
    from mergekit3d.datasets import Subject
    from mergekit3d.datasets.cache import SubjectStore
    from mergekit3d.datasets.prepare import Prepared
    from mergekit3d.prediction import Predictor

RECORD = "predictions.json"
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
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> PredictResult:
    """Segment the subjects of a folder.

    A record beside the segmentations, predictions.json, tells by hashes what they were made from; ``resume`` goes by it. Started by
    torchrun, the processes share the subjects.

    Args:
        checkpoint: a network of mergekit3d, which says its modalities and regions; several: the mean of their probabilities.
        data: folder of subjects; labels are not needed.
        out: folder for ``<subject>.nii.gz``, label ids on the grid of the subject's first modality.
        layout: of the data.
        patch_size: sliding window of this size; None: whole volumes.
        overlap: of neighbouring windows; 0.5 by default.
        mirror: average over mirrored copies.
        mirror_axes: 0 left-right (the default), 1 posterior-anterior, 2 inferior-superior.
        batch_size: windows at once.
        probabilities: write ``probabilities/<subject>.nii.gz`` too, (X, Y, Z, outputs) float32.
        submission: write the label ids that a challenge takes: brats (4, 1, 2 from ET, TC, WT).
        options: device, precision; ``resume`` keeps the segmentations of the same checkpoints, settings and images.
        reporter: where progress goes.

    Returns:
        The files, written now or before.

    Raises:
        MergeKit3DError: a checkpoint or a subject cannot be used.
    """
    from mergekit3d.training.processes import shared_work

    out = Path(out)
    checkpoints = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    how = inference(patch_size=patch_size, overlap=overlap, mirror=mirror, mirror_axes=mirror_axes, batch_size=batch_size)
    with shared_work(options, reporter) as (group, own_options, own_reporter):
        members = ensemble_of(checkpoints, own_options, **how)
        task, written = members[0].task, _submitted(members[0].task, submission)
        dataset = find_dataset(data, layout)
        subjects = select(dataset, task.modalities, need_labels=False)
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
        record = _Record(out / RECORD, settings, group.rank if group.size > 1 else None)
        group.share(lambda: _refuse([*paths, record.path], record, options))
        store = open_subjects(dataset, subjects, task, own_reporter)

        def work() -> int:
            own, kept = store.numbers[group.rank :: group.size], 0
            with own_reporter.task("predict", len(own)) as progress:
                for number in own:
                    kept += _segment(store, number, out, members, written, record, probabilities=probabilities)
                    progress.advance(1, message=f"subject {number}")
            return kept

        with group.first_holds(lambda: output_lock(out)):
            record.done = group.share(lambda: record.begin(resume=options.resume, force=options.force))
            kept = sum(group.gather(group.agree(work)))
            records = group.gather(record.done)
            group.share(lambda: record.end(records))
        return PredictResult(out, tuple(paths), kept)


def _refuse(paths: Sequence[Path], record: _Record, options: Options) -> None:
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
    record: _Record,
    *,
    probabilities: bool,
) -> bool:
    """Write the files of one subject; whether they were there already."""
    subject = store.subjects[number]
    path = out / f"{subject.name}.nii.gz"
    extra = out / PROBABILITIES / path.name
    images, files = _digest(subject, members[0].task), [path, extra] if probabilities else [path]
    if record.has(images, files):
        return True
    prepared = store.get(number)
    values = mean_probabilities(members, prepared)
    if probabilities:
        write_volume(extra, _last(pasted(values, prepared)), native=prepared.native)
    write_volume(path, _labels(values, task, prepared), native=prepared.native)
    record.add(images, files)
    return False


class _Record:
    """What the segmentations of a folder were made from: no names, hashes alone.

    Several processes keep one each until their work is done: a kill loses nothing.

    Args:
        path: predictions.json.
        settings: checkpoints and all that decides on the result.
        process: number of this one of several; None: it is alone.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], process: int | None) -> None:
        self.path = path
        self._own = path if process is None else path.with_name(f".{path.stem}-{process + 1}{path.suffix}")
        self._settings = dict(settings)
        self.done: dict[str, list[str]] = {}

    def known(self) -> bool:
        """Whether some run left a record."""
        return self.path.exists() or bool(self._parts())

    def begin(self, *, resume: bool, force: bool) -> dict[str, list[str]]:
        """What was done before, of all processes; the record begins with it.

        Raises:
            UsageError: the folder holds segmentations of other checkpoints or settings.
        """
        for path in [self.path, *self._parts()] if resume else []:
            if path.exists():
                found = read_json_object(path, "the record of the predictions")
                same = found.get("settings") == self._settings and isinstance(found.get("done"), dict)
                if not (same or force):
                    raise UsageError(
                        "nothing to resume",
                        where=path,
                        found="segmentations of other checkpoints or settings",
                        todo="pass --force to make them anew, or another --out",
                    )
                self.done |= found["done"] if same else {}
        self.end([self.done])
        return self.done

    def end(self, records: Sequence[Mapping[str, list[str]]]) -> None:
        """One record of all processes' work."""
        self.done = {images: files for record in records for images, files in record.items()}
        self._write(self.path)
        for path in self._parts():
            path.unlink()

    def has(self, images: str, files: Sequence[Path]) -> bool:
        """Whether these images were segmented, and the files are still those that were written."""
        return images in self.done and all(path.is_file() for path in files) and self.done[images] == list(map(file_digest, files))

    def add(self, images: str, files: Sequence[Path]) -> None:
        """Note that they were."""
        self.done[images] = list(map(file_digest, files))
        self._write(self._own)

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f".{self.path.stem}-*{self.path.suffix}"))

    def _write(self, path: Path) -> None:
        write_json(path, {"tool": tool(), "settings": self._settings, "done": self.done})


def _digest(subject: Subject, task: TaskSpec) -> str:
    return json_digest([file_digest(subject.images[modality]) for modality in task.modalities])


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
