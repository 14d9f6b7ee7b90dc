"""``mergekit3d predict``: segmentations of subjects, each on its own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit3d.checkpoints import TaskSpec, open_checkpoint
from mergekit3d.checkpoints.metadata import tool
from mergekit3d.datasets import find_dataset, select
from mergekit3d.datasets.labels import decode
from mergekit3d.datasets.prepare import pasted
from mergekit3d.errors import UsageError
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.prediction import MIRROR_AXES, ensemble_of, mean_probabilities, open_subjects
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.atomic import refuse_existing, write_json
from mergekit3d.storage.lock import output_lock
from mergekit3d.storage.seal import file_digest, json_digest
from mergekit3d.textfiles import read_json_object
from mergekit3d.volumes.nifti import write_volume

if TYPE_CHECKING:
    from mergekit3d.datasets import Subject
    from mergekit3d.datasets.prepare import Prepared

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
    overlap: float = 0.5,
    mirror: bool = False,
    mirror_axes: Sequence[int] = MIRROR_AXES,
    probabilities: bool = False,
    submission: str | None = None,
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> PredictResult:
    """Segment the subjects of a folder.

    A record beside the segmentations, predictions.json, tells by hashes what they were made from; ``resume`` goes by it.

    Args:
        checkpoint: a network of mergekit3d, which says its modalities and regions; several: the mean of their probabilities.
        data: folder of subjects; labels are not needed.
        out: folder for ``<subject>.nii.gz``, label ids on the grid of the subject's first modality.
        layout: of the data.
        patch_size: sliding window of this size; None: whole volumes.
        overlap: of neighbouring windows.
        mirror: average over mirrored copies.
        mirror_axes: 0 left-right, 1 posterior-anterior, 2 inferior-superior.
        probabilities: write ``probabilities/<subject>.nii.gz`` too, (X, Y, Z, outputs) float32.
        submission: write the label ids that a challenge takes: brats (4, 1, 2 from ET, TC, WT).
        options: device, precision; ``resume`` keeps the segmentations of the same checkpoints, settings and images.
        reporter: where progress goes.

    Returns:
        The files, written now or before.

    Raises:
        MergeKit3DError: a checkpoint or a subject cannot be used.
    """
    out, axes = Path(out), _axes(mirror_axes) if mirror else ()
    checkpoints = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    members = ensemble_of(checkpoints, options, patch_size=patch_size, overlap=overlap, mirror_axes=axes)
    task = members[0].task
    written = _submitted(task, submission)
    dataset = find_dataset(data, layout)
    subjects = select(dataset, task.modalities, need_labels=False)
    settings = {
        "checkpoints": [open_checkpoint(path).digest for path in checkpoints],
        "labels": {name: list(ids) for name, ids in written.outputs.items()},
        "patch_size": patch_size and list(patch_size),
        "overlap": overlap,
        "mirror_axes": list(axes),
        "probabilities": probabilities,
        "precision": members[0].runtime.precision,
    }
    paths = {subject.name: out / f"{subject.name}.nii.gz" for subject in subjects}
    record = _Record(out / RECORD, settings)
    if not (options.resume and record.path.exists()):  # without a record, what stands there is not ours to replace
        for path in (*paths.values(), record.path):
            refuse_existing(path, force=options.force)
    store, kept = open_subjects(dataset, subjects, task, reporter), 0
    with output_lock(out), reporter.task("predict", len(subjects)) as progress:
        record.begin(resume=options.resume, force=options.force)
        for number, subject in store.subjects.items():
            path, images = paths[subject.name], _digest(subject, task)
            extra = out / PROBABILITIES / path.name
            files = [path, extra] if probabilities else [path]
            if record.has(images, files):
                kept += 1
            else:
                prepared = store.get(number)
                values = mean_probabilities(members, prepared)
                if probabilities:
                    write_volume(extra, _last(pasted(values, prepared)), native=prepared.native)
                write_volume(path, _labels(values, written, prepared), native=prepared.native)
                record.add(images, files)
            progress.advance(1, message=f"subject {number}")
    return PredictResult(out, tuple(paths.values()), kept)


class _Record:
    """What the segmentations of a folder were made from: no names, hashes alone.

    Args:
        path: predictions.json.
        settings: checkpoints and all that decides on the result.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = dict(settings)
        self._done: dict[str, list[str]] = {}

    def begin(self, *, resume: bool, force: bool) -> None:
        """Take up the record that is there, or begin one.

        Raises:
            UsageError: the folder holds segmentations of other checkpoints or settings.
        """
        if resume and self.path.exists():
            found = read_json_object(self.path, "the record of the predictions")
            same = isinstance(found, dict) and found.get("settings") == self._settings and isinstance(found.get("done"), dict)
            if not (same or force):
                raise UsageError(
                    "nothing to resume",
                    where=self.path,
                    found="segmentations of other checkpoints or settings",
                    todo="pass --force to make them anew, or another --out",
                )
            self._done = dict(found["done"]) if same else {}
        self._write()

    def has(self, images: str, files: Sequence[Path]) -> bool:
        """Whether these images were segmented, and the files are still those that were written."""
        return images in self._done and all(path.is_file() for path in files) and self._done[images] == list(map(file_digest, files))

    def add(self, images: str, files: Sequence[Path]) -> None:
        """Note that they were."""
        self._done[images] = list(map(file_digest, files))
        self._write()

    def _write(self) -> None:
        write_json(self.path, {"tool": tool(), "settings": self._settings, "done": self._done})


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


def _axes(axes: Sequence[int]) -> tuple[int, ...]:
    if not axes or any(axis not in (0, 1, 2) for axis in axes) or len(set(axes)) != len(axes):
        raise UsageError("no such axes", where="--mirror-axes", wanted="some of x, y, z", found=list(axes))
    return tuple(sorted(axes))
