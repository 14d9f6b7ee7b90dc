"""The Medical Segmentation Decathlon: one file a subject, all modalities along its fourth axis, named by dataset.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mergekit3d.datasets.descriptions import ALL_IDS, DESCRIPTION, channels_of, description_of, vocabulary_in
from mergekit3d.datasets.layouts import Layout, nifti_files, register
from mergekit3d.datasets.layouts.nnunet import folders_of, is_numbered
from mergekit3d.datasets.subject import Channel, Subject
from mergekit3d.datasets.vocabulary import Vocabulary

NAME = "Decathlon"


def find(root: Path) -> list[Subject]:
    """The images of imagesTr; or of the folder itself, where dataset.json stands beside it (imagesTs)."""
    described = description_of(root)
    if described is None or "channel_names" in described[1]:
        return []
    content = described[1]
    channels = channels_of(content, described[0])
    images, labels = folders_of(root)
    if not channels or is_numbered(root, channels):
        return []  # nnU-Net's
    masks = nifti_files(labels) if labels.is_dir() else {}
    paired = _pairs(content)
    subjects = []
    for name, path in nifti_files(images).items():
        label = masks.get(paired.get(name, name))
        several = {modality: Channel(index, len(channels)) for index, modality in enumerate(channels.values())} if len(channels) > 1 else {}
        subjects.append(Subject(name, dict.fromkeys(channels.values(), path), label, several))
    return subjects


def _pairs(content: Mapping[str, Any]) -> dict[str, str]:
    """Name of an image -> that of its label map, without suffixes, where the description lists them under different names."""
    entries = [entry for key in ("training", "test") for entry in _listed(content, key) if isinstance(entry, dict)]
    named = [(entry.get("image"), entry.get("label")) for entry in entries]
    return {_stem(image): _stem(label) for image, label in named if isinstance(image, str) and isinstance(label, str)}


def _listed(content: Mapping[str, Any], key: str) -> list[Any]:
    entries = content.get(key)
    return entries if isinstance(entries, list) else []


def _stem(path: str) -> str:
    return PurePosixPath(path).name.removesuffix(".gz").removesuffix(".nii")


def vocabulary_of(root: Path, subjects: Sequence[Subject]) -> Vocabulary:
    """The ids of dataset.json."""
    del subjects
    described = description_of(root)
    return VOCABULARY if described is None else vocabulary_in(described[1], NAME)


def remarks(root: Path, subjects: Sequence[Subject]) -> list[str]:
    """Where dataset.json lists images that are not there, or does not list some that are."""
    described = description_of(root)
    if described is None:
        return []
    part = "training" if folders_of(root)[0] != root or root.name == "imagesTr" else "test"
    entries = [entry.get("image") if isinstance(entry, dict) else entry for entry in _listed(described[1], part)]
    listed = {_stem(entry) for entry in entries if isinstance(entry, str)}
    there = {subject.name for subject in subjects}
    missing, more = len(listed - there), len(there - listed) if listed else 0
    found = [f"{missing} of the {len(listed)} images that {DESCRIPTION} lists under {part} are not there"] if missing else []
    return [*found, *([f"{more} of the {len(there)} images that are there are not listed in {DESCRIPTION}"] if more else [])]


VOCABULARY = Vocabulary(NAME, ALL_IDS)
FILES = "{imagesTr/<subject>.nii.gz (4D),labelsTr/<subject>.nii.gz,dataset.json}"
DECATHLON = register(
    Layout("decathlon", FILES, VOCABULARY, find, vocabulary_of=vocabulary_of, descriptions=(DESCRIPTION,), remarks=remarks)
)
