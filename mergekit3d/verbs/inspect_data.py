"""``mergekit3d inspect`` of a data folder: subjects, modalities, grids, labels, and what is missing or odd, by subject numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergekit3d.aligned import Table
from mergekit3d.datasets import Dataset, Subject, find_dataset
from mergekit3d.datasets.layouts import LAYOUTS, folders
from mergekit3d.datasets.layouts.nnunet import TRAINING
from mergekit3d.datasets.listing import PARTS
from mergekit3d.errors import InputError
from mergekit3d.verbs.inspect import InspectResult
from mergekit3d.volumes.nifti import ONLY, Grid, read_grid, read_labels
from mergekit3d.volumes.orientation import spacing_of
from mergekit3d.volumes.resample import same_grid

LABEL_MAPS = 16
"""Label maps that are read unless all are asked for: those of a large data set take minutes."""
THREADS = 4
SHOWN = 12
"""Rows of a table and remarks of a kind, so that all of it is one screen."""
SPACING_DECIMALS = 3


@dataclass(frozen=True)
class _Seen:
    """What the files of one subject hold.

    Args:
        number: of the subject, from 1.
        grids: by modality, and under "labels".
        labels: voxels by id; None where the label map was not read.
        remarks: what is missing or odd.
    """

    number: int
    grids: dict[str, Grid]
    labels: dict[int, int] | None
    remarks: list[str]


def inspect_data(root: Path, layout: str, *, values: bool, names: bool = False) -> InspectResult:
    """Show a data folder, or a list of subjects.

    Args:
        root: the folder or list.
        layout: its layout, or auto.
        values: read every label map; else the first `LABEL_MAPS`.
        names: tell the name of every subject beside its number, which messages call it by.

    Raises:
        InputError: no subjects are found.
    """
    dataset = find_dataset(root, layout)
    modalities = sorted({modality for subject in dataset.subjects for modality in subject.images})
    labelled = [subject.number for subject in dataset.subjects if subject.label is not None]
    read = set(labelled if values else labelled[:LABEL_MAPS])
    with ThreadPoolExecutor(THREADS) as pool:  # unpacking lets go of the interpreter's lock
        jobs = [(subject.number, subject, modalities, dataset, subject.number in read) for subject in dataset.subjects]
        seen = list(pool.map(lambda job: _look(*job), jobs))
    content = _content(dataset, modalities, labelled, seen) | {"further_folders": _further(dataset)}
    blocks = _blocks(root, content, len(labelled))
    if names:
        content["names"] = [subject.name for subject in dataset.subjects]
        rows = [(str(subject.number), subject.name) for subject in dataset.subjects]
        blocks += ["", Table(("subject", "name"), rows, right=frozenset({"subject"}))]
    return InspectResult(content, blocks)


def _look(number: int, subject: Subject, modalities: Sequence[str], dataset: Dataset, with_labels: bool) -> _Seen:
    remarks = [f"no {modality}" for modality in modalities if modality not in subject.images]
    others_have = any(other.label is not None for other in dataset.subjects)
    remarks += ["no label map"] if subject.label is None and subject.part is None and others_have else []
    grids: dict[str, Grid] = {}
    labels: dict[int, int] | None = None
    for name, path in [*subject.images.items(), *([("labels", subject.label)] if subject.label is not None else [])]:
        try:
            grids[name] = read_grid(path, channel=subject.channels.get(name, ONLY))
            if name == "labels" and with_labels:
                labels = _counts(path)
        except InputError as error:
            remarks.append(f"{name}: {_without_path(error)}")
    if grids:
        most = max(grids, key=lambda name: sum(_same(grids[name], other) for other in grids.values()))
        others = [name for name, other in grids.items() if not _same(grids[most], other)]
        remarks += [f"{', '.join(others)} on another grid than {most}"] if others else []
    foreign = [label for label in labels or () if label not in dataset.vocabulary.ids]
    if foreign:
        remarks.append(f"labels that {dataset.vocabulary.name} does not have: {', '.join(map(str, foreign[:SHOWN]))}")
    if labels is not None and not any(labels):
        remarks.append("no label but the background")
    return _Seen(number, grids, labels, remarks)


def _counts(path: Path) -> dict[int, int]:
    counts = np.bincount(read_labels(path).data.ravel())
    return {int(label): int(counts[label]) for label in np.flatnonzero(counts)}


def _further(dataset: Dataset) -> list[dict[str, Any]]:
    """Folders of more subjects beside those of imagesTr, which are data of their own."""
    layout = LAYOUTS.get(dataset.layout)
    if not layout.descriptions or not (dataset.root / TRAINING).is_dir():
        return []
    found = {path.name: layout.find(path) for path in folders(dataset.root) if path.name.startswith("images") and path.name != TRAINING}
    return [
        {"folder": name, "subjects": len(subjects), "labelled": sum(subject.label is not None for subject in subjects)}
        for name, subjects in found.items()
        if subjects
    ]


def _without_path(error: InputError) -> str:
    """The error without its place, which may be a patient's name."""
    wanted = f"wanted {error.wanted}, " if error.wanted is not None else ""
    return f"{error.failed}: {wanted}found {error.found}" if error.found is not None else error.failed


def _same(one: Grid, other: Grid) -> bool:
    return same_grid(one.canonical().shape, one.canonical().affine, other.canonical().shape, other.canonical().affine)


def _content(dataset: Dataset, modalities: Sequence[str], labelled: Sequence[int], seen: Sequence[_Seen]) -> dict[str, Any]:
    grids: Counter[tuple[tuple[int, ...], tuple[float, ...]]] = Counter()
    for one in seen:
        for grid in list(one.grids.values())[:1]:
            canonical = grid.canonical()
            grids[canonical.shape, tuple(round(edge, SPACING_DECIMALS) for edge in spacing_of(canonical.affine))] += 1
    read = [one for one in seen if one.labels is not None]
    parts = Counter(subject.part for subject in dataset.subjects if subject.part is not None)
    folds = Counter(subject.fold for subject in dataset.subjects if subject.fold is not None)
    ids = sorted({label for one in read for label in one.labels or ()})
    return {
        "layout": dataset.layout,
        "subjects": len(dataset.subjects),
        "modalities": {modality: sum(modality in subject.images for subject in dataset.subjects) for modality in modalities},
        "labelled": len(labelled),
        "parts": {part: parts[part] for part in dict.fromkeys(PARTS.values()) if part in parts},
        "folds": {str(fold): folds[fold] for fold in sorted(folds)},
        "grids": [{"shape": list(shape), "spacing_mm": list(spacing), "subjects": n} for (shape, spacing), n in grids.most_common()],
        "label_maps_read": len(read),
        "labels": {
            str(label): {
                "subjects": sum(label in (one.labels or ()) for one in read),
                "voxels": sum((one.labels or {}).get(label, 0) for one in read),
            }
            for label in ids
        },
        "remarks": list(dataset.remarks),
        "odd": [{"subject": one.number, "remarks": one.remarks} for one in seen if one.remarks],
    }


def _blocks(root: Path, content: dict[str, Any], labelled: int) -> list[str | Table]:
    total = content["subjects"]
    modalities = ", ".join(name if n == total else f"{name} ({n})" for name, n in content["modalities"].items())
    blocks: list[str | Table] = [
        f"{root}: {_subjects(total)} in the layout {content['layout']}, {labelled} with labels",
        f"modalities  {modalities}",
        *_divided(content),
        "",
        Table(
            ("grid", "spacing (mm)", "subjects"),
            [
                (" x ".join(map(str, grid["shape"])), " x ".join(f"{edge:g}" for edge in grid["spacing_mm"]), str(grid["subjects"]))
                for grid in content["grids"][:SHOWN]
            ],
            right=frozenset({"subjects"}),
        ),
    ]
    if len(content["grids"]) > SHOWN:
        blocks.append(f"and {len(content['grids']) - SHOWN} other grids")
    if content["labels"]:
        read = content["label_maps_read"]
        part = "" if read == labelled else f" (of {read} of {labelled} label maps; --values reads all)"
        rows = [(label, str(found["subjects"]), f"{found['voxels']:,}") for label, found in content["labels"].items()]
        table = Table(("label", "in subjects", "voxels"), rows[:SHOWN], right=frozenset({"label", "in subjects", "voxels"}))
        blocks += ["", table, *([f"and {len(rows) - SHOWN} other labels: --json lists all"] if len(rows) > SHOWN else [])]
        blocks += [part.strip()] if part else []
    odd, remarks = content["odd"], content["remarks"]
    if odd or remarks:
        blocks += ["", *remarks, *(f"subject {one['subject']}: {'; '.join(one['remarks'])}" for one in odd[:SHOWN])]
        blocks += [f"and {len(odd) - SHOWN} other subjects with remarks: --json lists all"] if len(odd) > SHOWN else []
    else:
        blocks += ["", "nothing is missing or odd"]
    return blocks


def _divided(content: dict[str, Any]) -> list[str]:
    """Parts, folds and further folders, a line each."""
    lines = []
    if content["parts"]:
        lines.append("parts       " + ", ".join(f"{part} ({count})" for part, count in content["parts"].items()))
    if content["folds"]:
        lines.append("folds       " + ", ".join(f"{fold} ({count})" for fold, count in content["folds"].items()))
    further = [
        f"{found['folder']} ({_subjects(found['subjects'])}, {found['labelled']} with labels)" for found in content["further_folders"]
    ]
    return [*lines, *([f"beside it   {', '.join(further)}"] if further else [])]


def _subjects(count: int) -> str:
    return "1 subject" if count == 1 else f"{count} subjects"
