"""Running a process to its end: wall and processor time, peak memory of it and its children.

The memory is read from /proc every few milliseconds by a thread. This module and those that import it stay within the standard
library: a child's ru_maxrss begins at what its parent has in memory at the fork, so that the parent has to be small.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL_S = 0.004
ROUNDS_BETWEEN_LOOKS = 5  # for children
TAIL_LINES = 15


class CannotMeasureError(Exception):
    """A variant failed, or what it wrote is missing or wrong."""


@dataclass(frozen=True)
class Run:
    """One process, from its start to its end.

    Args:
        wall_s: seconds by the clock.
        cpu_s: seconds of processor time, user and system, of it and the children that it waited for.
        peak_rss: most bytes resident, with pages of mapped files: VmHWM, summed over the process and its children.
        peak_anonymous: most bytes of memory of their own: RssAnon, summed likewise, as far as it was sampled. What a process shares
            with its children after a fork is counted in each: an upper bound.
        largest_rss: VmHWM of the largest of these processes.
        maxrss: ru_maxrss in bytes, which is of the largest process too.
        from_disk: bytes that were read from the disk, as they were not in the page cache.
    """

    wall_s: float
    cpu_s: float
    peak_rss: int
    peak_anonymous: int
    largest_rss: int
    maxrss: int
    from_disk: int


def run(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Run:
    """Run a command and measure it.

    Args:
        command: program and arguments.
        log: where its output goes.
        environment: its environment.

    Raises:
        CannotMeasureError: it failed; the end of its output is told.
    """
    with open(log, "wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)  # noqa: S603  ours
        sampler = Sampler(process.pid)
        sampler.start()
        try:
            # A zombie still has its /proc entry, so the number cannot go to another process while the sampler looks.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            wall_s = time.perf_counter() - began
            sampler.stop()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            sampler.stop()
            if process.returncode is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        raise CannotMeasureError(f"exit code {process.returncode} of {' '.join(map(str, command))[:300]}\n{tail}")
    return Run(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss=sum(sampler.peaks.values()),
        peak_anonymous=sampler.peak_anonymous,
        largest_rss=max(sampler.peaks.values(), default=0),
        maxrss=usage.ru_maxrss * 1024,
        from_disk=usage.ru_inblock * 512,
    )


class Sampler(threading.Thread):
    """Looks at the memory of a process and its children until it is stopped.

    Args:
        process: its number.
    """

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._processes = [process]
        self._done = threading.Event()
        self.peaks: dict[int, int] = {}
        self.peak_anonymous = 0

    def stop(self) -> None:
        self._done.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        rounds = 0
        while not self._done.is_set():
            if rounds % ROUNDS_BETWEEN_LOOKS == 0:
                self._processes = list(family(self._processes[0]))
            anonymous = 0
            for process in self._processes:
                fields = memory_of(process)
                anonymous += fields.get("RssAnon", 0)
                if "VmHWM" in fields:
                    self.peaks[process] = fields["VmHWM"]
            self.peak_anonymous = max(self.peak_anonymous, anonymous)
            rounds += 1
            self._done.wait(INTERVAL_S)


def family(process: int) -> list[int]:
    """The number of a process, and those of all its descendants."""
    found = [process]
    for parent in found:
        try:
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (thread / "children").read_bytes().split())
        except OSError:  # it has ended
            continue
    return found


def memory_of(process: int) -> dict[str, int]:
    """VmHWM and RssAnon of a process in bytes; nothing of one that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    values = dict(line.split(":", 1) for line in lines if line.startswith(("VmHWM:", "RssAnon:")))
    return {name: int(value.split()[0]) * 1024 for name, value in values.items()}
