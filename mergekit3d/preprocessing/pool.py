"""Jobs shared out among processes, one thread each; a subject that cannot be used does not stop the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mergekit3d.errors import InputError, MachineError, UsageError
from mergekit3d.preprocessing.subject import Job
from mergekit3d.training.interruption import SIGNALS, Interruption

Work = Callable[[Job], dict[str, Any]]
LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Args:
        job: the job.
        value: its result; None: the subject cannot be used.
        error: why.
    """

    job: Job
    value: dict[str, Any] | None
    error: InputError | None = None


def worker_count(asked: int | None, jobs: int) -> int:
    """As many processes as were asked for, else as there are processors; never more than jobs.

    Raises:
        UsageError: fewer than one was asked for.
    """
    if asked is not None and asked < 1:
        raise UsageError("cannot share out the work", wanted="at least 1 worker", found=asked)
    return max(1, min(asked or processors(), jobs))


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def carry_out(work: Work, jobs: Sequence[Job], *, workers: int, interruption: Interruption) -> Generator[Outcome, None, None]:
    """Do the jobs, in this process where one worker is enough; no new one is begun after a signal.

    Args:
        work: what to do with each; a function of a module.
        jobs: what to do it with.
        workers: processes.
        interruption: its flag.

    Yields:
        Each job's outcome as it ends.

    Raises:
        MergeKit3DError: the output cannot be written, or a process was killed.
    """
    if workers > 1 and len(jobs) > 1:
        yield from _in_processes(work, jobs, workers, interruption)
        return
    for job in jobs:
        if interruption.signal_number is not None:
            return
        yield attempt(work, job)


def attempt(work: Work, job: Job) -> Outcome:
    """The outcome of one job; errors that concern more than its subject are raised."""
    try:
        return Outcome(job, work(job))
    except InputError as error:
        return Outcome(job, None, error)


def _in_processes(work: Work, jobs: Sequence[Job], workers: int, interruption: Interruption) -> Generator[Outcome, None, None]:
    waiting = list(reversed(jobs))
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_settle)
    running: set[Future[Outcome]] = set()
    finished = False
    try:
        while running or waiting:
            while waiting and len(running) < workers and interruption.signal_number is None:
                with _without_main():
                    running.add(pool.submit(attempt, work, waiting.pop()))
            if not running:
                break
            ended, running = wait(running, timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED)
            for future in ended:
                yield future.result()
        finished = True
    except BrokenProcessPool as error:
        todo = "free some memory, or pass fewer --workers, and run again with --resume"
        raise MachineError("a process of the work was killed", todo=todo) from error
    finally:
        if not finished:
            # Whatever stops the work stops the processes too: nobody waits for what they are at.
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module from processes that are started: they need none of it, and would run a user's script once more."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _settle() -> None:
    """Leave signals to the first process, and end with it, also where it is killed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_first, daemon=True).start()


def _end_with_the_first() -> None:
    first = multiprocessing.parent_process()
    assert first is not None
    first.join()
    os._exit(1)
