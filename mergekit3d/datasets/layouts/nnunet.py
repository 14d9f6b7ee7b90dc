"""nnU-Net's raw data sets, of both versions: images in one folder, a number for each channel, whose names dataset.json tells."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mergekit3d.datasets.descriptions import ALL_IDS, DESCRIPTION, channels_of, description_of, vocabulary_in
from mergekit3d.datasets.layouts import Layout, nifti_files, register
from mergekit3d.datasets.subject import Subject
from mergekit3d.datasets.vocabulary import Vocabulary
from mergekit3d.errors import InputError
from mergekit3d.volumes.nifti import SUFFIXES

TRAINING, LABELS = "imagesTr", "labelsTr"
ANY = Vocabulary("nnU-Net", ALL_IDS)
NUMBERED = re.compile(r"(.+)_(\d{4})")


def find(root: Path) -> list[Subject]:
    """The cases of imagesTr, or those that dataset.json lists; or of the folder itself, where it stands beside it (imagesTs)."""
    described = description_of(root)
    if described is None:
        return []
    channels = channels_of(described[1], described[0])
    if isinstance(described[1].get("dataset"), dict) and not root.name.startswith("images"):
        return [_listed(root, str(case), entry, list(channels.values())) for case, entry in described[1]["dataset"].items()]
    images, labels = folders_of(root)
    files = nifti_files(images)
    ending = described[1].get("file_ending", SUFFIXES[0])
    if ending not in SUFFIXES:
        todo = "convert the images, and correct file_ending"
        raise InputError("the images are of another format", where=described[0], wanted=" or ".join(SUFFIXES), found=str(ending), todo=todo)
    if "channel_names" not in described[1] and not is_numbered(root, channels):
        return []  # the Decathlon's
    masks = nifti_files(labels) if labels.is_dir() else {}
    cases: dict[str, dict[str, Path]] = {}
    for name, path in files.items():
        parts = NUMBERED.fullmatch(name)
        if parts is not None and int(parts[2]) in channels:
            cases.setdefault(parts[1], {})[channels[int(parts[2])]] = path
    return [Subject(case, found, masks.get(case)) for case, found in cases.items()]


def _listed(root: Path, case: str, entry: Any, channels: Sequence[str]) -> Subject:
    """A case that dataset.json lists by its files, in the order of the channels; they may be those of another data set."""
    images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
    if not isinstance(images, list) or len(images) != len(channels) or not all(isinstance(file, str) for file in images):
        wanted = f"images: a list of {len(channels)}, one a channel"
        raise InputError("cannot read a case", where=f"{root / DESCRIPTION}, dataset: {case}", wanted=wanted, found="something else")
    files = [root / os.path.expandvars(file) for file in images]
    truth = root / os.path.expandvars(label) if isinstance(label, str) else None
    return Subject(case, dict(zip(channels, files, strict=True)), truth)


def folders_of(root: Path) -> tuple[Path, Path]:
    """Where images and label maps lie: imagesTr and labelsTr, or the folder itself and the one beside it named alike."""
    if (root / TRAINING).is_dir():
        return root / TRAINING, root / LABELS
    return root, root.with_name(root.name.replace("images", "labels"))


def is_numbered(root: Path, channels: Iterable[int]) -> bool:
    """Whether every file is one channel of a case, as nnU-Net names them: then no label map is called as an image is."""
    known = set(channels)
    training = next((folder / TRAINING for folder in (root, root.parent) if (folder / TRAINING).is_dir()), root)
    images, labels = folders_of(training)
    names = nifti_files(images)
    if labels.is_dir() and labels != images and names.keys() & nifti_files(labels).keys():
        return False
    return all((parts := NUMBERED.fullmatch(name)) is not None and int(parts[2]) in known for name in names)


def vocabulary_of(root: Path, subjects: Sequence[Subject]) -> Vocabulary:
    """The ids of dataset.json: those of the labels, or of all that the regions hold; its ignore label is read as background."""
    del subjects
    described = description_of(root)
    return ANY if described is None else vocabulary_in(described[1], ANY.name)


def remarks(root: Path, subjects: Sequence[Subject]) -> list[str]:
    """Where dataset.json counts other training cases than are there."""
    described = description_of(root)
    told = None if described is None or not (root / TRAINING).is_dir() else described[1].get("numTraining")
    return [f"{DESCRIPTION} tells of {told} training cases, {len(subjects)} are there"] if told not in (None, len(subjects)) else []


FILES = "{imagesTr/<case>_0000.nii.gz,labelsTr/<case>.nii.gz,dataset.json}"
NNUNET = register(Layout("nnunet", FILES, ANY, find, vocabulary_of=vocabulary_of, descriptions=(DESCRIPTION,), remarks=remarks))
