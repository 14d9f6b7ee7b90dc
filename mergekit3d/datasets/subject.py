"""What a data set is: subjects with images by modality, and perhaps a label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mergekit3d.checkpoints.modalities import MODALITY_ALIASES, canonical_modality
from mergekit3d.datasets.vocabulary import Vocabulary
from mergekit3d.volumes.nifti import Channel

__all__ = ["MODALITY_ALIASES", "Channel", "Dataset", "Subject", "canonical_modality"]


@dataclass(frozen=True)
class Subject:
    """The files of one person at one time.

    Args:
        name: unique within the data set; outputs are named after it.
        images: canonical modality name -> file.
        label: the label map; None where there is none.
        channels: of the modalities that share a 4D file, which of its volumes they are.
        part: train, validation, test or unlabelled, where the data set itself tells.
        fold: of a cross-validation, where the data set itself tells.
        number: its place in the data set, from 1; 0: in none yet.
    """

    name: str
    images: Mapping[str, Path]
    label: Path | None
    channels: Mapping[str, Channel] = field(default_factory=dict)
    part: str | None = None
    fold: int | None = None
    number: int = 0

    @property
    def called(self) -> str:
        """What messages call it, since its name and the paths of its files may be a patient's."""
        return f"subject {self.number}"

    def of(self, modalities: Sequence[str]) -> Subject:
        """The same subject with these modalities alone, in this order; it has all of them."""
        channels = {modality: self.channels[modality] for modality in modalities if modality in self.channels}
        return replace(self, images={modality: self.images[modality] for modality in modalities}, channels=channels)


@dataclass(frozen=True)
class Dataset:
    """The subjects of one folder, or of one list.

    Args:
        root: the folder; that of the list.
        layout: name of the layout that found them.
        subjects: sorted by name; those without a number take their place as it.
        vocabulary: label ids that may occur in this layout.
        descriptions: files beside the images without which the data set cannot be read.
        remarks: what is missing or odd in the data set as a whole.
    """

    root: Path
    layout: str
    subjects: tuple[Subject, ...]
    vocabulary: Vocabulary
    descriptions: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        numbered = (subject if subject.number else replace(subject, number=place) for place, subject in enumerate(self.subjects, 1))
        object.__setattr__(self, "subjects", tuple(numbered))
