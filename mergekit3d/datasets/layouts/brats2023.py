"""BraTS from 2023 on: other names of files, and enhancing tumour is label 3; from 2024 on, label 4 is the resection cavity."""

from __future__ import annotations

from pathlib import Path

from mergekit3d.datasets.layouts import Layout, folders, nifti_files, register
from mergekit3d.datasets.subject import MODALITY_ALIASES, Subject, canonical_modality
from mergekit3d.datasets.vocabulary import BRATS2023, BRATS2024

LABEL_NAME = "seg"
FILES = "<subject>/<subject>-{t1n,t1c,t2w,t2f,seg}.nii.gz"


def find(root: Path) -> list[Subject]:
    """Folders whose files start with the folder's own name and a hyphen."""
    return [subject for folder in folders(root) if (subject := _subject(folder)) is not None]


def _subject(folder: Path) -> Subject | None:
    prefix = f"{folder.name}-"
    files = {name.removeprefix(prefix).lower(): path for name, path in nifti_files(folder).items() if name.startswith(prefix)}
    images: dict[str, Path] = {}
    for name, path in files.items():
        if canonical_modality(name) in MODALITY_ALIASES.values():
            images.setdefault(canonical_modality(name), path)
    return Subject(folder.name, images, files.get(LABEL_NAME)) if images else None


BRATS2023_LAYOUT = register(Layout("brats2023", FILES, BRATS2023, find))
# The same files: nothing but the year tells whether a 4 may occur, so that it is never taken without being named.
BRATS2024_LAYOUT = register(Layout("brats2024", FILES, BRATS2024, find, automatic=False))
