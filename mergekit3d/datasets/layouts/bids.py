"""BIDS: subjects, perhaps with sessions, raw or as derivatives; FreeSurfer's segmentation as labels where there is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mergekit3d.datasets.layouts import Layout, folders, nifti_files, register
from mergekit3d.datasets.subject import Subject
from mergekit3d.datasets.vocabulary import FREESURFER

MODALITIES = {"T1w": "t1", "T2w": "t2", "FLAIR": "flair"}
LABEL = "dseg"
PREPROCESSED = "preproc"
SEGMENTATIONS = ("aparcaseg", "aseg")
"""Of fMRIPrep and FreeSurfer; a dseg without one of these is of three tissues, in ids of its own."""


def find(root: Path) -> list[Subject]:
    """``sub-*`` folders with ``anat`` in them or in their ``ses-*`` folders: a subject a session."""
    return [subject for folder, name in _anatomies(root) if (subject := _subject(folder, name)) is not None]


def _anatomies(root: Path) -> Iterator[tuple[Path, str]]:
    for subject in folders(root):
        if subject.name.startswith("sub-"):
            if (subject / "anat").is_dir():
                yield subject / "anat", subject.name
            for session in folders(subject):
                if session.name.startswith("ses-") and (session / "anat").is_dir():
                    yield session / "anat", f"{subject.name}_{session.name}"


def _subject(folder: Path, name: str) -> Subject | None:
    images: dict[str, tuple[bool, Path]] = {}
    labels: dict[str, Path] = {}
    for file, path in nifti_files(folder).items():
        entities, suffix = _parsed(file)
        if "space" in entities:  # resampled to a template
            continue
        if suffix == LABEL and entities.get("desc") in SEGMENTATIONS:
            labels[entities["desc"]] = path
        modality = "t1ce" if suffix == "T1w" and "ce" in entities else MODALITIES.get(suffix)
        preprocessed = entities.get("desc") == PREPROCESSED
        if modality is not None and (preprocessed or "desc" not in entities) and not images.get(modality, (False, path))[0]:
            images[modality] = (preprocessed, path)
    if not images:
        return None
    label = next((labels[kind] for kind in SEGMENTATIONS if kind in labels), None)
    return Subject(name, {modality: path for modality, (_, path) in images.items()}, label)


def _parsed(name: str) -> tuple[Mapping[str, str], str]:
    """Entities such as ``desc-preproc``, and the suffix."""
    *parts, suffix = name.split("_")
    return dict(part.split("-", 1) for part in parts if "-" in part), suffix


FILES = "sub-<name>/[ses-<name>/]anat/sub-<name>_desc-{preproc_T1w,preproc_T2w,aparcaseg_dseg}.nii.gz"
BIDS = register(Layout("bids", FILES, FREESURFER, find))
