"""What long work says while it runs: messages, warnings and progress, through one small interface.

The command line shows bars on a terminal and plain lines in a log file; as a library the work is silent unless it is handed a
reporter. Everything goes to standard error; results go to standard output.
"""

from __future__ import annotations

from typing import Protocol, Self


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, steps: float = 1, *, message: str = "") -> None:
        """Count `steps` as done; `message` is the live figure beside the bar ("loss 0.41, dice 0.63")."""


class TaskContext(Protocol):
    """A task as a context manager."""

    def __enter__(self) -> Task: ...

    def __exit__(self, *_: object) -> None: ...


class Reporter(Protocol):
    """Where messages, warnings and progress go."""

    def info(self, message: str) -> None:
        """A line that says what happens now."""

    def warn(self, message: str) -> None:
        """A line that asks for attention; the work goes on."""

    def task(self, description: str, total: float | None) -> TaskContext:
        """A context manager for a piece of work of `total` steps (None: unknown)."""


class Silent:
    """Says nothing; the default of the library."""

    def info(self, message: str) -> None:
        """Drop the message."""

    def warn(self, message: str) -> None:
        """Drop the warning."""

    def task(self, description: str, total: float | None) -> _SilentTask:
        """A task that shows nothing."""
        return _SilentTask()


class _SilentTask:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, steps: float = 1, *, message: str = "") -> None:
        """Show nothing."""


SILENT = Silent()
