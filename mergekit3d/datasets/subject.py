"""What a data set is: subjects with images by modality, and perhaps a label map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergekit3d.datasets.vocabulary import Vocabulary

MODALITY_ALIASES = {
    "t1w": "t1",
    "t1n": "t1",
    "t1gd": "t1ce",
    "t1c": "t1ce",
    "t1post": "t1ce",
    "t2w": "t2",
    "t2f": "flair",
    "t2flair": "flair",
}


@dataclass(frozen=True)
class Subject:
    """The files of one person at one time.

    Args:
        name: unique within the data set; outputs are named after it.
        images: canonical modality name -> file.
        label: the label map; None where there is none.
    """

    name: str
    images: Mapping[str, Path]
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """The subjects of one folder.

    Args:
        root: the folder.
        layout: name of the layout that found them.
        subjects: sorted by name.
        vocabulary: label ids that may occur in this layout.
    """

    root: Path
    layout: str
    subjects: tuple[Subject, ...]
    vocabulary: Vocabulary


def canonical_modality(name: str) -> str:
    """The one name of a modality: lower case, without separators where an alias is known ("T1Gd" and "t1c" are "t1ce")."""
    lower = name.lower()
    plain = lower.replace("-", "").replace("_", "")
    if plain in MODALITY_ALIASES:
        return MODALITY_ALIASES[plain]
    return plain if plain in MODALITY_ALIASES.values() else lower
