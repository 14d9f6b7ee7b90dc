"""MONAI's data lists: a JSON file with the files of every subject, by the parts of a split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit3d.datasets.descriptions import DESCRIPTION, channels_of, vocabulary_in, vocabulary_of_names
from mergekit3d.datasets.layouts import Layout, register
from mergekit3d.datasets.listing import KNOWN, LABEL_NAMES, PARTS, Entry, can_name, modality_in, relative, subjects_of
from mergekit3d.datasets.subject import Channel, Dataset, Subject, canonical_modality
from mergekit3d.datasets.vocabulary import SMALL, Vocabulary
from mergekit3d.errors import InputError, ProblemCollector
from mergekit3d.textfiles import read_json_object

WHAT = "the data list"
NAMES = ("subject", "subject_id", "case_id", "id")
"""Keys that lists name a subject by; a name that several subjects have is none."""
DESCRIBING = ("name", "description", "reference", "licence", "release", "tensorImageSize", "labels")
KEYS = {"train": "training", "validation": "validation", "test": "testing", "unlabelled": "unlabelled"}
"""What the parts are called in lists that are written here."""
NAMING = 'set "modality": {"0": "flair", "1": "t1", ...} in the list, in the order of the images'


def find(root: Path) -> list[Subject]:
    """The subjects under ``training``, ``validation``, ``testing`` or ``test``: images as one file, 4D file, list or by modality."""
    content = read_json_object(root, WHAT)
    given = [(key, entries) for key, entries in content.items() if key.lower() in PARTS and isinstance(entries, list)]
    if not any(entries for _, entries in given):
        todo = "pass its folder" if root.name == DESCRIPTION else None
        found = ", ".join(list(content)[:6]) or "an empty object"
        raise InputError(
            "no subjects in the data list", where=root, wanted="a list under training, validation or test", found=found, todo=todo
        )
    problems = ProblemCollector()
    named = list(channels_of(content, root).values())
    entries = []
    for key, items in given:
        for number, item in enumerate(items):
            where = f"{key}[{number}]"
            # The first subject without names of modalities stands for all.
            entry = problems.attempt(lambda item=item, where=where, key=key: _entry(root, where, PARTS[key.lower()], item, named))  # type: ignore[misc]
            if entry is None:
                problems.raise_if_any()
            else:
                entries.append(entry)
    times = Counter(entry.name for entry in entries)
    unique = [entry if times[entry.name] == 1 else replace(entry, name=None) for entry in entries]
    return subjects_of(root, unique, problems)


def _entry(root: Path, where: str, part: str, item: Any, named: Sequence[str]) -> Entry:
    place = f"{root}, {where}"
    item = {"image": item} if isinstance(item, str) else item
    if not isinstance(item, dict):
        raise InputError(f"cannot read {WHAT}", where=place, wanted="a subject as an object or a path", found=f"a {type(item).__name__}")
    image = item.get("image")
    channels: dict[str, Channel] = {}
    if isinstance(image, str) and len(named) > 1:
        images = dict.fromkeys(named, image)
        channels = {modality: Channel(index, len(named)) for index, modality in enumerate(named)}
    elif image is None:
        images = {
            canonical_modality(key): value for key, value in item.items() if canonical_modality(key) in KNOWN and isinstance(value, str)
        }
    else:
        paths = [image] if isinstance(image, str) else image
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise InputError(f"cannot read {WHAT}", where=place, wanted="a path or a list of paths as image", found="something else")
        images = dict(zip(_modalities(paths, named, place), paths, strict=True))
    if not images:
        raise InputError("a subject without images in the list", where=place, wanted="image", found=", ".join(map(str, item)) or "nothing")
    name, fold = next((item[key] for key in NAMES if isinstance(item.get(key), str)), ""), item.get("fold")
    folded = fold if isinstance(fold, int) and not isinstance(fold, bool) else None
    return Entry(where, images, _label(item, place), name if can_name(name) else None, channels, part, folded)


def _label(item: Mapping[str, Any], place: str) -> str | None:
    value = next((item[key] for key in LABEL_NAMES if item.get(key)), None)
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if value is not None and not isinstance(value, str):
        raise InputError(f"cannot read {WHAT}", where=place, wanted="the path of one label map as label", found=f"a {type(value).__name__}")
    return value


def _modalities(paths: Sequence[str], named: Sequence[str], place: str) -> list[str]:
    """By the list's own names, or by those of the files, which must not contradict."""
    told = [modality_in(path) for path in paths]
    known = [modality for modality in told if modality is not None]
    distinct = len(known) == len(paths) == len(set(known))
    if len(named) == len(paths):
        if distinct and len(paths) > 1 and known != list(named):
            wanted, found = ", ".join(named), ", ".join(known)
            raise InputError("the files have other modalities than the list says", where=place, wanted=wanted, found=found, todo=NAMING)
        return list(named)
    if not distinct:
        found = f"{len(named)} names" if named else "no name that tells it"
        raise InputError("the modalities of the images are not told", where=place, wanted=f"{len(paths)}", found=found, todo=NAMING)
    return known


def vocabulary_of(root: Path, subjects: Sequence[Subject]) -> Vocabulary:
    """The ids under ``labels``; else those of BraTS, where the subjects' names tell its year, or small ones or FreeSurfer's."""
    content = read_json_object(root, WHAT)
    if isinstance(content.get("labels"), dict) and content["labels"]:
        return vocabulary_in(content, "list's")
    return vocabulary_of_names([subject.name for subject in subjects], VOCABULARY)


def write(dataset: Dataset, path: Path) -> str:
    """The list of a data set whose files lie below its folder; of what else stood in it, what describes the data set is kept."""
    old = read_json_object(path, WHAT)
    content: dict[str, Any] = {key: old[key] for key in DESCRIBING if key in old}
    modalities = list(dict.fromkeys(modality for subject in dataset.subjects for modality in subject.images))
    same = all(list(subject.images) == modalities for subject in dataset.subjects)
    if same:
        content["modality"] = {str(number): modality for number, modality in enumerate(modalities)}
    for subject in dataset.subjects:
        files = [relative(file, dataset.root) for file in subject.images.values()]
        images: dict[str, Any] = {"image": files[0] if subject.channels or len(files) == 1 else files}
        entry = {"subject": subject.name, **(images if same else dict(zip(subject.images, files, strict=True)))}
        entry |= {} if subject.label is None else {"label": relative(subject.label, dataset.root)}
        entry |= {} if subject.fold is None else {"fold": subject.fold}
        content.setdefault(KEYS[subject.part or "train"], []).append(entry)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


VOCABULARY = SMALL
FILES = '<list>.json: {"training": [{"image": [...], "label": ...}], ...}'
DATALIST = register(Layout("monai", FILES, VOCABULARY, find, vocabulary_of=vocabulary_of, suffixes=(".json",), write=write))
