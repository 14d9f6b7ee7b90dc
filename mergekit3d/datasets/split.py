"""Which subjects train, validate and test: by numbers and a seed, or by files of names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergekit3d.datasets.subject import Subject
from mergekit3d.errors import InputError, ProblemCollector, RecipeError
from mergekit3d.nearby import did_you_mean_file
from mergekit3d.registry import did_you_mean
from mergekit3d.storage.atomic import write_json

PARTS = ("train", "validation", "test")
MAX_FILE_BYTES = 2**20

Part = int | Path | Sequence[str]


@dataclass(frozen=True)
class Split:
    """Names of subjects, each part sorted, none in two parts."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_subjects(
    names: Sequence[str],
    *,
    train: Part | None = None,
    validation: Part | None = None,
    test: Part | None = None,
    skip: int = 0,
    seed: int = 0,
) -> Split:
    """Split subjects by numbers, files of names, or both.

    Numbers are dealt from one shuffled list of the subjects that no file names: `skip` from its start, then training, then
    validation; test from its end. So a larger training set holds the smaller one, and the test set stays. The shuffle sorts by
    a hash of seed and name: it depends on nothing else, and a subject more changes no other's place.

    Args:
        names: all subjects.
        train: how many, a file with one name a line, or the names; None: the rest, which may be none.
        validation: the same; None: none.
        test: the same; None: none.
        skip: subjects left out at the start of the shuffled list (another model trains on them).
        seed: of the shuffle.

    Raises:
        RecipeError: more subjects asked for than there are.
        InputError: a file is unreadable or names a subject that is not there or in two parts; `Problems` where several are.
    """
    asked = {"train": train, "validation": validation, "test": test}
    listed = {part: _names(value) for part, value in asked.items() if value is not None and not isinstance(value, int)}
    _check_names(names, listed)
    taken = {name for part in listed.values() for name in part}
    free = shuffled([name for name in names if name not in taken], seed)[skip:]
    numbers = {part: value if isinstance(value, int) else 0 for part, value in asked.items()}
    room, wanted = len(names) - len(taken), skip + sum(numbers.values())
    if wanted > room:
        counts = {"skipped": skip, **numbers}
        text = " + ".join(f"{number} {part}" for part, number in counts.items() if number)
        raise RecipeError("too few subjects for the split", wanted=f"{text} = {wanted}", found=room)
    if train is None:
        numbers["train"] = room - wanted
    end = numbers["train"] + numbers["validation"]
    dealt = {"train": free[: numbers["train"]], "validation": free[numbers["train"] : end], "test": free[len(free) - numbers["test"] :]}
    return _sorted_split({part: listed.get(part, dealt[part]) for part in PARTS})


def split_by_file(names: Sequence[str], path: Path) -> Split:
    """The split that a file holds, checked against the subjects.

    Raises:
        InputError: as `read_split`; a name is unknown or in two parts; `Problems` where several are.
    """
    split = read_split(path)
    _check_names(names, asdict(split))
    return split


def split_of_list(subjects: Sequence[Subject], fold: int | None = None) -> Split:
    """The split that a data set holds itself; its unlabelled subjects, and those of its test part without label maps, are in none.

    Args:
        subjects: of the data set.
        fold: those of its training part with this fold validate, as in MONAI's cross-validation; None: none of them.

    Raises:
        InputError: no subject has that fold.
    """
    folds = sorted({subject.fold for subject in subjects if subject.fold is not None})
    if fold is not None and fold not in folds:
        found = ", ".join(map(str, folds)) or "a data set without folds"
        raise InputError("no subject has this fold", where="target.split.fold", wanted=str(fold), found=found)
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for subject in subjects:
        part = subject.part or "train"
        if part == "train" and fold is not None and subject.fold == fold:
            part = "validation"
        if part in ("train", "validation") or (part == "test" and subject.label is not None):
            parts[part].append(subject.name)
    return _sorted_split(parts)


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """The names in the order of a hash of seed and name."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest())


def write_split(path: Path, split: Split) -> None:
    """Write a split as JSON."""
    write_json(path, asdict(split))


def read_split(path: Path) -> Split:
    """Read a JSON or YAML file with the keys train, validation and test, each a list of names; what is left out is empty.

    Raises:
        InputError: the file is unreadable, or something else stands in it.
    """
    problems = ProblemCollector()
    parts: dict[str, list[str]] = {}
    for key, value in _pairs(path):
        if key not in PARTS:
            problems.add(InputError("unknown key in the split", where=f"{path}: {key}", todo=did_you_mean(key, PARTS)))
        elif key in parts:
            problems.add(InputError("a key stands twice in the split", where=f"{path}: {key}"))
        elif value is None:
            problems.add(InputError("cannot read the split", where=f"{path}: {key}", wanted="a list of names"))
        else:
            parts[key] = value
    problems.raise_if_any()
    return _sorted_split({part: parts.get(part, []) for part in PARTS})


def read_names(path: Path) -> list[str]:
    """Read one name a line; blank lines and lines that start with # are left out.

    Raises:
        InputError: the file is unreadable or empty.
    """
    lines = [line.strip() for line in _read_text(path).splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise InputError("no names in the file", where=path, wanted="one name a line")
    return names


def _names(value: Path | Sequence[str]) -> list[str]:
    return read_names(value) if isinstance(value, Path) else list(value)


def _sorted_split(parts: Mapping[str, Sequence[str]]) -> Split:
    return Split(*(tuple(sorted(parts[part])) for part in PARTS))


def _check_names(names: Sequence[str], listed: Mapping[str, Sequence[str]]) -> None:
    problems = ProblemCollector()
    owner: dict[str, str] = {}
    known = set(names)
    for part, chosen in listed.items():
        for number, name in enumerate(chosen, 1):
            if name not in known:
                todo = f"the data set has {len(names)} others"
                problems.add(InputError("unknown subject in the split", where=f"{part}, name {number}", todo=todo))
            elif name in owner:
                found = f"in {owner[name]} too"
                problems.add(InputError("a subject stands twice in the split", where=f"{part}, name {number}", found=found))
            owner.setdefault(name, part)
    problems.raise_if_any()


def refuse_unknown(wanted: Sequence[str], known: Collection[str]) -> None:
    """Refuse names of subjects that a data set does not have, told by their places: names may be patients'.

    Raises:
        InputError: some are unknown.
    """
    places = [str(place) for place, name in enumerate(wanted, 1) if name not in known]
    if places:
        listed = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
        raise InputError("unknown subjects", found=f"name {listed} of {len(wanted)}", todo=f"the data set has {len(known)} others")


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            missing = not path.exists()
            failed = "no such file" if missing else "not a regular file"
            raise InputError(failed, where=path, todo=did_you_mean_file(path) if missing else None)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError("cannot read the split", where=path, wanted="at most 1 MiB", found=f"{path.stat().st_size} bytes")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError("cannot read the split", where=path, wanted="UTF-8 text", found="other bytes") from error
    except OSError as error:
        raise _unreadable(path, (error.strerror or type(error).__name__).lower()) from error


def _unreadable(path: Path, found: str) -> InputError:
    return InputError("cannot read the split", where=path, found=found)


def _pairs(path: Path) -> list[tuple[str, list[str] | None]]:
    """Key and names of every entry of the file, in order; None in place of what is no list of names."""
    text = _read_text(path)
    if path.suffix == ".json":
        try:
            content = json.loads(text, object_pairs_hook=_JsonObject)
        except (ValueError, RecursionError) as error:
            raise _unreadable(path, "damaged JSON") from error
        if not isinstance(content, _JsonObject):
            raise _no_keys(path)
        return [
            (key, value if isinstance(value, list) and all(isinstance(name, str) for name in value) else None) for key, value in content
        ]
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)  # nodes hold plain text: a subject named 100307 stays a name
    except (yaml.YAMLError, RecursionError) as error:
        raise _unreadable(path, "damaged YAML") from error
    if not isinstance(root, yaml.MappingNode):
        raise _no_keys(path)
    return [(str(key.value), _texts(value)) for key, value in root.value]


def _texts(node: Any) -> list[str] | None:
    if not isinstance(node.value, list):
        return None
    values = [getattr(entry, "value", None) for entry in node.value]
    texts = [value for value in values if isinstance(value, str)]
    return texts if len(texts) == len(values) else None


def _no_keys(path: Path) -> InputError:
    return InputError("cannot read the split", where=path, wanted="the keys train, validation and test", found="something else")


class _JsonObject(list[tuple[str, Any]]):
    """The entries of a JSON object, duplicates too."""
