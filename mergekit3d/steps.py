"""Steps of a recipe that are carried out only where their result is out of date.

A step's identity is a digest of all that decides its result: its part of the recipe and the content of its inputs. It is kept in
``OUT/.steps`` once the step has ended, with digests of the outputs; a step whose identity and outputs still agree is not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.datasets.subject import Subject
from mergekit3d.storage.atomic import write_json
from mergekit3d.storage.seal import file_digest, json_digest

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
        stamp, identity = _stamp(step, out), _identity(step)
        fresh = not force and _is_current(stamp, identity, step.outputs)
        tell(f"[{number}/{len(steps)}] {step.name}{': up to date' if fresh else ''}")
        if not fresh:
            stamp.unlink(missing_ok=True)
            step.action()
            write_json(stamp, {"step": step.name, "identity": identity, "outputs": [file_digest(path) for path in step.outputs]})
        outcomes.append(StepOutcome(step.name, not fresh))
    return outcomes


def is_up_to_date(step: Step, out: Path) -> bool:
    """Whether a step's result is there and still what it would be.

    Args:
        step: whose inputs are there.
        out: the recipe's output folder.
    """
    return _is_current(_stamp(step, out), _identity(step), step.outputs)


def _stamp(step: Step, out: Path) -> Path:
    return out / FOLDER / f"{json_digest(step.name)[:16]}.json"


def _identity(step: Step) -> str:
    return json_digest([VERSION, step.name, step.identity()])


def _is_current(stamp: Path, identity: str, outputs: Sequence[Path]) -> bool:
    if not stamp.is_file() or not all(path.is_file() for path in outputs):
        return False
    try:
        content = json.loads(stamp.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    known = isinstance(content, dict) and content.get("identity") == identity
    return known and content.get("outputs") == [file_digest(path) for path in outputs]


def files_identity(paths: Sequence[Path]) -> list[str | None]:
    """Digests of files; None for one that is not there."""
    return [file_digest(path) if path.is_file() else None for path in paths]


def subjects_identity(subjects: Sequence[Subject]) -> str:
    """A digest of subjects by the names, sizes and times of their files: quick, and enough to see that they changed."""

    def of(path: Path, *index: int) -> list[Any]:
        status = path.stat()
        return [path.name, status.st_size, status.st_mtime_ns, *index]

    def images(subject: Subject) -> list[list[Any]]:
        return [of(path, *([subject.channels[name].index] if name in subject.channels else [])) for name, path in subject.images.items()]

    return json_digest([[subject.name, *images(subject), *map(of, filter(None, [subject.label]))] for subject in subjects])
