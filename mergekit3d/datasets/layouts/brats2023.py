"""BraTS from 2023 on: other names of files, and enhancing tumour is label 3; from 2024 on, label 4 is the resection cavity."""

from __future__ import annotations

from pathlib import Path

from mergekit3d.datasets.layouts import Layout, folders, register
from mergekit3d.datasets.layouts.brats2018 import subject_of
from mergekit3d.datasets.subject import Subject
from mergekit3d.datasets.vocabulary import BRATS2023, BRATS2024

FILES = "<subject>/<subject>-{t1n,t1c,t2w,t2f,seg}.nii.gz"


def find(root: Path) -> list[Subject]:
    """Folders whose files start with the folder's own name and a hyphen."""
    return [subject for folder in folders(root) if (subject := subject_of(folder, "-")) is not None]


BRATS2023_LAYOUT = register(Layout("brats2023", FILES, BRATS2023, find))
# The same files: nothing but the year tells whether a 4 may occur, so that it is never taken without being named.
BRATS2024_LAYOUT = register(Layout("brats2024", FILES, BRATS2024, find, automatic=False))
