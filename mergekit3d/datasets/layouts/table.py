"""Lists as CSV or TSV: a subject a line, a modality a column."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergekit3d.datasets.descriptions import vocabulary_of_names
from mergekit3d.datasets.layouts import Layout, register
from mergekit3d.datasets.listing import KNOWN, LABEL_NAMES, PARTS, Entry, can_name, relative, subjects_of
from mergekit3d.datasets.subject import Dataset, Subject, canonical_modality
from mergekit3d.datasets.vocabulary import SMALL, Vocabulary
from mergekit3d.errors import InputError, ProblemCollector
from mergekit3d.registry import did_you_mean
from mergekit3d.textfiles import read_csv
from mergekit3d.volumes.nifti import SUFFIXES

SUBJECT, LABEL, SPLIT, FOLD = "subject", "label", "split", "fold"
WHAT = "the list of subjects"
Line = tuple[int, Mapping[str, str]]


def find(root: Path) -> list[Subject]:
    """The subjects of a table with the column ``subject``, a column for each modality, and perhaps ``label``, ``split`` and ``fold``."""
    lines = read_csv(root, WHAT, [SUBJECT], delimiters=",\t;", any_case=True)
    problems = ProblemCollector()
    modalities, label = _columns(root, lines, problems)
    entries = [entry for number, cells in lines if (entry := _entry(root, number, cells, modalities, label, problems)) is not None]
    return subjects_of(root, entries, problems)


def _columns(root: Path, lines: Sequence[Line], problems: ProblemCollector) -> tuple[dict[str, str], str | None]:
    """Modality -> its column, and the column of the label maps."""
    names = list(lines[0][1]) if lines else []
    label = next((name for name in names if name in LABEL_NAMES), None)
    modalities: dict[str, str] = {}
    for name in names:
        modality = canonical_modality(name)
        if name in (SUBJECT, label, SPLIT, FOLD):
            continue
        if modality not in KNOWN:
            # Age, site and the like do no harm.
            if any(cells[name].lower().endswith(SUFFIXES) for _, cells in lines):
                hint = did_you_mean(name, [*KNOWN, LABEL])
                problems.add(InputError("unknown column of images in the list", where=f"{root}, line 1", found=name, todo=hint))
        elif modality in modalities:
            found = f"{modalities[modality]} and {name}"
            problems.add(InputError("two columns are of one modality", where=f"{root}, line 1", found=found, todo="remove one"))
        else:
            modalities[modality] = name
    if not modalities and lines:
        wanted = "a column a modality, such as t1, t1ce, t2, flair"
        problems.add(InputError(f"cannot read {WHAT}", where=f"{root}, line 1", wanted=wanted, found=", ".join(names)))
    problems.raise_if_any()
    return modalities, label


def _entry(
    root: Path, number: int, cells: Mapping[str, str], modalities: Mapping[str, str], label: str | None, problems: ProblemCollector
) -> Entry | None:
    """The subject of a line; None where something is wrong with it."""
    where = f"{root}, line {number}"
    empty = [name for name in (SUBJECT, *modalities.values()) if not cells[name]]
    if empty:
        problems.add(InputError("an empty cell in the list", where=where, found=", ".join(empty), todo="fill it, or remove the line"))
        return None
    part, fold = cells.get(SPLIT, ""), cells.get(FOLD, "")
    if part and part.lower() not in PARTS:
        problems.add(InputError("unknown part in the list", where=where, wanted="train, validation, test or unlabelled", found=part))
    if fold and not fold.isdecimal():
        problems.add(InputError("no number of a fold in the list", where=where, wanted="0, 1 ...", found=fold))
    if not can_name(cells[SUBJECT]):
        problems.add(InputError("no name for a subject", where=where, wanted="one that can name a file", found=cells[SUBJECT]))
    images = {modality: cells[name] for modality, name in modalities.items()}
    truth = cells[label] or None if label is not None else None
    folded = int(fold) if fold.isdecimal() else None
    return Entry(f"line {number}", images, truth, cells[SUBJECT], part=PARTS.get(part.lower()), fold=folded)


def vocabulary_of(root: Path, subjects: Sequence[Subject]) -> Vocabulary:
    """Small ids or FreeSurfer's, unless the subjects' names tell a year of BraTS."""
    del root
    return vocabulary_of_names([subject.name for subject in subjects], VOCABULARY)


def write(dataset: Dataset, path: Path) -> str:
    """The table of a data set whose files lie below its folder."""
    modalities = list(dict.fromkeys(modality for subject in dataset.subjects for modality in subject.images))
    columns: dict[str, list[str | int | None]] = {
        LABEL: [None if subject.label is None else relative(subject.label, dataset.root) for subject in dataset.subjects],
        SPLIT: [subject.part for subject in dataset.subjects],
        FOLD: [subject.fold for subject in dataset.subjects],
    }
    kept = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", lineterminator="\n")
    writer.writerow([SUBJECT, *modalities, *kept])
    for number, subject in enumerate(dataset.subjects):
        images = [relative(subject.images[modality], dataset.root) for modality in modalities]
        writer.writerow([subject.name, *images, *(values[number] for values in kept.values())])
    return text.getvalue()


VOCABULARY = SMALL
FILES = "<list>.csv or .tsv: subject,t1,t1ce,t2,flair,label[,split]"
TABLE = register(Layout("csv", FILES, VOCABULARY, find, vocabulary_of=vocabulary_of, suffixes=(".csv", ".tsv"), write=write))
