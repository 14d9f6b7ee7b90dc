"""The registry of file formats: each is one file beside this one, told apart by what a file holds, not by its name."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mergekit3d.checkpoints.checkpoint import Checkpoint, TensorEntry
from mergekit3d.checkpoints.metadata import Metadata
from mergekit3d.errors import InputError, UsageError
from mergekit3d.nearby import did_you_mean_file
from mergekit3d.registry import Registry
from mergekit3d.storage.steady import Stamp

if TYPE_CHECKING:
    import numpy as np

HEAD_BYTES = 64


class Write(Protocol):
    """What writes a checkpoint of a format."""

    def __call__(
        self, path: Path, tensors: Iterable[tuple[TensorEntry, np.ndarray]], metadata: Metadata, like: Path | None = None
    ) -> Metadata:
        """Write tensors with metadata, atomically.

        Args:
            path: where to.
            tensors: by entry; an alias of the metadata comes after the tensor that it is.
            metadata: without a seal.
            like: a checkpoint of the same format whose other content is taken over; None: what the metadata tells has to do.

        Returns:
            The metadata with its seal.
        """
        ...


@dataclass(frozen=True)
class Format:
    """How to tell, read and write one file format.

    Args:
        name: name in error texts, and on the command line.
        recognises: whether a path is of this format, told from it and from the first bytes of its file (none: a folder). It does not
            raise on what it does not know.
        open: opens a path of this format.
        write: writes a checkpoint; None: the format is read only.
        suffixes: endings of file names that ask for this format when writing.
        is_general: asked last, as files of other formats look like its own.
        continues: whether what is written under a name with one of `also` stays in this format, told from its metadata.
        also: endings of names that ask for this format where `continues` says so.
    """

    name: str
    recognises: Callable[[Path, bytes], bool]
    open: Callable[[Path], Checkpoint]
    write: Write | None = None
    suffixes: tuple[str, ...] = ()
    is_general: bool = False
    continues: Callable[[Metadata], bool] = lambda _: False
    also: tuple[str, ...] = ()

    def writer(self) -> Write:
        """What writes this format.

        Raises:
            UsageError: it is read only.
        """
        if self.write is None:
            written = ", ".join(name for name, known in FORMATS.items() if known.write is not None)
            raise UsageError("the format is read only", where=self.name, wanted=written)
        return self.write


FORMATS: Registry[Format] = Registry("checkpoint format")


def register(file_format: Format) -> Format:
    """Add a format to the registry under its own name."""
    return FORMATS.register(file_format.name)(file_format)


def refuse_template(like: Path | None, name: str) -> None:
    """Refuse a template for a format that holds nothing beside tensors and metadata.

    Raises:
        UsageError: there is one.
    """
    if like is not None:
        raise UsageError("the format takes no template", where=name, found=str(like), todo="leave --like out")


def recognise(path: Path) -> Format | None:
    """The format of a file or folder, told from its content; None where it is of none.

    Raises:
        OSError: it cannot be read.
    """
    head = b""
    if not path.is_dir():
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    by_generality = sorted((known for _, known in FORMATS.items()), key=lambda known: known.is_general)
    return next((known for known in by_generality if known.recognises(path, head)), None)


def check_file(path: Path) -> int:
    """Size of a regular, readable, non-empty file; see `stamp_of`."""
    return stamp_of(path).size


def stamp_of(path: Path) -> Stamp:
    """The stamp, with the size, of a regular, readable, non-empty file: what is read of it later must have the same.

    Raises:
        InputError: it is missing, no regular file, empty or not readable.
    """
    status = _status(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "something else"
        raise InputError("cannot read the file", where=path, wanted="a regular file", found=kind)
    if status.st_size == 0:
        raise InputError("the file is empty", where=path, todo="restore it from a copy")
    return Stamp.from_status(status)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder.

    Raises:
        InputError: it is missing, or not readable.
    """
    return stat.S_ISDIR(_status(path).st_mode)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise InputError("no such file", where=path, todo=did_you_mean_file(path)) from error
    except (OSError, ValueError) as error:
        raise InputError("cannot read the file", where=path, found=str(getattr(error, "strerror", error))) from error
