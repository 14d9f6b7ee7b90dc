"""The one way a file comes into being: a temporary file in the same folder, fsync, replace, fsync of the folder.

Until the replace, the previous file stays byte-intact; a process killed at any moment leaves at most a temporary file, which
`sweep_leftovers` removes.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mergekit3d.errors import MergeKit3DError, OutputError, UsageError

TEMPORARY_PREFIX = ".mergekit3d-"
TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it replaces `path`, on any error it is removed.

    The temporary name ends with the suffixes of `path`, so that writers that look at them (nibabel, matplotlib) work. A
    symbolic link is resolved: its target is replaced, not the link. Missing parent folders are created.

    Raises:
        OutputError: the file system refused (no space left, read-only, no permission).
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target = target.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            raise OutputError("cannot write", where=path, wanted="a regular file", found="something else under that name")
        suffixes = "".join(target.suffixes[-2:])[-32:]
        temporary = target.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}{suffixes}"
        yield temporary
        _commit(temporary, target)
    except OSError as error:
        raise output_error(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_open(path: Path | str) -> Iterator[IO[bytes]]:
    """Yield a binary file, open for reading and writing, that becomes `path` once the block ends without an error.

    Raises:
        OutputError: the file system refused.
    """
    with atomic_path(path) as temporary, open(temporary, "xb+") as file:
        yield file


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_open(path) as file:
        file.write(content)


def write_text(path: Path | str, content: str) -> None:
    """Write `content` to `path` atomically, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` to `path` atomically, as indented JSON without NaN."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def output_error(error: OSError, path: Path | str) -> MergeKit3DError:
    """An `OSError` of a write, told as an `OutputError` about `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError("cannot write", where=path, found="no space left on the device", todo="free some space and run again")
    return OutputError("cannot write", where=path, found=(error.strerror or type(error).__name__).lower())


def refuse_existing(path: Path | str, *, force: bool) -> None:
    """Refuse to write over an output that is there already.

    Raises:
        UsageError: `path` exists and `force` is false.
    """
    if not force and os.path.lexists(path):
        raise UsageError("the output exists already", where=path, todo="pass --force to replace it, or --out to write elsewhere")


def sweep_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left in `folder`; those of living processes stay."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}*"):
        process = leftover.name.removeprefix(TEMPORARY_PREFIX).split("-", 1)[0]
        if not (process.isdigit() and _is_alive(int(process))):
            leftover.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _commit(temporary: Path, target: Path) -> None:
    os.chmod(temporary, stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask())
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
