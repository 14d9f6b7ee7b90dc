"""nnU-Net's raw data sets: images in one folder, a number for each channel, whose names dataset.json tells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit3d.datasets.layouts import Layout, nifti_files, register
from mergekit3d.datasets.subject import Subject, canonical_modality
from mergekit3d.datasets.vocabulary import Vocabulary
from mergekit3d.textfiles import read_json_object

DESCRIPTION = "dataset.json"
TRAINING, LABELS = "imagesTr", "labelsTr"
ANY = Vocabulary("nnU-Net", range(65536))


def find(root: Path) -> list[Subject]:
    """The cases of imagesTr; or of the folder itself, where dataset.json stands beside it (imagesTs)."""
    described = _described(root)
    if described is None:
        return []
    channels = {int(number): canonical_modality(str(name)) for number, name in described["channel_names"].items() if number.isdecimal()}
    if (root / TRAINING).is_dir():
        images, labels = root / TRAINING, root / LABELS
    else:
        images, labels = root, root.with_name(root.name.replace("images", "labels"))
    masks = nifti_files(labels) if labels.is_dir() else {}
    cases: dict[str, dict[str, Path]] = {}
    for name, path in nifti_files(images).items():
        case, separator, number = name.rpartition("_")
        if separator and re.fullmatch(r"\d{4}", number) and int(number) in channels:
            cases.setdefault(case, {})[channels[int(number)]] = path
    return [Subject(case, files, masks.get(case)) for case, files in cases.items()]


def vocabulary_of(root: Path) -> Vocabulary:
    """The ids of dataset.json: those of the labels, or of all that the regions hold; its ignore label is read as background."""
    described = _described(root)
    labels = described.get("labels") if described is not None else None
    if not isinstance(labels, dict):
        return ANY
    ids = {0}
    for name, value in labels.items():
        ids |= set() if name == "ignore" else set(_ids(value))
    ignored = {label: 0 for label in _ids(labels.get("ignore", [])) if label not in ids}
    return Vocabulary(ANY.name, frozenset(ids | ignored.keys()), merged=ignored)


def _ids(value: Any) -> list[int]:
    return [label for label in (value if isinstance(value, list) else [value]) if isinstance(label, int) and not isinstance(label, bool)]


def _described(root: Path) -> Mapping[str, Any] | None:
    """dataset.json with channel names, in the folder or beside it."""
    beside = root.name.startswith("images")
    path = next((folder / DESCRIPTION for folder in (root, *([root.parent] if beside else [])) if (folder / DESCRIPTION).is_file()), None)
    if path is None:
        return None
    content = read_json_object(path, "the description of the data set")
    return content if isinstance(content.get("channel_names"), dict) else None


FILES = "{imagesTr/<case>_0000.nii.gz,labelsTr/<case>.nii.gz,dataset.json}"
NNUNET = register(Layout("nnunet", FILES, ANY, find, vocabulary_of=vocabulary_of, descriptions=(DESCRIPTION,)))
