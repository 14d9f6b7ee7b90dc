"""Layouts: how folders and files are named. One file each, registered under the name that a recipe uses; see README.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit3d.datasets.subject import Dataset, Subject
from mergekit3d.datasets.vocabulary import Vocabulary
from mergekit3d.registry import Registry


@dataclass(frozen=True)
class Layout:
    """One way to lay out subjects in a folder, or in a list of files.

    Args:
        name: the recipe's ``layout``.
        files: the pattern of its files, for error texts and help.
        vocabulary: label ids that may occur.
        find: root -> its subjects, in any order; none where the folder is of another layout. Images are listed, not opened.
        vocabulary_of: root, its subjects -> the label ids that may occur, where the data set itself tells them.
        automatic: whether ``layout: auto`` asks it; not where another layout has the same files.
        descriptions: names of files in the root, or beside it, without which the data set cannot be read.
        suffixes: of the file, where the data set is a list rather than a folder; in lower case.
        write: subjects of a data set -> the list of them, with paths below its folder; lists alone have it.
        remarks: root, its subjects -> what is missing or odd in the data set as a whole.
    """

    name: str
    files: str
    vocabulary: Vocabulary
    find: Callable[[Path], list[Subject]]
    vocabulary_of: Callable[[Path, Sequence[Subject]], Vocabulary] | None = None
    automatic: bool = True
    descriptions: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    write: Callable[[Dataset, Path], str] | None = None
    remarks: Callable[[Path, Sequence[Subject]], list[str]] | None = None


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


def list_suffixes() -> tuple[str, ...]:
    """The suffixes of data lists."""
    return tuple(suffix for _, layout in LAYOUTS.items() for suffix in layout.suffixes)


def _load() -> None:
    from mergekit3d.datasets.layouts import (  # noqa: F401  importing registers
        bids,
        brats2018,
        brats2023,
        datalist,
        decathlon,
        hcp,
        nnunet,
        plain,
        table,
    )


_load()
