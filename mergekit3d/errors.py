"""Every error that a user can meet, with its exit code.

An error is one line: what failed, where, wanted, found, what to do. They become text in one place, ``cli/app.py``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


class MergeKit3DError(Exception):
    """An error whose text is meant for the user, shown without a traceback.

    Args:
        failed: what failed, as a short clause ("cannot read the checkpoint").
        where: the file, key, tensor or subject.
        wanted: what was expected there.
        found: what stood there.
        todo: the next action, as an imperative.
    """

    exit_code = 70
    told_elsewhere = False
    """Whether another process of the run has the same error and tells it."""

    def __init__(
        self,
        failed: str,
        *,
        where: object = None,
        wanted: object = None,
        found: object = None,
        todo: str | None = None,
    ) -> None:
        self.failed = failed
        self.where = None if where is None else str(where)
        self.wanted = None if wanted is None else str(wanted)
        self.found = None if found is None else str(found)
        self.todo = todo
        super().__init__(self.line())

    def line(self) -> str:
        """The text: what failed, where, wanted, found, what to do."""
        line = self.failed if self.where is None else f"{self.failed}: {self.where}"
        details = []
        if self.wanted is not None:
            details.append(f"wanted {self.wanted}")
        if self.found is not None:
            details.append(f"found {self.found}")
        if details:
            line += f": {', '.join(details)}"
        if self.todo is not None:
            line += f"; {self.todo}"
        return _printable(line)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _printable(line: str) -> str:
    """One line without control characters: names of files and tensors come from outside."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(line.split()))


def _restore(kind: type[MergeKit3DError], args: tuple[Any, ...], state: dict[str, Any]) -> MergeKit3DError:
    """Unpickle an error: worker processes hand theirs back, and keyword-only arguments are not in `args`."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(MergeKit3DError):
    """A command was called in a way that it cannot follow."""

    exit_code = 2


class RecipeError(MergeKit3DError):
    """A recipe, or a plan made from it, cannot be carried out."""

    exit_code = 2


class InputError(MergeKit3DError):
    """An input file is missing, damaged, or not what it should be."""

    exit_code = 65


class MachineError(MergeKit3DError):
    """The machine gave way: its memory or that of a device ran out, or a process of the run was killed."""

    exit_code = 71


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, numpy, torch or the system says that memory ran out; torch is not imported to tell."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # torch.OutOfMemoryError is a RuntimeError; the last is all that oneDNN says.
    texts = ("out of memory", "can't allocate memory", "not enough memory", "could not create a primitive")
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts)


class OutputError(MergeKit3DError):
    """An output cannot be written: disk full, read-only, no permission."""

    exit_code = 74


class LockedError(MergeKit3DError):
    """Another run holds the output folder."""

    exit_code = 75


class Interrupted(MergeKit3DError):
    """A signal stopped the work after its state was saved.

    Args:
        signal_number: the signal; the exit code is 128 plus it.
    """

    def __init__(self, failed: str, *, signal_number: int, todo: str | None = None) -> None:
        super().__init__(failed, todo=todo)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class Problems(MergeKit3DError):
    """Several errors found before any work; each is one line of its own.

    The exit code is the one that all share; where they differ, a damaged input (65) wins.
    """

    def __init__(self, problems: Sequence[MergeKit3DError]) -> None:
        self.problems = tuple(problems)
        codes = {problem.exit_code for problem in self.problems}
        super().__init__(f"{len(self.problems)} problems")
        self.exit_code = codes.pop() if len(codes) == 1 else InputError.exit_code
        self.args = ("\n".join(str(problem) for problem in self.problems),)


class ProblemCollector:
    """Gathers errors so that all of them are reported at once."""

    def __init__(self) -> None:
        self.problems: list[MergeKit3DError] = []

    def add(self, problem: MergeKit3DError) -> None:
        """Keep one error, or each of several, for later."""
        self.problems.extend(problem.problems if isinstance(problem, Problems) else [problem])

    def attempt(self, work: Callable[[], Result]) -> Result | None:
        """The result of `work`, or None where it raised an error, which is kept for later."""
        try:
            return work()
        except MergeKit3DError as error:
            self.add(error)
            return None

    def raise_if_any(self) -> None:
        """Raise what was gathered.

        Raises:
            MergeKit3DError: the one problem, or `Problems` where there are several.
        """
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            raise Problems(self.problems)
