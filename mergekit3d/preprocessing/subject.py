"""The work on one subject, as a worker process does it: from its files to finished ones in a folder of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mergekit3d.datasets.vocabulary import Vocabulary
from mergekit3d.errors import InputError, OutputError
from mergekit3d.preprocessing.correction import LABEL, Corrected, correct, load_corrected
from mergekit3d.preprocessing.scales import Landmarks, on_scale, percentiles_of
from mergekit3d.preprocessing.settings import LEARNED, VERSION, Settings
from mergekit3d.storage.atomic import atomic_open, write_json
from mergekit3d.storage.seal import file_digest, json_digest
from mergekit3d.textfiles import read_json_object
from mergekit3d.volumes.nifti import Channel, Grid, write_volume
from mergekit3d.volumes.normalise import NORMALISATIONS
from mergekit3d.volumes.orientation import Array

FINISHED, CORRECTED, RECORDS, MEASURES = "finished", "corrected", "records", "measures"
"""Folders for what is not in its place yet: a subject's files; images that a scale is learned from; notes on both."""
DONE_BEFORE = "done_before"


@dataclass(frozen=True)
class Job:
    """One subject to work on.

    Args:
        number: of the subject, from 1.
        images: modality -> file.
        label: the label map; None: there is none.
        names: modality, or label -> where the file belongs below the data set's folder.
        vocabulary: ids that the label map may hold.
        settings: what to do.
        work: the folder for what is not finished.
        landmarks: the scale, where the intensities need one.
        standing: digests of the outputs that are there already, by modality or label.
        anew: do it again where it was done before.
        channels: of the modalities that share a 4D file, which of its volumes they are.
    """

    number: int
    images: Mapping[str, Path]
    label: Path | None
    names: Mapping[str, Path]
    vocabulary: Vocabulary
    settings: Settings
    work: Path
    landmarks: Landmarks | None = None
    standing: Mapping[str, str] = field(default_factory=dict)
    anew: bool = False
    channels: Mapping[str, Channel] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where finished files wait to be put in their place."""
        return self.work / FINISHED / str(self.number)


def measure(job: Job) -> dict[str, Any]:
    """The percentiles of every image of a subject, for a scale to be learned; the corrected images are kept for `finish`.

    Returns:
        geometry: the identity of the images; percentiles: by modality; facts: what was done.

    Raises:
        InputError: the subject cannot be used.
        OutputError: the file system refused.
    """
    geometry = _geometry(job, input_digests(job))
    known = read_note(job.work / MEASURES, geometry)
    if known is not None:
        return known
    corrected = _corrected(job)
    kind = job.settings.intensity
    percentiles = {
        modality: percentiles_of(image, _inside(image, corrected.mask, job.number, modality), kind)
        for modality, image in corrected.images.items()
    }
    with atomic_open(_kept(job, geometry)) as file:
        corrected.save(file)
    measured = {"geometry": geometry, "kind": kind, "percentiles": percentiles, "facts": dict(corrected.facts)}
    write_json(job.work / MEASURES / f"{geometry}.json", measured)
    return measured


def finish(job: Job) -> dict[str, Any]:
    """Write a subject's finished files into `job.folder`, unless they stand in their place already.

    Returns:
        The record of the subject: number, identity, digests of inputs and outputs, what was done, and whether it was done before.

    Raises:
        InputError: the subject cannot be used.
        OutputError: the file system refused.
    """
    inputs = input_digests(job)
    geometry = _geometry(job, inputs)
    scale = None if job.landmarks is None else job.landmarks.digest
    identity = json_digest([VERSION, job.settings.as_json(), inputs, scale])
    known = read_note(job.work / RECORDS, identity)
    if not job.anew and known is not None and known.get("outputs") == dict(job.standing):
        return {**known, "subject": job.number, DONE_BEFORE: True}
    measured = read_note(job.work / MEASURES, geometry)
    kept = _kept(job, geometry)
    corrected = _corrected(job) if measured is None or not kept.is_file() else load_corrected(kept, measured["facts"])
    outputs = _written(job, corrected)
    return {
        "subject": job.number,
        "identity": identity,
        "inputs": inputs,
        "outputs": outputs,
        **corrected.facts,
        "measured": measured,
        DONE_BEFORE: False,
    }


def read_note(folder: Path, identity: str) -> dict[str, Any] | None:
    """The note on a piece of work that was done with this identity; None: there is none."""
    path = folder / f"{identity}.json"
    return read_json_object(path, "the record of an earlier run") if path.is_file() else None


def input_digests(job: Job) -> dict[str, str]:
    """sha256 of every input file of a subject, by modality or label; behind it, which volume of a 4D file it is.

    Raises:
        InputError: one cannot be read.
    """
    digests: dict[str, str] = {}
    known: dict[Path, str] = {}
    for name, path in _inputs(job).items():
        called = f"subject {job.number}, {'label map' if name == LABEL else name}"
        try:
            regular = path.is_file()
            known[path] = known.get(path) or (file_digest(path) if regular else "")
            digests[name] = known[path] + (f"[{job.channels[name].index}]" if name in job.channels else "")
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise InputError("cannot read the volume", where=called, found=reason) from error
        if not regular:
            raise InputError("cannot read the volume", where=called, wanted="a regular file", found="none under its name")
    return digests


def _inputs(job: Job) -> dict[str, Path]:
    return {**dict(sorted(job.images.items())), **({} if job.label is None else {LABEL: job.label})}


def _geometry(job: Job, inputs: Mapping[str, str]) -> str:
    kind = job.settings.intensity if job.settings.intensity in LEARNED else None
    return json_digest([VERSION, job.settings.geometry(), kind, dict(inputs)])


def _corrected(job: Job) -> Corrected:
    return correct(job.images, job.label, job.settings, job.vocabulary, number=job.number, channels=job.channels)


def _kept(job: Job, geometry: str) -> Path:
    return job.work / CORRECTED / f"{geometry}.npz"


def _written(job: Job, corrected: Corrected) -> dict[str, str]:
    """Write the files; their digests, by modality or label."""
    grid = Grid(_shape(corrected.mask), corrected.affine)
    outputs: dict[str, str] = {}
    try:
        for name in dict.fromkeys(job.names[modality] for modality in corrected.images):
            together = _in_file(job, name)
            images = [_normalised(job, modality, corrected.images[modality], corrected.mask) for modality in together]
            path = job.folder / name
            write_volume(path, images[0] if len(images) == 1 else np.stack(images, axis=-1), native=grid)
            outputs |= dict.fromkeys(together, file_digest(path))
        if corrected.labels is not None:
            path = job.folder / job.names[LABEL]
            write_volume(path, corrected.labels, native=grid)
            outputs[LABEL] = file_digest(path)
    except OutputError as error:
        raise OutputError(error.failed, where=f"subject {job.number}", found=error.found, todo=error.todo) from error
    return outputs


def _in_file(job: Job, name: Path) -> list[str]:
    """The modalities of a file, in the order of its volumes."""
    modalities = [modality for modality in job.images if job.names[modality] == name]
    return sorted(modalities, key=lambda modality: job.channels[modality].index if modality in job.channels else 0)


def _normalised(job: Job, modality: str, image: Array, mask: Array) -> Array:
    inside = _inside(image, mask, job.number, modality)
    if job.landmarks is None:
        return NORMALISATIONS[job.settings.intensity](image, inside)
    if modality not in job.landmarks.values:
        known = ", ".join(sorted(job.landmarks.values))
        raise InputError("no landmarks for a modality", where=f"subject {job.number}", wanted=known, found=modality)
    return on_scale(image, inside, job.landmarks.kind, job.landmarks.values[modality])


def _inside(image: Array, mask: Array, number: int, modality: str) -> Array:
    """The foreground voxels where this modality has a value: it may cover less than the others."""
    inside = mask & (image != 0)
    values = image[inside]
    if values.size == 0 or values.min() == values.max():
        called = f"subject {number}, {modality}"
        raise InputError("an image is constant over the foreground", where=called, wanted="intensities", found="one value")
    return np.asarray(inside)


def _shape(array: Array) -> tuple[int, int, int]:
    x, y, z = array.shape
    return x, y, z
