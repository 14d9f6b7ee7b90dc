"""Steps of a recipe that are carried out only where their result is out of date.

A step's identity is a digest of all that decides its result: its part of the recipe and the content of its inputs. It is kept in
``OUT/.steps`` once the step has ended, with digests of the outputs; a step whose identity and outputs still agree is not repeated.

Files of subjects count by name, size and time, which an edit may keep. So inode and the time of the last change of any kind, which
nobody can set, are kept besides; where these differ, the content is hashed and compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.datasets.subject import Subject
from mergekit3d.storage.atomic import write_json
from mergekit3d.storage.seal import file_digest, hash_in_parallel, json_digest

_looked_at: ContextVar[list[Path] | None] = ContextVar("looked_at", default=None)
_contents: dict[str, str] = {}
"""Digests of the content of files by that of their stamps, as far as this process knows."""
FOLDER = ".steps"
VERSION = 1
"""Counted up when the same recipe would give another result."""


@dataclass(frozen=True)
class Step:
    """One piece of a recipe's work.

    Args:
        name: unique within the recipe ("train m1").
        outputs: files that it writes.
        identity: what decides its result, as plain data; asked for when its turn comes, as earlier steps make its inputs.
        action: does the work, writing over older outputs.
        inputs: files that other steps write and this one reads: it waits for them.
    """

    name: str
    outputs: tuple[Path, ...]
    identity: Callable[[], Any]
    action: Callable[[], object]
    inputs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class StepOutcome:
    """What became of a step: done, or up to date."""

    name: str
    done: bool


def carry_out(steps: Sequence[Step], out: Path, *, force: bool, tell: Callable[[str], None]) -> list[StepOutcome]:
    """Carry out the steps that are out of date, in order.

    Args:
        steps: in the order of their inputs.
        out: the recipe's output folder.
        force: repeat all.
        tell: is told what happens with each step.
    """
    outcomes = []
    for number, step in enumerate(steps, 1):
        stamp, (identity, files) = _stamp(step, out), _identity(step)
        fresh = not force and _is_current(stamp, identity, step.outputs, files)
        tell(f"[{number}/{len(steps)}] {step.name}{': up to date' if fresh else ''}")
        if not fresh:
            stamp.unlink(missing_ok=True)
            subjects = {"stamps": _stamps_of(files), "content": _content_of(files, out)} if files else None
            step.action()
            outputs = [file_digest(path) for path in step.outputs]
            write_json(stamp, {"step": step.name, "identity": identity, "outputs": outputs, "subjects": subjects})
        outcomes.append(StepOutcome(step.name, not fresh))
    return outcomes


def is_up_to_date(step: Step, out: Path) -> bool:
    """Whether a step's result is there and still what it would be.

    Args:
        step: whose inputs are there.
        out: the recipe's output folder.
    """
    identity, files = _identity(step)
    return _is_current(_stamp(step, out), identity, step.outputs, files)


def _stamp(step: Step, out: Path) -> Path:
    return out / FOLDER / f"{json_digest(step.name)[:16]}.json"


def _identity(step: Step) -> tuple[str, list[Path]]:
    """The step's identity, and the files of subjects that were looked at for it."""
    files: list[Path] = []
    token = _looked_at.set(files)
    try:
        return json_digest([VERSION, step.name, step.identity()]), files
    finally:
        _looked_at.reset(token)


def _is_current(stamp: Path, identity: str, outputs: Sequence[Path], files: Sequence[Path]) -> bool:
    content = _read(stamp)
    if content.get("identity") != identity or not all(path.is_file() for path in outputs):
        return False
    if content.get("outputs") != [file_digest(path) for path in outputs]:
        return False
    subjects = content.get("subjects")
    if not files or not isinstance(subjects, dict):  # of a version that did not keep them
        return True
    return subjects.get("stamps") == _stamps_of(files) or subjects.get("content") == _content_of(files, stamp.parent.parent)


def _read(stamp: Path) -> dict[str, Any]:
    """What was kept of a step; empty where there is nothing to be read."""
    try:
        content = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _stamps_of(files: Sequence[Path]) -> str:
    """A digest of all that the file system tells of files: quick, and another one after any edit."""
    return json_digest(
        [[status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino] for status in (path.stat() for path in files)]
    )


def _content_of(files: Sequence[Path], out: Path) -> str:
    """A digest of the content of files; one that another step has kept for the same stamps is taken over."""
    stamps = _stamps_of(files)
    if stamps not in _contents:
        kept = (_read(path).get("subjects") for path in sorted((out / FOLDER).glob("*.json")))
        known = next((part.get("content") for part in kept if isinstance(part, dict) and part.get("stamps") == stamps), None)
        _contents[stamps] = known if isinstance(known, str) else json_digest(list(hash_in_parallel(map(str, files), _digest).values()))
    return _contents[stamps]


def _digest(path: str) -> str:
    return file_digest(Path(path))


def files_identity(paths: Sequence[Path]) -> list[str | None]:
    """Digests of files; None for one that is not there."""
    return [file_digest(path) if path.is_file() else None for path in paths]


def subjects_identity(subjects: Sequence[Subject]) -> str:
    """A digest of subjects by the names, sizes and times of their files; within a step's identity, the files are noted."""
    noted = _looked_at.get()

    def of(path: Path, *index: int) -> list[Any]:
        status = path.stat()
        if noted is not None:
            noted.append(path)
        return [path.name, status.st_size, status.st_mtime_ns, *index]

    def images(subject: Subject) -> list[list[Any]]:
        return [of(path, *([subject.channels[name].index] if name in subject.channels else [])) for name, path in subject.images.items()]

    return json_digest([[subject.name, *images(subject), *map(of, filter(None, [subject.label]))] for subject in subjects])
