"""What a study's files do not tell of it: its question, its data, the place of every arm. `run` leaves it as study.json for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mergekit3d.errors import InputError
from mergekit3d.reporting.results import Subjects
from mergekit3d.storage.atomic import write_json
from mergekit3d.textfiles import read_json_object

RECORD_NAME = "study.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ArmRecord:
    """Where one arm stands.

    Args:
        name: of the initialisation.
        split: name of the size of the training set.
        seed: of the fine-tuning.
        folder: from the study's, with slashes; "." is the study's own.
    """

    name: str
    split: str
    seed: int
    folder: str


@dataclass(frozen=True)
class StudyRecord:
    """What a study's files do not tell of it. Folders start at the study's own; no names of subjects.

    Args:
        title: of the study.
        question: what it asks.
        arms: every initialisation at every size with every seed.
        sources: folder of each source's training by its name; empty where it was trained elsewhere.
        baselines: the same of further networks.
        tasks: each source's regions in words.
        subjects: of every task.
        versions: of the tool and its libraries.
        inputs: sha256 of the checkpoints that came from elsewhere.
        recipe: its text.
        machine: processor or GPU, in words.
    """

    title: str
    question: str = ""
    arms: Sequence[ArmRecord] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    baselines: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    subjects: Sequence[Subjects] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    recipe: str = ""
    machine: str = ""


def write_record(folder: Path, record: StudyRecord) -> None:
    """Leave a study's record in its folder; one that says the same is left alone, so that its time tells when it changed.

    Raises:
        InputError: the record that is there is damaged.
        OutputError: the file system refused.
    """
    path, content = folder / RECORD_NAME, {"format_version": FORMAT_VERSION, **asdict(record)}
    if not path.exists() or read_json_object(path, "the study's record") != json.loads(json.dumps(content)):
        write_json(path, content)


def read_record(folder: Path) -> StudyRecord | None:
    """The record in a study's folder; None where there is none.

    Raises:
        InputError: it is damaged, of a newer version, or names a folder outside.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        return None
    content = read_json_object(path, "the study's record")
    version = content.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise InputError("cannot read the study's record", where=path, wanted=f"format {FORMAT_VERSION}", found=str(version))
    try:
        arms = [ArmRecord(**arm) for arm in content.pop("arms")]
        subjects = [Subjects(**of_task) for of_task in content.pop("subjects")]
        record = StudyRecord(arms=arms, subjects=subjects, **content)
        folders = [*(arm.folder for arm in arms), *record.sources.values(), *record.baselines.values()]
        outside = [inner for inner in folders if _leads_outside(inner)]
    except (KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError("cannot read the study's record", where=path, found=found, todo="run the recipe once more") from error
    if outside:
        raise InputError("cannot read the study's record", where=path, wanted="folders within the study", found=str(outside[0]))
    return record


def _leads_outside(folder: Any) -> bool:
    path = PurePosixPath(folder)
    return path.is_absolute() or ".." in path.parts
