"""``mergekit3d predict``: segmentations of subjects, each on its own grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.datasets import find_dataset, select
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.prediction import load_predictor, open_subjects
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.atomic import refuse_existing
from mergekit3d.storage.lock import output_lock
from mergekit3d.volumes.nifti import write_volume


@dataclass(frozen=True)
class PredictResult:
    """What a prediction wrote.

    Args:
        out: the folder.
        files: one segmentation a subject.
    """

    out: Path
    files: tuple[Path, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"out": str(self.out), "subjects": len(self.files), "files": [str(path) for path in self.files]}

    def lines(self) -> list[str]:
        """Lines for people."""
        return [f"{self.out}: {len(self.files)} segmentations"]


def predict(
    checkpoint: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    layout: str = "auto",
    patch_size: tuple[int, int, int] | None = None,
    overlap: float = 0.5,
    mirror: bool = False,
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> PredictResult:
    """Segment the subjects of a folder.

    Args:
        checkpoint: a network of mergekit3d, which says its modalities and regions.
        data: folder of subjects; labels are not needed.
        out: folder for ``<subject>.nii.gz``, label ids on the grid of the subject's first modality.
        layout: of the data.
        patch_size: sliding window of this size; None: whole volumes.
        overlap: of neighbouring windows.
        mirror: average over mirrored copies.
        options: device, precision; ``resume`` keeps the files that are there.
        reporter: where progress goes.

    Returns:
        The files written.

    Raises:
        MergeKit3DError: the checkpoint or a subject cannot be used.
    """
    out = Path(out)
    predictor = load_predictor(checkpoint, options, patch_size=patch_size, overlap=overlap, mirror=mirror)
    dataset = find_dataset(data, layout)
    subjects = select(dataset, predictor.task.modalities, need_labels=False)
    paths = {subject.name: out / f"{subject.name}.nii.gz" for subject in subjects}
    if not options.resume:
        for path in paths.values():
            refuse_existing(path, force=options.force)
    store = open_subjects(dataset, subjects, predictor.task, reporter)
    with output_lock(out), reporter.task("predict", len(subjects)) as progress:
        for number, subject in store.subjects.items():
            path = paths[subject.name]
            if not (options.resume and path.exists()):
                prepared = store.get(number)
                write_volume(path, predictor.labels(prepared), native=prepared.native)
            progress.advance(1, message=f"subject {number}")
    return PredictResult(out, tuple(paths.values()))
