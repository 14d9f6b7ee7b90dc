"""What a person or a log file sees: bars on a terminal, plain lines elsewhere, results on stdout.

Nothing here may stop the work: a log on a full disk or a closed terminal loses its lines, not the training.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from mergekit3d.aligned import printable
from mergekit3d.errors import OutputError
from mergekit3d.progress import Reporter

from .terminal import accept_every_letter, console, label

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_S = 10.0
LINE_AT_LEAST_EVERY_S = 60.0
WIDTH_OF_A_FILE = 160


def reporter_for(*, quiet: bool) -> Reporter:
    """Bars where stderr is a terminal, plain lines where it is not, warnings alone where `quiet`."""
    if not quiet and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        return TerminalReporter()
    return PlainReporter(sys.stderr, quiet=quiet)


class PlainReporter:
    """Lines for a log file: at each tenth of a task, never less than 10 s apart, and at least every minute.

    Args:
        stream: where the lines go.
        quiet: warnings only.
        clock: seconds, monotonic.
    """

    def __init__(self, stream: TextIO, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.quiet = quiet
        self.clock = clock
        self.open_tasks = 0

    def info(self, message: str) -> None:
        """A line, unless quiet."""
        if not self.quiet:
            self._write(printable(message))

    def warn(self, message: str) -> None:
        """A line that starts with "warning:"."""
        self._write(f"{label('warning:', '33', self.stream)} {printable(message)}")

    def task(self, description: str, total: float | None) -> _PlainTask:
        """A task told in lines."""
        return _PlainTask(self, description, total)

    def _write(self, line: str) -> None:
        with suppress(OSError):
            print(line, file=self.stream, flush=True)


class _PlainTask:
    def __init__(self, reporter: PlainReporter, description: str, total: float | None) -> None:
        self.reporter = reporter
        self.description = description
        self.total = total
        self.done = 0.0
        self.message = ""

    def __enter__(self) -> Self:
        self.reporter.open_tasks += 1
        self.began = self.told = self.reporter.clock()
        self.told_done = 0.0
        return self

    def __exit__(self, *exception: object) -> None:
        self.reporter.open_tasks -= 1
        long = self.told > self.began
        if exception[0] is None and (long or not self.reporter.open_tasks):
            took = duration(self.reporter.clock() - self.began)
            self.reporter.info(_joined(f"{self.description}: done in {took}", self.message))

    def advance(self, steps: float = 1, *, message: str = "") -> None:
        """Count `steps` as done, and say so where a line is due."""
        self.done += steps
        self.message = message or self.message
        now = self.reporter.clock()
        since = now - self.told
        if since >= LINE_AT_LEAST_EVERY_S or (since >= LINE_EVERY_S and self._tenths(self.done) > self._tenths(self.told_done)):
            self.told, self.told_done = now, self.done
            self.reporter.info(_joined(f"{self.description}: {self._figure()}, {duration(now - self.began)}", self.message))

    def _tenths(self, done: float) -> int:
        return int(10 * done / self.total + 1e-9) if self.total else 0

    def _figure(self) -> str:
        if not self.total:
            return f"{self.done:g} done"
        return f"{min(100, int(100 * self.done / self.total + 1e-9))} % ({self.done:g} of {self.total:g})"


class TerminalReporter:
    """Bars on the terminal at stderr; a task leaves one line, tasks inside it none."""

    def __init__(self) -> None:
        self.console = console(sys.stderr)
        self.progress: Progress | None = None
        self.open_tasks = 0

    def info(self, message: str) -> None:
        """A line above the bars."""
        self.console.print(printable(message), soft_wrap=True)

    def warn(self, message: str) -> None:
        """A line above the bars, in yellow, that starts with "warning:"."""
        self.console.print(f"warning: {printable(message)}", style="yellow", soft_wrap=True)

    def task(self, description: str, total: float | None) -> _Bar:
        """A task shown as a bar."""
        return _Bar(self, description, total)

    def start(self) -> Progress:
        """The display of all bars, started with the first one."""
        from rich import progress
        from rich.table import Column

        if self.progress is None:
            self.progress = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(bar_width=min(40, max(8, self.console.width // 6))),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                # It gives way where the terminal is narrow; all of it stands in the line that a task leaves.
                progress.TextColumn(
                    "{task.fields[message]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
                ),
                console=self.console,
                transient=True,
                expand=True,
            )
            self.progress.start()
        self.open_tasks += 1
        return self.progress

    def stop(self) -> None:
        """One bar less; the display goes with the last one."""
        self.open_tasks -= 1
        if self.progress is not None and not self.open_tasks:
            self.progress.stop()
            self.progress = None


class _Bar:
    def __init__(self, reporter: TerminalReporter, description: str, total: float | None) -> None:
        self.reporter = reporter
        self.description = description
        self.total = total
        self.message = ""

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        self.progress: Progress = self.reporter.start()
        self.bar: TaskID = self.progress.add_task(self.description, total=self.total, message="")
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.remove_task(self.bar)
        self.reporter.stop()
        if exception[0] is None and not self.reporter.open_tasks:
            self.reporter.info(_joined(f"{self.description}: done in {duration(time.monotonic() - self.began)}", self.message))

    def advance(self, steps: float = 1, *, message: str = "") -> None:
        """Count `steps` as done."""
        self.message = message or self.message
        self.progress.update(self.bar, advance=steps, message=self.message)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 3.2 s, 48 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Result(Protocol):
    """What a command returns; for people it has ``__rich__`` or ``lines()`` as well, and ``fitted(width)`` for terminals."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""


def show(result: Result, *, as_json: bool) -> None:
    """Print a result on stdout.

    Args:
        result: what the library returned.
        as_json: one JSON object on one line, where NaN and Inf, which JSON lacks, become null.
    """
    if sys.stdout is None:
        raise OutputError("cannot write the result", found="stdout is closed")
    accept_every_letter()
    try:
        if not as_json and hasattr(result, "__rich__"):
            console(sys.stdout, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE).print(result)
        elif not as_json and hasattr(result, "lines"):
            # A name of a file may hold a line end, or what a terminal takes for a command.
            print("\n".join(printable(line) for text in _lines_of(result) for line in text.split("\n")))
        else:
            print(json.dumps(_plain(result.as_json()), allow_nan=False, indent=None if as_json else 2))
        sys.stdout.flush()
    except OSError:
        _abandon_stdout()
        raise


def _lines_of(result: Any) -> list[str]:
    """The lines of a result, fitted to the terminal where there is one."""
    fits = sys.stdout.isatty() and hasattr(result, "fitted")
    return list(result.fitted(shutil.get_terminal_size().columns) if fits else result.lines())


def _abandon_stdout() -> None:
    """Keep the interpreter from flushing stdout, which has just failed, once more at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, os.PathLike) else value


def _joined(line: str, message: str) -> str:
    return f"{line}, {message}" if message else line
