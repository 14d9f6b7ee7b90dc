"""The registry of file formats: each is one file beside this one, told apart by the first bytes of a file, not by its name."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit3d.checkpoints.checkpoint import Checkpoint, TensorEntry
from mergekit3d.checkpoints.metadata import Metadata
from mergekit3d.errors import InputError
from mergekit3d.registry import Registry

if TYPE_CHECKING:
    import numpy as np

HEAD_BYTES = 64


@dataclass(frozen=True)
class Format:
    """How to tell, read and write one file format.

    Args:
        name: name in error texts.
        recognises: whether a file that begins with these bytes is of this format.
        open: opens a file of this format.
        write: writes tensors with metadata, atomically, and returns the metadata with its seal.
        suffixes: endings of file names that ask for this format when writing.
    """

    name: str
    recognises: Callable[[bytes], bool]
    open: Callable[[Path], Checkpoint]
    write: Callable[[Path, Iterable[tuple[TensorEntry, np.ndarray]], Metadata], Metadata]
    suffixes: tuple[str, ...]


FORMATS: Registry[Format] = Registry("checkpoint format")


def register(file_format: Format) -> Format:
    """Add a format to the registry under its own name."""
    return FORMATS.register(file_format.name)(file_format)


def check_file(path: Path) -> int:
    """Size of a regular, readable, non-empty file.

    Raises:
        InputError: it is missing, no regular file, empty or not readable.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise InputError("no such file", where=path) from error
    except (OSError, ValueError) as error:
        raise InputError("cannot read the file", where=path, found=str(getattr(error, "strerror", error))) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "something else"
        raise InputError("cannot read the file", where=path, wanted="a regular file", found=kind)
    if status.st_size == 0:
        raise InputError("the file is empty", where=path, todo="restore it from a copy")
    return status.st_size
