"""What the segmentations of a folder were made from: predictions.json, by which a prediction is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit3d.checkpoints.metadata import tool
from mergekit3d.errors import UsageError
from mergekit3d.storage.atomic import write_json
from mergekit3d.storage.seal import file_digest
from mergekit3d.textfiles import read_json_object


class PredictionRecord:
    """Images that were segmented, each with its files: no names, hashes alone.

    Several processes keep one each until their work is done: a kill loses nothing.

    Args:
        path: predictions.json.
        settings: checkpoints and all that decides on the result.
        process: number of this one of several; None: it is alone.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], process: int | None) -> None:
        self.path = path
        self._own = path if process is None else path.with_name(f".{path.stem}-{process + 1}{path.suffix}")
        self._settings = dict(settings)
        self.done: dict[str, list[str]] = {}

    def known(self) -> bool:
        """Whether some run left a record."""
        return self.path.exists() or bool(self._parts())

    def begin(self, *, resume: bool, force: bool) -> dict[str, list[str]]:
        """What was done before, of all processes; the record begins with it.

        Raises:
            UsageError: the folder holds segmentations of other checkpoints or settings.
        """
        for path in [self.path, *self._parts()] if resume else []:
            if path.exists():
                found = read_json_object(path, "the record of the predictions")
                same = found.get("settings") == self._settings and isinstance(found.get("done"), dict)
                if not (same or force):
                    raise UsageError(
                        "nothing to resume",
                        where=path,
                        found="segmentations of other checkpoints or settings",
                        todo="pass --force to make them anew, or another --out",
                    )
                self.done |= found["done"] if same else {}
        self.end([self.done])
        return self.done

    def end(self, records: Sequence[Mapping[str, list[str]]]) -> None:
        """One record of all processes' work."""
        self.done = {images: files for record in records for images, files in record.items()}
        self._write(self.path)
        for path in self._parts():
            path.unlink()

    def has(self, images: str, files: Sequence[Path]) -> bool:
        """Whether these images were segmented, and the files are still those that were written."""
        return images in self.done and all(path.is_file() for path in files) and self.done[images] == list(map(file_digest, files))

    def add(self, images: str, files: Sequence[Path]) -> None:
        """Note that they were."""
        self.done[images] = list(map(file_digest, files))
        self._write(self._own)

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f".{self.path.stem}-*{self.path.suffix}"))

    def _write(self, path: Path) -> None:
        write_json(path, {"tool": tool(), "settings": self._settings, "done": self.done})
