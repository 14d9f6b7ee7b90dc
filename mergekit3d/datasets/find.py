"""From a folder to subjects that can be used: the layout told by what is there, every problem of every subject at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mergekit3d.datasets.layouts import LAYOUTS, Layout, folders, list_suffixes
from mergekit3d.datasets.listing import PARTS
from mergekit3d.datasets.split import refuse_unknown
from mergekit3d.datasets.subject import Dataset, Subject, canonical_modality
from mergekit3d.errors import InputError, MergeKit3DError, ProblemCollector, Problems
from mergekit3d.registry import did_you_mean

AUTO = "auto"
SHOWN_NAMES = 4


def find_dataset(root: Path | str, layout: str = AUTO) -> Dataset:
    """The subjects in a folder, or in a list of files.

    Args:
        root: the folder, perhaps of folders train, validation, test, unlabelled; or the list; ``list.json:test`` is one part of it alone.
        layout: name of a layout, or auto: the one that finds subjects.

    Raises:
        InputError: no such folder, no subjects, two layouts find some, or two subjects share a name.
        UsageError: no layout has that name.
    """
    root, part = part_of(Path(root))
    known = [candidate for _, candidate in LAYOUTS.items() if candidate.automatic]
    candidates = known if layout == AUTO else [LAYOUTS.get(layout)]
    try:
        if root.is_dir():
            candidates = [candidate for candidate in candidates if not candidate.suffixes]
        else:
            candidates = [candidate for candidate in candidates if root.name.lower().endswith(candidate.suffixes) and root.is_file()]
        if not candidates:
            raise _no_data(root, layout)
        found = [(candidate, subjects) for candidate in candidates if (subjects := candidate.find(root))]
        if not found and root.is_dir():
            # Layouts with a description tell training from test images themselves.
            within = [candidate for candidate in candidates if not candidate.descriptions]
            found = [(candidate, subjects) for candidate in within if (subjects := _in_folders(candidate, root))]
    except OSError as error:
        raise InputError("cannot read the data folder", where=root, found=(error.strerror or type(error).__name__).lower()) from error
    if not found:
        raise _no_subjects(root, candidates)
    if len(found) > 1:
        counts = " and ".join(f"{len(subjects)} subjects in the layout {candidate.name}" for candidate, subjects in found)
        raise InputError(
            "the data folder fits two layouts", where=root, found=counts, todo="name the layout (layout: in the recipe, or --layout)"
        )
    chosen, subjects = found[0]
    twice = sum(count > 1 for count in Counter(subject.name for subject in subjects).values())
    if twice:
        raise InputError("two subjects share a name", where=root, found=f"{twice} names more than once", todo="rename one of each")
    return _dataset(root, chosen, subjects if part is None else _in_part(root, subjects, part))


def _in_folders(layout: Layout, root: Path) -> list[Subject]:
    """The subjects in folders called train, validation, test and unlabelled, in one of which they are."""
    parts = [(folder, PARTS[folder.name.lower()]) for folder in folders(root) if folder.name.lower() in PARTS]
    return [replace(subject, part=part) for folder, part in parts for subject in layout.find(folder)]


def part_of(root: Path) -> tuple[Path, str | None]:
    """A path without the part of a list behind its last colon, and that part."""
    name, colon, part = root.name.rpartition(":")
    is_list = bool(colon) and name.lower().endswith(list_suffixes()) and part.lower() in PARTS and not root.exists()
    return (root.with_name(name), PARTS[part.lower()]) if is_list else (root, None)


def is_list(path: Path) -> bool:
    """Whether a path is named like a list of subjects, or like a part of one."""
    return part_of(path)[0].name.lower().endswith(list_suffixes())


def _dataset(root: Path, layout: Layout, subjects: Sequence[Subject]) -> Dataset:
    vocabulary = layout.vocabulary if layout.vocabulary_of is None else layout.vocabulary_of(root, subjects)
    places = [[folder / name for folder in (root, root.parent) if (folder / name).is_file()] for name in layout.descriptions]
    descriptions = tuple(found_at[0] for found_at in places if found_at)
    remarks = () if layout.remarks is None else tuple(layout.remarks(root, subjects))
    ordered = tuple(sorted(subjects, key=lambda subject: subject.name))
    if layout.suffixes:
        return Dataset(root.parent, layout.name, ordered, vocabulary, (root,), remarks)
    return Dataset(root, layout.name, ordered, vocabulary, descriptions, remarks)


def _in_part(root: Path, subjects: Sequence[Subject], part: str) -> list[Subject]:
    chosen = [subject for subject in subjects if subject.part == part]
    if not chosen:
        known = ", ".join(dict.fromkeys(subject.part for subject in subjects if subject.part is not None))
        raise InputError("no subjects in this part of the list", where=root, wanted=part, found=known or "a list without parts")
    return chosen


def select(dataset: Dataset, modalities: Sequence[str], *, need_labels: bool) -> tuple[Subject, ...]:
    """The subjects with exactly these modalities, in this order.

    Args:
        dataset: where to select from.
        modalities: names; aliases are understood.
        need_labels: whether every subject must have a label map.

    Raises:
        InputError: a modality, a label map or a file is missing; `Problems` where several are.
    """
    subjects, problems = usable(dataset, modalities, need_labels=need_labels)
    if problems:
        raise problems[0] if len(problems) == 1 else Problems(problems)
    return subjects


def usable(dataset: Dataset, modalities: Sequence[str], *, need_labels: bool) -> tuple[tuple[Subject, ...], list[MergeKit3DError]]:
    """The subjects with these modalities, in this order, and what keeps the others out.

    Args:
        dataset: where to select from.
        modalities: names; aliases are understood.
        need_labels: whether every subject must have a label map.

    Returns:
        Subjects, at least one; a problem, or several, of each of the others.

    Raises:
        InputError: no subject can be used; `Problems` where that has several reasons.
    """
    wanted = tuple(canonical_modality(modality) for modality in modalities)
    absent = [modality for modality in wanted if not any(modality in subject.images for subject in dataset.subjects)]
    known = sorted({modality for subject in dataset.subjects for modality in subject.images})
    problems = ProblemCollector()
    for modality in absent:
        problems.add(InputError("no subject has the modality", where=modality, todo=did_you_mean(modality, known)))
    unlabelled = [subject for subject in dataset.subjects if subject.label is None] if need_labels else []
    if len(unlabelled) > SHOWN_NAMES:
        problems.add(_no_labels(dataset, unlabelled))
    subjects = []
    for subject in dataset.subjects:
        before, told = len(problems.problems), need_labels and len(unlabelled) <= SHOWN_NAMES
        _check_files(subject, [modality for modality in wanted if modality not in absent], told, problems)
        lacks_labels = need_labels and subject.label is None
        if len(problems.problems) == before and not absent and not lacks_labels:
            subjects.append(subject.of(wanted))
    if not subjects:
        problems.raise_if_any()
    return tuple(subjects), problems.problems


def named(subjects: Sequence[Subject], names: Sequence[str] | None) -> list[Subject]:
    """The subjects of these names, in their order, each once; all where there are no names.

    Raises:
        InputError: a name that no subject has.
    """
    if names is None:
        return list(subjects)
    known = {subject.name: subject for subject in subjects}
    refuse_unknown(names, known)
    return [known[name] for name in dict.fromkeys(names)]


def _check_files(subject: Subject, modalities: Sequence[str], need_labels: bool, problems: ProblemCollector) -> None:
    missing = [modality for modality in modalities if modality not in subject.images]
    if missing:
        problems.add(
            InputError(
                "a subject lacks a modality",
                where=subject.called,
                wanted=", ".join(modalities),
                found=", ".join(subject.images) or "none",
                todo=f"add {', '.join(missing)}, or leave the subject out of the folder",
            )
        )
    if need_labels and subject.label is None:
        elsewhere = "take a part of the list that has them, such as LIST:train"
        todo = "leave the subject out of the folder" if subject.part is None else elsewhere
        problems.add(InputError("a subject has no label map", where=subject.called, todo=f"add it, or {todo}"))
    files = {modality: subject.images[modality] for modality in modalities if modality in subject.images}
    if need_labels and subject.label is not None:
        files["labels"] = subject.label
    for name, path in files.items():
        if not path.is_file():
            found = "a broken link, a folder, a pipe or a device"
            problems.add(InputError("not a regular file", where=f"{subject.called}, {name}", found=found))


def _no_labels(dataset: Dataset, unlabelled: Sequence[Subject]) -> InputError:
    """One line for many subjects without label maps."""
    parts = {subject.part for subject in unlabelled}
    labelled = sorted({subject.part for subject in dataset.subjects if subject.part is not None} - {part for part in parts if part})
    todo = "pass a folder with label maps"
    if None not in parts and labelled:
        todo = f"take a part of the list that has label maps, such as LIST:{labelled[0]}"
    found = f"{len(unlabelled)} of {len(dataset.subjects)} subjects have none"
    return InputError("label maps are needed here", where=dataset.root, found=found, todo=todo)


def _no_data(root: Path, layout: str) -> InputError:
    """The error of a path that no layout can be at."""
    if not root.exists():
        return InputError("no such list" if is_list(root) else "no such folder", where=root)
    if layout != AUTO:
        return InputError(
            f"not in the layout {layout}", where=root, wanted=LAYOUTS.get(layout).files, found="a folder" if root.is_dir() else "a file"
        )
    return InputError("not a folder", where=root, wanted=f"a folder of subjects, or a list of them ({', '.join(list_suffixes())})")


def _no_subjects(root: Path, candidates: Sequence[Layout]) -> InputError:
    todo = "pass the folder that holds the subjects' folders"
    if not root.is_dir():
        return InputError("no subjects in the list", where=root, wanted=" or ".join(candidate.files for candidate in candidates))
    entries = sorted(root.iterdir())
    if not entries:
        return InputError("no subjects in the data folder", where=root, found="an empty folder", todo=todo)
    lists = [path.name for path in entries if path.name.lower().endswith(list_suffixes())]
    # Kinds alone: names of folders and files may be patients'.
    kinds = Counter("folders" if path.is_dir() else f"{''.join(path.suffixes[-2:])} files".strip() for path in entries)
    seen = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common(SHOWN_NAMES))
    return InputError(
        "no subjects in the data folder",
        where=root,
        wanted=" or ".join(f"{candidate.files} ({candidate.name})" for candidate in candidates),
        found=seen,
        todo=f"{todo}, or the list of them ({lists[0]})" if lists else todo,
    )
