"""The state of an unfinished training in one file, from which it goes on as if it had not stopped."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

from mergekit3d.errors import InputError, UsageError
from mergekit3d.storage.atomic import atomic_open

SNAPSHOT_NAME = "snapshot.pt"
FORMAT = 2

ANEW = "pass --force to train anew"


def write_snapshot(path: Path, content: dict[str, Any], *, identity: str) -> None:
    """Write a snapshot atomically.

    Args:
        path: the file.
        content: tensors and plain data.
        identity: digest of what decides the result; only a run of the same one may go on from it.

    Raises:
        OutputError: the file system refused; the previous snapshot stays.
    """
    import torch

    with atomic_open(path) as file:
        torch.save({**content, "format": FORMAT, "identity": identity}, file)


def read_snapshot(path: Path, *, identity: str) -> dict[str, Any] | None:
    """Read a snapshot, its tensors on the CPU.

    Returns:
        The content, or None where there is no snapshot.

    Raises:
        InputError: it is damaged.
        UsageError: it is of another recipe or version.
    """
    import torch

    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = content["format"], content["identity"]
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise InputError("cannot read the snapshot", where=path, found=f"a damaged file ({type(error).__name__})", todo=ANEW) from error
    if found != (FORMAT, identity):
        what = "another version of mergekit3d" if found[0] != FORMAT else "another recipe, start or seed"
        raise UsageError("cannot go on from the snapshot", where=path, found=f"one of {what}", todo=ANEW)
    return content
