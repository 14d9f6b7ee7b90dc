"""One run at a time in an output folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergekit3d.errors import LockedError
from mergekit3d.storage.atomic import output_error, sweep_leftovers

LOCK_NAME = ".mergekit3d.lock"


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` (created where missing) for this thread; a killed process frees it.

    The thread that holds it may take it again: a command that runs others in one folder.

    Raises:
        LockedError: another run holds it.
        OutputError: the folder cannot be created or written.
    """
    with _held(folder, timeout=0, is_singleton=True):
        yield


@contextmanager
def waiting_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` (created where missing) for a moment; others, also threads of this process, wait for it.

    Raises:
        OutputError: the folder cannot be created or written.
    """
    with _held(folder, timeout=-1, is_singleton=False):
        yield


@contextmanager
def _held(folder: Path, *, timeout: float, is_singleton: bool) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.resolve() / LOCK_NAME, timeout=timeout, is_singleton=is_singleton)
        lock.acquire()
    except Timeout as error:
        raise LockedError("another run is writing here", where=folder, todo="wait for it, or pass another --out") from error
    except OSError as error:
        raise output_error(error, folder) from error
    try:
        sweep_leftovers(folder)
        yield
    finally:
        lock.release()
