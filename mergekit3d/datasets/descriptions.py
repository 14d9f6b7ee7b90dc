"""What a data set says of itself in JSON, as nnU-Net, the Decathlon and MONAI have it: names of channels, label ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergekit3d.datasets.subject import canonical_modality
from mergekit3d.datasets.vocabulary import BRATS, BRATS2023, Vocabulary
from mergekit3d.errors import InputError
from mergekit3d.textfiles import read_json_object

DESCRIPTION = "dataset.json"
CHANNEL_KEYS = ("channel_names", "modality")
"""Of nnU-Net's second version; of its first one, the Decathlon and MONAI."""
ALL_IDS = range(65536)
EDEMA = re.compile(r"o?edema|peritumou?ral|\bed\b", re.IGNORECASE)
WHOLE, CORE = re.compile(r"whole|\bwt\b", re.IGNORECASE), re.compile(r"core|\btc\b", re.IGNORECASE)
YEARS = {
    re.compile(r"brats(1\d|20|2018|2019|202[0-2])[_-]", re.IGNORECASE): BRATS,
    re.compile(r"brats-[a-z]+-\d", re.IGNORECASE): BRATS2023,
}


def description_of(root: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """dataset.json with names of channels, in the folder, or beside it where it is one of images; None where there is none.

    Raises:
        InputError: it is damaged.
    """
    beside = [root.parent] if root.name.startswith("images") else []
    path = next((folder / DESCRIPTION for folder in (root, *beside) if (folder / DESCRIPTION).is_file()), None)
    if path is None:
        return None
    content = read_json_object(path, "the description of the data set")
    return (path, content) if any(content.get(key) for key in CHANNEL_KEYS) else None


def channels_of(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Canonical modality by number of the channel, in order; empty where the description names none.

    Args:
        content: ``channel_names`` or ``modality``: {"0": "FLAIR", ...}, a list, or one name.
        path: of the description, for the error.

    Raises:
        InputError: two channels have one name, or something else stands there.
    """
    given: Any = next((content[key] for key in CHANNEL_KEYS if content.get(key)), {})
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list):
        given = {str(number): name for number, name in enumerate(given)}
    if not isinstance(given, dict) or not all(str(number).isdecimal() and isinstance(name, str) for number, name in given.items()):
        raise InputError("cannot read the modalities", where=path, wanted='{"0": "T1w", ...} under modality', found="something else")
    channels = {int(number): canonical_modality(name) for number, name in given.items()}
    if len(set(channels.values())) < len(channels):
        raise InputError(
            "two channels have the same name", where=path, found=", ".join(channels.values()), todo="name each after its modality"
        )
    return dict(sorted(channels.items()))


def vocabulary_in(content: Mapping[str, Any], name: str) -> Vocabulary:
    """The ids of ``labels``: those of the labels, or of all that the regions hold; an ignore label is read as background.

    Args:
        content: ``labels``: {"background": 0, "whole": [1, 2], ...}, or {"0": "background", ...}; any id may occur where it is left out.
        name: of the vocabulary, for error texts.
    """
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        return Vocabulary(name, ALL_IDS)
    if all(str(key).isdecimal() for key in labels):
        by_name = {str(value): [int(key)] for key, value in labels.items()}
    else:
        by_name = {str(key): _ids(value) for key, value in labels.items()}
    ids = {0}.union(*(found for label, found in by_name.items() if label != "ignore"))
    ignored = dict.fromkeys((label for label in by_name.get("ignore", []) if label not in ids), 0)
    return Vocabulary(name, frozenset(ids | ignored.keys()), merged=ignored, misread=_misread(by_name))


def vocabulary_of_names(names: Iterable[str], otherwise: Vocabulary) -> Vocabulary:
    """The labels of BraTS, where the subjects' names tell its year."""
    names = list(names)
    found = (vocabulary for pattern, vocabulary in YEARS.items() if names and all(pattern.match(name) for name in names))
    return next(found, otherwise)


def _misread(labels: Mapping[str, list[int]]) -> dict[str, frozenset[int]]:
    """Edema by its name, or as what the whole tumour holds beside the core: it is in no other region of BraTS."""
    edema = {label for name, ids in labels.items() if EDEMA.search(name) for label in ids}
    wholes, cores = ([set(ids) for name, ids in labels.items() if pattern.search(name)] for pattern in (WHOLE, CORE))
    if not edema and len(wholes) == 1 and len(cores) == 1 and cores[0] < wholes[0]:
        edema = wholes[0] - cores[0]
    return {name: frozenset(edema) for name in ("ET", "TC")} if edema else {}


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [int(label) for label in values if str(label).isdecimal()]
