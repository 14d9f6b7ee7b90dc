"""What a data set is: subjects with images by modality, and perhaps a label map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergekit3d.checkpoints.modalities import MODALITY_ALIASES, canonical_modality
from mergekit3d.datasets.vocabulary import Vocabulary

__all__ = ["MODALITY_ALIASES", "Dataset", "Subject", "canonical_modality"]


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
        descriptions: files beside the images without which the data set cannot be read.
    """

    root: Path
    layout: str
    subjects: tuple[Subject, ...]
    vocabulary: Vocabulary
    descriptions: tuple[Path, ...] = ()
