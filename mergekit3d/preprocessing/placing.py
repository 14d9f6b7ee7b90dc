"""Where a subject's files belong, and how they get there whole."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from mergekit3d.datasets.subject import Dataset, Subject
from mergekit3d.errors import UsageError
from mergekit3d.preprocessing.correction import LABEL
from mergekit3d.storage.atomic import move_into_place


@dataclass(frozen=True)
class Place:
    """The place of one subject in the output.

    Args:
        number: of the subject, from 1.
        subject: its input files.
        files: modality, or label -> the path below the data set's folder, in the input as in the output.
        folder: the outermost folder, below the data set's, that holds nothing but this subject; None: there is none.
    """

    number: int
    subject: Subject
    files: Mapping[str, Path]
    folder: Path | None

    def others(self, out: Path) -> list[Path]:
        """What else lies in the subject's folder in the output, hidden files aside: it would go with the folder."""
        if self.folder is None or not (out / self.folder).is_dir():
            return []
        own = {out / path for path in self.files.values()}
        there = (path for path in sorted((out / self.folder).rglob("*")) if not path.name.startswith(".") and path not in own)
        return [path for path in there if path.is_symlink() or not path.is_dir()]

    def fill(self, finished: Path, out: Path, spare: Path) -> None:
        """Move finished files into their place: the folder as a whole where the subject has one, else images first and labels last.

        Args:
            finished: the folder that holds them under the same relative paths.
            out: the folder of the data set.
            spare: a free name in the same file system, for what stood there.

        Raises:
            OutputError: the file system refused.
        """
        if self.folder is None:
            # Several modalities may lie in one file.
            for path in dict.fromkeys(self.files[name] for name in sorted(self.files, key=lambda name: (name == LABEL, name))):
                move_into_place(finished / path, out / path)
        else:
            if (out / self.folder).exists():
                move_into_place(out / self.folder, spare)
            move_into_place(finished / self.folder, out / self.folder)
        with suppress(OSError):
            shutil.rmtree(spare, ignore_errors=True)
            shutil.rmtree(finished, ignore_errors=True)


def places(dataset: Dataset, subjects: Sequence[Subject]) -> list[Place]:
    """The place of each subject: that of its files in the data set.

    Args:
        dataset: where the subjects come from; they are numbered by their place in it.
        subjects: some of them.

    Raises:
        UsageError: a file belongs to two images, or lies outside of the folder.
    """
    numbers = {subject.name: subject.number for subject in dataset.subjects}
    files = {subject.name: _relative(dataset.root, subject, numbers[subject.name]) for subject in dataset.subjects}
    owners: dict[PurePath, set[str]] = {}
    for name, own in files.items():
        for path in own.values():
            for folder in list(path.parents)[:-1]:
                owners.setdefault(folder, set()).add(name)
    result = []
    for subject in subjects:
        above = [set(list(path.parents)[:-1]) for path in files[subject.name].values()]
        shared = [folder for folder in set.intersection(*above) if owners[folder] == {subject.name}]
        outermost = min(shared, key=lambda folder: len(folder.parts), default=None)
        result.append(Place(numbers[subject.name], subject, files[subject.name], outermost))
    return result


def _relative(root: Path, subject: Subject, number: int) -> dict[str, Path]:
    paths = {**subject.images, **({} if subject.label is None else {LABEL: subject.label})}
    relative = {}
    for name, path in paths.items():
        if not path.is_relative_to(root) or ".." in path.relative_to(root).parts:
            raise UsageError(
                "a file lies outside of the data folder", where=f"subject {number}, {name}", todo="pass the folder that holds all"
            )
        relative[name] = path.relative_to(root)
    own = [path for name, path in relative.items() if name not in subject.channels]
    if len(set(relative.values())) < len(own) + len({relative[name] for name in subject.channels}):
        raise UsageError(
            "several images in one file cannot be preprocessed", where=f"subject {number}", todo="split it into one file a modality"
        )
    return relative
