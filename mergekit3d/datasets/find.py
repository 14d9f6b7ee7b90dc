"""From a folder to subjects that can be used: the layout told by what is there, every problem of every subject at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mergekit3d.datasets.layouts import LAYOUTS, Layout
from mergekit3d.datasets.subject import Dataset, Subject, canonical_modality
from mergekit3d.errors import InputError, MergeKit3DError, ProblemCollector, Problems
from mergekit3d.registry import did_you_mean

AUTO = "auto"
SHOWN_NAMES = 4


def find_dataset(root: Path | str, layout: str = AUTO) -> Dataset:
    """The subjects in a folder.

    Args:
        root: the folder.
        layout: name of a layout, or auto: the one that finds subjects.

    Raises:
        InputError: no such folder, no subjects, two layouts find some, or two subjects share a name.
        UsageError: no layout has that name.
    """
    root = Path(root)
    known = [(name, candidate) for name, candidate in LAYOUTS.items() if candidate.automatic]
    candidates = known if layout == AUTO else [(layout, LAYOUTS.get(layout))]
    try:
        if not root.is_dir():
            raise InputError("no such folder" if not root.exists() else "not a folder", where=root)
        found = [(candidate, subjects) for _, candidate in candidates if (subjects := candidate.find(root))]
    except OSError as error:
        raise InputError("cannot read the data folder", where=root, found=(error.strerror or type(error).__name__).lower()) from error
    if not found:
        raise _no_subjects(root, [candidate for _, candidate in candidates])
    if len(found) > 1:
        counts = " and ".join(f"{len(subjects)} subjects in the layout {candidate.name}" for candidate, subjects in found)
        raise InputError(
            "the data folder fits two layouts", where=root, found=counts, todo="name the layout (layout: in the recipe, or --layout)"
        )
    chosen, subjects = found[0]
    twice = sorted(name for name, count in Counter(subject.name for subject in subjects).items() if count > 1)
    if twice:
        raise InputError("two subjects share a name", where=root, found=", ".join(twice), todo="rename one of each")
    vocabulary = chosen.vocabulary if chosen.vocabulary_of is None else chosen.vocabulary_of(root)
    places = [[folder / name for folder in (root, root.parent) if (folder / name).is_file()] for name in chosen.descriptions]
    descriptions = tuple(found_at[0] for found_at in places if found_at)
    return Dataset(root, chosen.name, tuple(sorted(subjects, key=lambda subject: subject.name)), vocabulary, descriptions)


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
    subjects = []
    for subject in dataset.subjects:
        before = len(problems.problems)
        _check_files(subject, [modality for modality in wanted if modality not in absent], need_labels, problems)
        if len(problems.problems) == before and not absent:
            subjects.append(Subject(subject.name, {modality: subject.images[modality] for modality in wanted}, subject.label))
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
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError("unknown subjects", found=", ".join(unknown[:4]), todo=f"the data set has {len(known)} others")
    return [known[name] for name in dict.fromkeys(names)]


def _check_files(subject: Subject, modalities: Sequence[str], need_labels: bool, problems: ProblemCollector) -> None:
    missing = [modality for modality in modalities if modality not in subject.images]
    if missing:
        problems.add(
            InputError(
                "a subject lacks a modality",
                where=f"subject {subject.name}",
                wanted=", ".join(modalities),
                found=", ".join(subject.images) or "none",
                todo=f"add {', '.join(missing)}, or leave the subject out of the folder",
            )
        )
    if need_labels and subject.label is None:
        problems.add(
            InputError("a subject has no label map", where=f"subject {subject.name}", todo="add it, or leave the subject out of the folder")
        )
    files = [subject.images[modality] for modality in modalities if modality in subject.images]
    for path in [*files, *([subject.label] if need_labels and subject.label is not None else [])]:
        if not path.is_file():
            problems.add(InputError("not a regular file", where=path, found="a broken link, a folder, a pipe or a device"))


def _no_subjects(root: Path, candidates: Sequence[Layout]) -> InputError:
    entries = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    seen = ", ".join(entries[:SHOWN_NAMES]) + (f" and {len(entries) - SHOWN_NAMES} more" if len(entries) > SHOWN_NAMES else "")
    return InputError(
        "no subjects in the data folder",
        where=root,
        wanted=" or ".join(f"{candidate.files} ({candidate.name})" for candidate in candidates),
        found=seen or "an empty folder",
        todo="pass the folder that holds the subjects' folders",
    )
