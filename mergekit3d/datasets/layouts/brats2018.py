"""BraTS 2018, and the challenges up to 2021, which changed only the subjects' names: HGG and LGG folders, or all in one."""

from __future__ import annotations

from pathlib import Path

from mergekit3d.datasets.layouts import Layout, folders, nifti_files, register
from mergekit3d.datasets.subject import MODALITY_ALIASES, Subject, canonical_modality
from mergekit3d.datasets.vocabulary import BRATS

GRADES = ("HGG", "LGG")
LABEL_NAME = "seg"


def find(root: Path) -> list[Subject]:
    """Folders whose files start with the folder's own name, in `root` or in its HGG and LGG folders."""
    inside = [folder for grade in GRADES if (root / grade).is_dir() for folder in folders(root / grade)]
    return [subject for folder in [*folders(root), *inside] if (subject := subject_of(folder, "_")) is not None]


def subject_of(folder: Path, separator: str) -> Subject | None:
    """The subject of a folder whose files are its own name, a separator, and a modality or ``seg``; None where there is none."""
    prefix = f"{folder.name}{separator}"
    files = {name.removeprefix(prefix).lower(): path for name, path in nifti_files(folder).items() if name.startswith(prefix)}
    images: dict[str, Path] = {}
    for name, path in files.items():
        if canonical_modality(name) in MODALITY_ALIASES.values():
            images.setdefault(canonical_modality(name), path)
    return Subject(folder.name, images, files.get(LABEL_NAME)) if images else None


BRATS2018 = register(Layout("brats2018", "[HGG|LGG/]<subject>/<subject>_{t1,t1ce,t2,flair,seg}.nii.gz", BRATS, find))
