"""The output folder: what stands there and whose it is, what is under way, and how a finished subject gets to its place.

Work goes on in ``OUT/.preprocessing``. A subject's note is written there before its files are moved into place, so that every file in the
output that is ours is known by its digest; what is not known is never replaced. Once all is done, the notes become ``preprocess.json``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d import __version__
from mergekit3d.errors import InputError, ProblemCollector, UsageError
from mergekit3d.preprocessing.placing import Place
from mergekit3d.preprocessing.settings import VERSION
from mergekit3d.preprocessing.subject import CORRECTED, DONE_BEFORE, FINISHED, MEASURES, RECORDS
from mergekit3d.storage.atomic import output_error, real_path, write_json
from mergekit3d.storage.seal import canonical_json, file_digest, hash_in_parallel
from mergekit3d.textfiles import read_json_object

WORK, RECORD, SETTINGS, REPLACED = ".preprocessing", "preprocess.json", "settings.json", "replaced"
WHAT = "the record of an earlier run"


@dataclass(frozen=True)
class Ledger:
    """The notes of a run.

    Args:
        out: the output folder, held by this run.
        settings: what decides the result, as plain data.
    """

    out: Path
    settings: Mapping[str, Any]

    @property
    def work(self) -> Path:
        """The folder for what is not finished."""
        return self.out / WORK

    def begin(self) -> None:
        """From here on the output is this run's: the record of the last one goes, its notes stay.

        Raises:
            OutputError: the file system refused.
        """
        write_json(self.work / SETTINGS, {"settings": dict(self.settings), "subjects": []})
        try:
            (self.out / RECORD).unlink(missing_ok=True)
        except OSError as error:
            raise output_error(error, self.out) from error

    def standing(self, places: Sequence[Place]) -> dict[int, dict[str, str]]:
        """Digests of the outputs that are there, by number of the subject and name of the file.

        Raises:
            UsageError: something stands there that no earlier run wrote, or that was changed since.
            OutputError: a file cannot be read.
        """
        known = self._known_digests()
        problems = ProblemCollector()
        digests: dict[int, dict[str, str]] = {}
        for place in places:
            problems.attempt(lambda place=place: digests.update({place.number: self._own(place, known)}))  # type: ignore[misc]
        problems.raise_if_any()
        return digests

    def _own(self, place: Place, known: frozenset[str]) -> dict[str, str]:
        there = {name: self.out / path for name, path in place.files.items() if (self.out / path).is_file()}
        try:
            digests = hash_in_parallel(there, lambda name: file_digest(there[name]))
            found = [*digests.values(), *(file_digest(path) if path.is_file() else "" for path in place.others(self.out))]
        except OSError as error:
            raise output_error(error, self.out) from error
        strangers = sum(digest not in known for digest in found)
        if strangers:
            raise UsageError(
                "the output holds files that are not of an earlier run, or were changed since",
                where=f"subject {place.number}",
                found="1 file" if strangers == 1 else f"{strangers} files",
                todo="move them away, or write to another folder",
            )
        return digests

    def _known_digests(self) -> frozenset[str]:
        notes = [read_json_object(path, WHAT) for path in sorted((self.work / RECORDS).glob("*.json"))]
        return frozenset(str(digest) for note in notes for digest in dict(note.get("outputs", {})).values())

    def note(self, record: Mapping[str, Any]) -> None:
        """Keep the record of a subject, ahead of the move into its place."""
        write_json(self.work / RECORDS / f"{record['identity']}.json", _without_flags(record))

    def close(self, records: Sequence[Mapping[str, Any]], failed: Mapping[int, InputError], landmarks: Any, layout: str) -> None:
        """Write the record of the whole run; where nothing failed, what was needed on the way goes."""
        content = {
            "kind": "mergekit3d preprocessing",
            "version": VERSION,
            "tool": f"mergekit3d {__version__}",
            "layout": layout,
            "complete": not failed,
            "settings": dict(self.settings),
            "landmarks": landmarks,
            "subjects": [_without_flags(record) for record in sorted(records, key=lambda record: int(record["subject"]))],
            "failed": [{"subject": number, "reason": str(error)} for number, error in sorted(failed.items())],
        }
        write_json(self.out / RECORD, content)
        if not failed:
            shutil.rmtree(self.work, ignore_errors=True)


def refuse_output(data: Path, out: Path, *, force: bool, resume: bool) -> None:
    """Refuse an output folder that holds something, or that lies in the data or around them.

    Raises:
        UsageError: it does, and neither `force` nor `resume` was given.
        OutputError: it cannot be listed.
    """
    if force and resume:
        raise UsageError("--force and --resume exclude each other", todo="--force begins anew, --resume keeps what is done")
    inside, outside = real_path(data.parent if data.is_file() else data), real_path(out)
    # A list names its files: those of the output are none of them.
    if inside == outside or (inside in outside.parents and not data.is_file()) or outside in inside.parents:
        raise UsageError("the output would mix with the data", where=out, todo="write to a folder beside the data")
    if out.exists() and not out.is_dir():
        raise UsageError("cannot write a data set", where=out, wanted="a folder", found="a file")
    try:
        holds = out.is_dir() and any(path.name == WORK or not path.name.startswith(".") for path in out.iterdir())
    except OSError as error:
        raise output_error(error, out) from error
    if holds and not resume and not force:
        raise UsageError("the output exists already", where=out, todo="pass --resume to go on with it, or --force to make it anew")


def open_ledger(out: Path, settings: Mapping[str, Any], *, force: bool) -> Ledger:
    """The notes of earlier runs in a folder that this run holds, taken up again.

    Args:
        out: the folder.
        settings: of this run.
        force: other settings of an earlier run do not matter.

    Raises:
        UsageError: what stands there was made with other settings.
        InputError: a note is damaged.
        OutputError: the file system refused.
    """
    ledger = Ledger(out, settings)
    earlier = _earlier(out)
    if earlier is not None and not force and canonical_json(earlier["settings"]) != canonical_json(dict(settings)):
        raise _other_settings(out, earlier["settings"], settings)
    try:
        # Images that scales are learned from are kept for --resume alone.
        for folder in (FINISHED, REPLACED, *((CORRECTED, MEASURES) if force else ())):
            shutil.rmtree(ledger.work / folder, ignore_errors=True)
        for folder in (RECORDS, MEASURES):
            (ledger.work / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, out) from error
    for record in [] if earlier is None else earlier["subjects"]:
        ledger.note(record)
        if record.get("measured") and not force:
            write_json(ledger.work / MEASURES / f"{record['measured']['geometry']}.json", record["measured"])
    return ledger


def _earlier(out: Path) -> dict[str, Any] | None:
    """Settings and subjects of the last run, finished or not."""
    path = next((path for path in (out / RECORD, out / WORK / SETTINGS) if path.is_file()), None)
    if path is None:
        return None
    content = read_json_object(path, WHAT)
    sound = isinstance(content.get("settings"), dict) and isinstance(content.get("subjects"), list)
    if not sound or not all(isinstance(record, dict) and {"identity", "outputs"} <= record.keys() for record in content["subjects"]):
        raise InputError(f"cannot read {WHAT}", where=path, wanted="what preprocess wrote", found="something else")
    return content


def _other_settings(out: Path, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> UsageError:
    differing = sorted(key for key in {*earlier, *settings} if earlier.get(key) != settings.get(key))
    return UsageError(
        "the output was made with other settings",
        where=out,
        wanted=", ".join(f"{key} {earlier.get(key)}" for key in differing),
        found=", ".join(f"{key} {settings.get(key)}" for key in differing),
        todo="pass the same ones, or --force to make all subjects anew",
    )


def _without_flags(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != DONE_BEFORE}
