"""Lists of files, whatever they are written in: paths from the list's own folder, names of subjects, every problem at once."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergekit3d.datasets.subject import MODALITY_ALIASES, Channel, Subject, canonical_modality
from mergekit3d.errors import InputError, ProblemCollector

KNOWN = frozenset(MODALITY_ALIASES.values()) | {"adc", "ct", "dwi", "pd", "pet", "swi"}
"""Modalities that a file's name or a column's is taken for; any other name has to be given in so many words."""
LABEL_NAMES = ("label", "truth", "seg", "segmentation", "labels", "mask")
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("unlabelled", "unlabeled"), "unlabelled"),
}
"""What lists and folders call the parts of a data set -> what it is called here."""
SHOWN, MOST_PROBLEMS = 8, 20
"""Missing files, and problems of all kinds, that are told one by one."""


@dataclass(frozen=True)
class Entry:
    """One subject of a list.

    Args:
        where: its place in the list, for errors ("line 3").
        images: modality -> file, as the list writes it.
        label: the same of the label map.
        name: of the subject; left out: told by its files.
        channels: as in `Subject`.
        part: as in `Subject`.
        fold: as in `Subject`.
    """

    where: str
    images: Mapping[str, str]
    label: str | None = None
    name: str | None = None
    channels: Mapping[str, Channel] = field(default_factory=dict)
    part: str | None = None
    fold: int | None = None


def subjects_of(path: Path, entries: Sequence[Entry], problems: ProblemCollector) -> list[Subject]:
    """The subjects of a list. As in recipes, relative paths start at the list's own folder, and others may be anywhere.

    Args:
        path: the list.
        entries: its subjects.
        problems: what is wrong with the list already.

    Raises:
        InputError: a file is not there, or a subject stands twice; `Problems` where several are wrong.
    """
    # Path.expanduser raises where there is no such user.
    files = {(entry.where, text): path.parent / os.path.expanduser(text) for entry in entries for text in _files(entry)}  # noqa: PTH111
    _check_files(path, files, problems)
    names = _names(entries)
    seen: dict[str, str] = {}
    for entry, name in zip(entries, names, strict=True):
        for key in (f"subject {name}", *(os.path.normpath(files[entry.where, text]) for text in entry.images.values())):
            if seen.setdefault(key, entry.where) != entry.where:
                found, todo = f"the same in {seen[key]}", "remove one of them"
                problems.add(InputError("a subject stands twice in the list", where=f"{path}, {entry.where}", found=found, todo=todo))
                break
    if len(problems.problems) > MOST_PROBLEMS:
        others = len(problems.problems) - MOST_PROBLEMS
        problems.problems[MOST_PROBLEMS:] = [InputError("further problems in the list", where=path, found=f"{others} others")]
    problems.raise_if_any()
    return [
        Subject(
            name,
            {modality: files[entry.where, text] for modality, text in entry.images.items()},
            None if entry.label is None else files[entry.where, entry.label],
            dict(entry.channels),
            entry.part,
            entry.fold,
        )
        for entry, name in zip(entries, names, strict=True)
    ]


def modality_in(text: str) -> str | None:
    """The one modality that the name of a file tells; None where it tells none, or several."""
    return _told(text)[0]


def can_name(text: str) -> bool:
    """Whether a text can be the name of a subject, and so of its files."""
    return text not in ("", ".", "..") and "/" not in text and "\0" not in text and not text.startswith(".")


def relative(path: Path, folder: Path) -> str:
    """A path as a list in `folder` writes it."""
    return path.relative_to(folder).as_posix()


def _files(entry: Entry) -> list[str]:
    return [*entry.images.values(), *([] if entry.label is None else [entry.label])]


def _check_files(path: Path, files: Mapping[tuple[str, str], Path], problems: ProblemCollector) -> None:
    missing = [(where, text) for (where, text), file in files.items() if not file.is_file()]
    if len(missing) > SHOWN and len(missing) == len(files):
        todo = f"put the list into the folder that its paths start at; the first is {missing[0][1]}"
        problems.add(InputError("none of the files of the list is there", where=path, found=f"{len(files)} missing", todo=todo))
        return
    for where, text in missing[:SHOWN]:
        problems.add(InputError("no such file", where=f"{path}, {where}", found=text))
    if len(missing) > SHOWN:
        problems.add(InputError("no such files", where=path, found=f"{len(missing) - SHOWN} others missing"))


def _names(entries: Sequence[Entry]) -> list[str]:
    """Names given, or the shortest ends of the paths of the images, without their modality, that tell all subjects apart."""
    ends = []
    for entry in entries:
        file = Path(next(iter(entry.images.values())))
        base = _told(file.name)[1] if not entry.channels else _stem(file.name)
        above = [part for part in file.parts[:-1] if part not in (".", "..", file.anchor)]
        ends.append([*above, *([base] if base else [])] or [_stem(file.name)])
    names = [ends[-1] for ends in ends]
    for length in range(2, max(map(len, ends), default=0) + 1):
        common = {name for name, count in Counter(names).items() if count > 1}
        names = ["_".join(end[-length:]) if name in common else name for name, end in zip(names, ends, strict=True)]
    return [name if entry.name is None else entry.name for name, entry in zip(names, entries, strict=True)]


def _told(text: str) -> tuple[str | None, str]:
    """The modality that a file's name tells, and the name without it."""
    stem = _stem(Path(text).name)
    tokens = [(match.start(), match.end()) for match in re.finditer(r"[A-Za-z0-9]+", stem)]
    found: dict[str, tuple[int, int]] = {}
    taken = 0
    for number, (start, end) in enumerate(tokens):
        longer = tokens[number + 1][1] if number + 1 < len(tokens) else end
        for stop in (longer, end):
            modality = canonical_modality(stem[start:stop])
            if start >= taken and modality in KNOWN:
                found[modality], taken = (start, stop), stop
                break
    last = next((modality for modality, (_, stop) in found.items() if stop == len(stem)), None)
    if last is None and len(found) != 1:
        return None, stem
    told = last or next(iter(found))
    start, stop = found[told]
    return told, re.sub(r"[-_. ]+$", "", stem[:start]) + (stem[stop:] if start else re.sub(r"^[-_. ]+", "", stem[stop:]))


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".nii")
