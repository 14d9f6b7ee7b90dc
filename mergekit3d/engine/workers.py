"""Jobs shared out among a few workers: forked processes where that is safe, else threads.

numpy's loops over a few thousand entries are so short that threads mostly queue for the interpreter's lock; processes do not have
one in common. None is forked once torch is loaded: its own threads do not survive a fork.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from mergekit3d.errors import MachineError

Job = tuple[int, Callable[[], Any]]
"""Its size (of any unit) and what it does."""

MOST_WORKERS = 4
KEPT_BYTES = 32 << 20
PR_SET_PDEATHSIG = 1  # of sys/prctl.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def worker_count(jobs: int) -> int:
    """As many as there are processors, jobs, and sense."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores, jobs))


def can_fork() -> bool:
    """Whether a forked process can go on safely."""
    return sys.platform == "linux" and "torch" not in sys.modules


def carry_out(jobs: Sequence[Job]) -> Generator[tuple[int, Any], None, None]:
    """Do all jobs, the largest first.

    Args:
        jobs: their results must be picklable, since they may come from another process.

    Yields:
        The size and the result of each, in the order in which they end.

    Raises:
        Exception: what a job raised; the others are given up.
    """
    ordered = sorted(jobs, key=lambda job: -job[0])
    workers = worker_count(len(ordered))
    if workers == 1:
        for size, work in ordered:
            yield size, work()
    elif can_fork():
        yield from _in_processes(ordered, workers)
    else:
        yield from _in_threads(ordered, workers)


def _in_threads(jobs: Sequence[Job], workers: int) -> Generator[tuple[int, Any], None, None]:
    pool = ThreadPoolExecutor(workers)
    try:
        sizes = {pool.submit(work): size for size, work in jobs}
        for future in as_completed(sizes):
            yield sizes[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _in_processes(jobs: Sequence[Job], workers: int) -> Generator[tuple[int, Any], None, None]:
    import multiprocessing
    from multiprocessing.connection import Connection, wait

    context = multiprocessing.get_context("fork")
    readers, processes = [], []
    try:
        for share in _shares(jobs, workers):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(share, writer), daemon=True)
            with warnings.catch_warnings():
                # Python 3.12 warns where there are threads; those here (a progress bar, a sync) hold no lock that a job takes.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            writer.close()
            readers.append(reader)
            processes.append(process)
        waiting = dict(zip(readers, processes, strict=True))
        while waiting:
            for ready in wait(list(waiting)):
                assert isinstance(ready, Connection)
                message = _received(ready, waiting)
                if isinstance(message, BaseException):
                    raise message
                if message is not None:
                    yield message
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _received(reader: Any, waiting: dict[Any, Any]) -> Any:
    """What a process sent; None, and nothing more to wait for, where it has ended as it should."""
    try:
        message = reader.recv()
    except EOFError:
        process = waiting[reader]
        process.join()
        todo = "free some memory, and run again"
        return MachineError("a process of the work was killed", found=f"exit code {process.exitcode}", todo=todo)
    if message is None:
        waiting.pop(reader).join()
    return message


def _shares(jobs: Sequence[Job], workers: int) -> list[list[Job]]:
    """Jobs for each worker: the largest first, each to the one that has least to do."""
    shares: list[list[Job]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for job in jobs:
        least = loads.index(min(loads))
        shares[least].append(job)
        loads[least] += job[0]
    return shares


def _work(jobs: Sequence[Job], writer: Any) -> None:
    """Do some jobs in a process of their own and send what comes of them, then None."""
    _settle()
    try:
        for size, work in jobs:
            writer.send((size, work()))
        writer.send(None)
    except KeyboardInterrupt:
        pass  # the terminal tells every process; the first one answers
    except BrokenPipeError:
        pass  # the first process is gone
    except Exception as error:  # noqa: BLE001  it is raised again where it is awaited
        writer.send(error)


def _settle() -> None:
    """Let this process end with the first one, and reuse what it frees.

    Pieces come and go all the time, and fresh pages cost more than the arithmetic on them. It concerns a worker alone, and nothing
    where the C library is not glibc.
    """
    import ctypes

    library = ctypes.CDLL(None)
    try:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    except AttributeError:
        return
