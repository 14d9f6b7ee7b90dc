"""Layouts: how folders and files are named. One file each, registered under the name that a recipe uses; see README.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mergekit3d.datasets.subject import Subject
from mergekit3d.datasets.vocabulary import Vocabulary
from mergekit3d.registry import Registry


@dataclass(frozen=True)
class Layout:
    """One way to lay out subjects in a folder.

    Args:
        name: the recipe's ``layout``.
        files: the pattern of its files, for error texts and help.
        vocabulary: label ids that may occur.
        find: root -> its subjects, in any order; none where the folder is of another layout. Images are listed, not opened.
        vocabulary_of: root -> the label ids that may occur, where the data set itself tells them.
        automatic: whether ``layout: auto`` asks it; not where another layout has the same files.
        descriptions: names of files in the root, or beside it, without which the data set cannot be read.
    """

    name: str
    files: str
    vocabulary: Vocabulary
    find: Callable[[Path], list[Subject]]
    vocabulary_of: Callable[[Path], Vocabulary] | None = None
    automatic: bool = True
    descriptions: tuple[str, ...] = ()


LAYOUTS: Registry[Layout] = Registry("layout")


def register(layout: Layout) -> Layout:
    """Add a layout to the registry under its own name."""
    return LAYOUTS.register(layout.name)(layout)


def folders(root: Path) -> Iterator[Path]:
    """The folders in `root`, sorted by name, hidden ones left out."""
    return (path for path in sorted(root.iterdir()) if not path.name.startswith(".") and path.is_dir())


def nifti_files(folder: Path) -> dict[str, Path]:
    """Name without ``.nii`` or ``.nii.gz`` -> file, hidden ones left out; ``.nii.gz`` wins where both are there."""
    found = {}
    for suffix in (".nii", ".nii.gz"):
        for path in sorted(folder.iterdir()):
            if path.name.endswith(suffix) and not path.name.startswith("."):
                found[path.name.removesuffix(suffix)] = path
    return found


def _load() -> None:
    from mergekit3d.datasets.layouts import bids, brats2018, brats2023, hcp, nnunet, plain  # noqa: F401  importing registers


_load()
