"""``mergekit3d preprocess``: bias field, crop, voxel size and intensities of a data set, written in the same layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.find import part_of
from mergekit3d.datasets.layouts import LAYOUTS
from mergekit3d.datasets.split import read_names
from mergekit3d.datasets.subject import Dataset, Subject
from mergekit3d.errors import InputError, Problems, UsageError
from mergekit3d.preprocessing.bias import require_simpleitk
from mergekit3d.preprocessing.ledger import RECORD, WORK, open_ledger, refuse_output
from mergekit3d.preprocessing.placing import Place, places
from mergekit3d.preprocessing.pool import worker_count
from mergekit3d.preprocessing.run import RESUME, Run
from mergekit3d.preprocessing.scales import Landmarks, read_landmarks
from mergekit3d.preprocessing.settings import HISTOGRAM, LEARNED, Settings
from mergekit3d.preprocessing.subject import Job, input_digests
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.atomic import write_bytes, write_text
from mergekit3d.storage.lock import output_lock
from mergekit3d.storage.seal import json_digest


@dataclass(frozen=True)
class PreprocessResult:
    """What a run wrote.

    Args:
        out: the folder.
        layout: of the data, in and out.
        subjects: in the output.
        done_before: those of them that an earlier run did.
        record: what was done, as JSON.
    """

    out: Path
    layout: str
    subjects: int
    done_before: int
    record: Path

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "out": str(self.out),
            "layout": self.layout,
            "subjects": self.subjects,
            "done_before": self.done_before,
            "record": str(self.record),
        }

    def lines(self) -> list[str]:
        """Lines for people."""
        count = "1 subject" if self.subjects == 1 else f"{self.subjects} subjects"
        before = f", {self.done_before} of them done before" if self.done_before else ""
        return [f"{self.out}: {count} in the layout {self.layout}{before} ({self.record})"]


def preprocess(
    data: Path | str,
    out: Path | str,
    *,
    layout: str = "auto",
    n4: bool = True,
    n4_shrink: int | None = None,
    crop: bool = True,
    margin: int = 2,
    spacing_mm: tuple[float, float, float] | None = None,
    intensity: str = "zscore",
    reference: str | None = None,
    landmarks: Path | str | None = None,
    subjects_file: Path | str | None = None,
    workers: int | None = None,
    force: bool = False,
    resume: bool = False,
    reporter: Reporter = SILENT,
) -> PreprocessResult:
    """Preprocess every subject of a data set, several at once.

    Files get the paths that they have in the input, so that the layout stays; images are float32 in RAS+ axis order, label maps keep
    their ids, and every voxel keeps its place in the world. ``preprocess.json`` tells what was done: settings, landmarks, and of each
    subject digests, crop and bias field. Subjects are numbered in the order of their names; no name stands in it.

    Args:
        data: folder or list of subjects.
        out: folder to write, outside of `data`.
        layout: of the data.
        n4: correct the bias field (N4 of SimpleITK, which the extra ``preprocess`` installs; on the foreground).
        n4_shrink: of the grid that the field is estimated on; None: to voxels of about 4 mm.
        crop: to foreground and labels.
        margin: voxels around them.
        spacing_mm: voxel size of the output; None: as it is.
        intensity: over the foreground: zscore; rank (to a uniform [0, 1], the paper's); nyul (landmarks of all subjects); histogram (of
            `reference`); none.
        reference: name or number of the subject whose histogram the others get.
        landmarks: the ``preprocess.json`` of another data set, onto whose scale (nyul or histogram) to map.
        subjects_file: file of names, one a line: only these subjects.
        workers: processes, one thread each; None: one a processor. A script that asks for several calls this under
            ``if __name__ == "__main__":``, as each process imports it.
        force: make anew what an earlier run wrote; what no run wrote is never replaced.
        resume: keep what an earlier run did with the same settings from the same input.
        reporter: where progress goes.

    Returns:
        Where everything is.

    Raises:
        InputError: a subject cannot be used (`Problems` where several cannot); the others are done.
        Interrupted: a signal came; whole subjects stand in the output, and ``resume`` goes on.
        MergeKit3DError: arguments that do not go together, or an output that cannot be written.
    """
    data, out = Path(data), Path(out)
    settings = Settings(n4=n4, n4_shrink=n4_shrink, crop=crop, margin=margin, spacing_mm=spacing_mm, intensity=intensity)
    _check_scale(settings, reference, landmarks)
    worker_count(workers, 1)
    if n4:
        require_simpleitk()
    refuse_output(part_of(data)[0], out, force=force, resume=resume)
    dataset = find_dataset(data, layout)
    targets = places(dataset, _chosen(dataset, subjects_file))
    scale = None if landmarks is None else read_landmarks(Path(landmarks), intensity)
    jobs = [_job(place, dataset, settings, out / WORK, anew=force) for place in targets]
    model = None if reference is None else _reference(jobs, targets, reference)
    with output_lock(out):
        ledger = open_ledger(out, _identity(settings, dataset.layout, scale, model), force=force)
        standing = ledger.standing(targets)
        _refuse_descriptions(dataset, out, force=force)
        ledger.begin()
        run = Run(ledger, targets, [replace(job, standing=standing[job.number]) for job in jobs], workers, reporter)
        final = run.through(settings, scale, None if model is None else model.number)
        done = {record["subject"] for record in run.records}
        _write_descriptions(dataset, [place.subject for place in targets if place.number in done], out, force=force)
        ledger.close(run.records, run.failed, None if final is None else final.as_json(), dataset.layout)
    if run.failed:
        reporter.warn(f"{len(run.records)} of {len(targets)} subjects are done; correct the others or leave them out, and {RESUME}")
        raise next(iter(run.failed.values())) if len(run.failed) == 1 else Problems(list(run.failed.values()))
    return PreprocessResult(out, dataset.layout, len(run.records), run.done_before, out / RECORD)


def _refuse_descriptions(dataset: Dataset, out: Path, *, force: bool) -> None:
    """Refuse to go on beside a description that says other things of the files, such as the order of their modalities.

    Raises:
        UsageError: the output has another one.
    """
    for source in () if force else dataset.descriptions:
        if LAYOUTS.get(dataset.layout).write is not None:
            continue
        there = out / source.name
        if there.is_file() and there.read_bytes() != source.read_bytes():
            todo = "remove it, pass --force, or write to another folder"
            raise UsageError(f"the {source.name} of the output differs from that of the data", where=there, todo=todo)


def _write_descriptions(dataset: Dataset, subjects: Sequence[Subject], out: Path, *, force: bool) -> None:
    """What a layout needs beside its images: a copy of nnU-Net's dataset.json, or the list of these subjects."""
    for source in dataset.descriptions:
        write = LAYOUTS.get(dataset.layout).write
        if write is not None:
            write_text(out / source.name, write(replace(dataset, subjects=tuple(subjects)), source))
        elif force or not (out / source.name).exists():
            write_bytes(out / source.name, source.read_bytes())


def _check_scale(settings: Settings, reference: str | None, landmarks: Path | str | None) -> None:
    """Refuse flags of scales that do not go with the intensities.

    Raises:
        UsageError: they do not.
    """
    if landmarks is not None and settings.intensity not in LEARNED:
        raise UsageError("--landmarks is for --intensity nyul or histogram", found=settings.intensity)
    if reference is not None and (settings.intensity != HISTOGRAM or landmarks is not None):
        raise UsageError("--reference is for --intensity histogram without --landmarks", found=f"--intensity {settings.intensity}")
    if settings.intensity == HISTOGRAM and reference is None and landmarks is None:
        raise UsageError("--intensity histogram needs a reference", todo="pass --reference with the name or number of a subject")


def _chosen(dataset: Dataset, subjects_file: Path | str | None) -> list[Subject]:
    """The subjects in the file, else all.

    Raises:
        InputError: the file is unreadable, or names a subject that is not there.
    """
    if subjects_file is None:
        return list(dataset.subjects)
    known = {subject.name: subject for subject in dataset.subjects}
    names = dict.fromkeys(read_names(Path(subjects_file)))
    unknown = [line for line, name in enumerate(names, 1) if name not in known]
    if unknown:
        found = f"{len(unknown)} others, the first of them name {unknown[0]}"
        raise InputError("unknown subjects", where=subjects_file, wanted="names of subjects in the data", found=found)
    return [known[name] for name in sorted(names)]


def _reference(jobs: Sequence[Job], targets: Sequence[Place], reference: str) -> Job:
    """The subject with that name, else with that number.

    Raises:
        UsageError: there is none.
    """
    for wanted in ([place.subject.name for place in targets], [str(place.number) for place in targets]):
        if reference in wanted:
            return jobs[wanted.index(reference)]
    raise UsageError("unknown reference", wanted="name or number of one of the subjects", found=reference)


def _job(place: Place, dataset: Dataset, settings: Settings, work: Path, *, anew: bool) -> Job:
    subject = place.subject
    images, channels = dict(subject.images), dict(subject.channels)
    return Job(place.number, images, subject.label, place.files, dataset.vocabulary, settings, work, anew=anew, channels=channels)


def _identity(settings: Settings, layout: str, scale: Landmarks | None, model: Job | None) -> dict[str, Any]:
    """All that decides the result beside the input."""
    return {
        **settings.as_json(),
        "layout": layout,
        "landmarks": None if scale is None else scale.digest,
        "reference": None if model is None else json_digest(input_digests(model)),
    }
