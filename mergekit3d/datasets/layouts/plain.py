"""Plain subject folders, as the paper's authors keep them: one file a modality, named after it."""

from __future__ import annotations

from pathlib import Path

from mergekit3d.datasets.layouts import Layout, folders, nifti_files, register
from mergekit3d.datasets.subject import MODALITY_ALIASES, Subject, canonical_modality
from mergekit3d.datasets.vocabulary import SMALL

LABEL_NAMES = ("truth", "seg", "label", "labels", "segmentation")


def find(root: Path) -> list[Subject]:
    """Folders that hold at least one file named after a modality; other names in them count as modalities of their own."""
    return [subject for folder in folders(root) if (subject := _subject(folder)) is not None]


def _subject(folder: Path) -> Subject | None:
    files = {name.lower(): path for name, path in nifti_files(folder).items()}
    label = next((files[name] for name in LABEL_NAMES if name in files), None)
    images: dict[str, Path] = {}
    for name, path in files.items():
        if name not in LABEL_NAMES:
            images.setdefault(canonical_modality(name), path)
    if not images.keys() & set(MODALITY_ALIASES.values()):
        return None
    return Subject(folder.name, images, label)


PLAIN = register(Layout("plain", "<subject>/{t1,t1ce,t2,flair,truth}.nii.gz", SMALL, find))
