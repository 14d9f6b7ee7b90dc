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
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mergekit3d.errors import MergeKit3DError, OutputError, UsageError

TEMPORARY_PREFIX = ".mergekit3d-"
TEMPORARY_SUFFIX = ".tmp"
FLUSH_SECONDS = 0.05
_UMASK_LOCK = threading.Lock()
_under_way: set[str] = set()


@contextmanager
def temporary_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, which is created where missing; what stands there is removed at the end.

    The temporary name ends with the suffixes of `path`, so that writers that look at them (nibabel, matplotlib) work.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    suffixes = "".join(target.suffixes[-2:])[-32:]
    temporary = target.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}{suffixes}"
    _under_way.add(temporary.name)
    try:
        yield temporary
    finally:
        # A failing disk refuses this too; the error under way says more.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _under_way.discard(temporary.name)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it replaces `path`, on any error it is removed.

    A symbolic link is resolved: its target is replaced, not the link. Missing parent folders are created.

    Raises:
        OutputError: the file system refused (no space left, read-only, no permission).
    """
    try:
        target = _resolved(Path(path))
        if target.exists() and not target.is_file():
            raise OutputError("cannot write", where=path, wanted="a regular file", found="something else under that name")
        with temporary_file(target) as temporary:
            yield temporary
            _commit(temporary, target)
    except OSError as error:
        raise output_error(error, path) from error


@contextmanager
def atomic_open(path: Path | str) -> Iterator[IO[bytes]]:
    """Yield a binary file, open for reading and writing, that becomes `path` once the block ends without an error.

    Raises:
        OutputError: the file system refused.
    """
    with atomic_path(path) as temporary, open(temporary, "xb+") as file:
        yield file


def write_at(descriptor: int, content: memoryview, offset: int) -> None:
    """Write all of `content` at a place of an open file, whatever other threads write elsewhere in it.

    Raises:
        OSError: the file system refused; `atomic_open` tells it.
    """
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


@contextmanager
def written_behind(descriptor: int) -> Iterator[None]:
    """Within the block, what is written to an open file goes on to the disk at once, so that the sync at its end has little to wait for.

    Raises:
        OSError: the file system refused; `atomic_open` tells it.
    """
    ended, failures = threading.Event(), []

    def flush() -> None:
        try:
            while not ended.wait(FLUSH_SECONDS):
                os.fsync(descriptor)
        except OSError as error:
            # The system tells of a failed write once: it must not be lost here.
            failures.append(error)

    flushing = threading.Thread(target=flush, daemon=True)
    flushing.start()
    try:
        yield
    finally:
        ended.set()
        flushing.join()
    if failures:
        raise failures[0]


def reserve(descriptor: int, size: int) -> None:
    """Take the room that a file will need, so that a full disk is known before any work.

    Raises:
        OSError: there is not enough; `atomic_open` tells it.
    """
    if size == 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        # Some network file systems cannot; the writes themselves tell then.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def move_into_place(source: Path, target: Path) -> None:
    """Rename a file, or a folder to a free name, within one file system; folders above it are created, and the rename is on the disk.

    Raises:
        OutputError: the file system refused.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise output_error(error, target.parent) from error


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
    if isinstance(error, FileExistsError):
        return OutputError("cannot write", where=path, wanted="a folder", found="a file", todo="pass another --out")
    return OutputError("cannot write", where=path, found=(error.strerror or type(error).__name__).lower())


def refuse_existing(path: Path | str, *, force: bool) -> None:
    """Refuse to write over an output that is there already.

    Raises:
        UsageError: `path` exists and `force` is false.
    """
    if not force and os.path.lexists(path):
        raise UsageError("the output exists already", where=path, todo="pass --force to replace it, or --out to write elsewhere")


def sweep_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left in `folder`; what is being written now stays."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}*"):
        process = leftover.name.removeprefix(TEMPORARY_PREFIX).split("-", 1)[0]
        if process.isdecimal() and not _is_being_written(leftover.name, int(process)):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)


def _is_being_written(name: str, process: int) -> bool:
    if process == os.getpid():
        # In a container every run may have the same number, so that a killed one's would never be swept.
        return name in _under_way
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def real_path(path: Path) -> Path:
    """The place that a path leads to, links followed; where they go in a loop, the path as it is, which whoever opens it tells."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # the latter before Python 3.13
        return path.absolute()


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # what Python before 3.13 raises for a loop of links
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


def _commit(temporary: Path, target: Path) -> None:
    os.chmod(temporary, stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask())
    _sync(temporary)
    os.replace(temporary, target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    try:
        _sync(folder)
    except OSError as error:
        # Folders that cannot be opened for reading, and file systems that cannot sync a folder: nothing more to be done.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP):
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # It can be read by setting it alone; two threads that do so at once would leave it at 0.
    with _UMASK_LOCK:
        mask = os.umask(0)
        os.umask(mask)
    return mask
