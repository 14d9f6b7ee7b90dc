"""Errors as the user sees them: one line each on stderr, an exit code, and with --json one object on stdout."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mergekit3d.errors import Interrupted, MachineError, MergeKit3DError, OutputError, Problems, UsageError, is_out_of_memory
from mergekit3d.registry import nearest
from mergekit3d.training.processes import is_first_process

from .flags import Output
from .terminal import label

BROKEN_PIPE = 128 + 13
EXIT_CODES = {
    "0": "done",
    "2": "usage or recipe",
    "65": "bad input",
    "70": "internal error",
    "71": "out of memory, or a process was killed",
    "74": "the output cannot be written",
    "75": "another run is writing there",
    "128 + N": "stopped by signal N",
}
"""Every exit code, for ``--help``."""


class InternalError(MergeKit3DError):
    """A mistake of ours."""

    exit_code = 70


def tell(error: BaseException, output: Output) -> int:
    """Print an error as one line (as one each where it holds several); the exit code.

    With --json the same stands on stdout: ``{"error": {"exit_code": ..., "problems": [{"message": ..., "failed": ...}]}}``.
    """
    told_elsewhere = isinstance(error, MergeKit3DError) and error.told_elsewhere
    if output.debug and not told_elsewhere:
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    known = _known(error)
    if isinstance(known, InternalError) and not output.debug:
        known.todo = "run again with --debug to see where"
    problems = known.problems if isinstance(known, Problems) else (known,)
    for problem in () if told_elsewhere else problems:
        _complain(problem.line())
    if output.json and is_first_process():
        _print_object(known.exit_code, problems)
    return known.exit_code


def _known(error: BaseException) -> MergeKit3DError:
    """An error in our own words."""
    if isinstance(error, MergeKit3DError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted", signal_number=signal.SIGINT)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        failed = "cannot write" if error.filename else "cannot write the result"
        return OutputError(failed, where=error.filename, found=os.strerror(error.errno).lower())
    if is_out_of_memory(error):
        todo = "make patch_size or batch_size smaller, or pass --device cpu where it is the GPU's"
        return MachineError("out of memory", found=_first_line(error), todo=todo)
    said = _first_line(error)
    return InternalError(f"internal error: {type(error).__name__}" + (f": {said}" if said else ""))


def _first_line(error: BaseException) -> str | None:
    return next(iter(str(error).splitlines()), None)


def _complain(line: str) -> None:
    with suppress(OSError):
        print(f"{label('error:', '1;31', sys.stderr)} {line}", file=sys.stderr, flush=True)


def _print_object(code: int, problems: Iterable[MergeKit3DError]) -> None:
    told = [{"message": problem.line(), **{key: getattr(problem, key) for key in PARTS}} for problem in problems]
    with suppress(OSError):
        print(json.dumps({"error": {"exit_code": code, "problems": told}}), flush=True)


PARTS = ("failed", "where", "wanted", "found", "todo")


def usage_error(error: Any, commands: Mapping[str, Any], given: Sequence[str]) -> UsageError:
    """What the parser complains of, as an error of ours.

    Args:
        error: an exception of Typer's parser; it has no public class, but a ``format_message``.
        commands: every command by name.
        given: the arguments of the command line.
    """
    command = getattr(getattr(error, "ctx", None), "command", None) or commands.get(next(iter(given), ""))
    name = command.name if command is not None and command.name in commands else None
    see = f"see: mergekit3d {name} --help" if name else "see: mergekit3d --help"
    if type(error).__name__ == "NoSuchOption":
        return _unknown_flag(error.option_name, name, command, commands)
    parameter = getattr(error, "param", None)
    extra = re.search(r"unexpected extra argument\S* \((.*)\)$", error.message)
    if extra and name:
        return _too_many(extra[1], name, command, see)
    if parameter is not None:
        return _wrong_value(error, parameter)
    if getattr(error, "option_name", None):
        needs = "requires an argument" in error.message
        metavar = next((p.metavar for p in command.params if error.option_name in p.opts), None) if command is not None else None
        flag = error.option_name
        return UsageError(f"{flag} needs a value" if needs else f"{flag} takes no value", wanted=metavar if needs else None, todo=see)
    said: str = error.format_message()
    return UsageError(said[:1].lower() + said[1:].rstrip("."), todo=see)


def _unknown_flag(flag: str, name: str | None, command: Any, commands: Mapping[str, Any]) -> UsageError:
    of = f" of {name}" if name else ""
    own = [option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)]
    guess = nearest(flag, ["--help", *own])
    takers = [other for other, known in commands.items() if any(flag in parameter.opts for parameter in known.params)]
    key = flag.lstrip("-").replace("-", "_")
    if takers and not (guess and _close(flag, guess)):
        todo = (
            f"{', '.join(takers)} {'have' if len(takers) > 1 else 'has'} it" if name else f"it goes behind a command: {', '.join(takers)}"
        )
    elif guess:
        todo = f"did you mean {guess}?"
    elif name and "--set" in own and _recipe_key(f"{name}.{key}"):
        todo = f"it is a key of the recipe: --set {name}.{key}=..."
    else:
        todo = f"see: mergekit3d {f'{name} ' if name else ''}--help"
    return UsageError(f"unknown flag {flag}{of}", todo=todo)


def _close(flag: str, guess: str) -> bool:
    """Whether a guess is surely what was meant, whatever other commands have."""
    import difflib

    return difflib.SequenceMatcher(None, flag, guess).ratio() > 0.85


def _recipe_key(key: str) -> bool:
    from .known import KEYS

    return key in KEYS


def _too_many(extra: str, name: str, command: Any, see: str) -> UsageError:
    arguments = [parameter.metavar or parameter.name for parameter in command.params if parameter.param_type_name == "argument"]
    flags = {option for parameter in command.params for option in parameter.opts}
    first = extra.partition(" ")[0]
    if first.lower().endswith((".yaml", ".yml")) and "--recipe" in flags:
        todo = f"did you mean --recipe {first}?"
    else:
        todo = see
    return UsageError(f"too many arguments for {name}", wanted=" ".join(arguments) or "none", found=extra, todo=todo)


def _wrong_value(error: Any, parameter: Any) -> UsageError:
    """A value that a flag does not take."""
    flag = parameter.opts[0] if parameter.param_type_name == "option" else parameter.human_readable_name
    kind = parameter.type
    found = re.match(r"'?(.*?)'? is not ", error.message)
    value = found[1] if found else None
    choices = getattr(kind, "choices", None)
    if choices:
        names = [str(choice) for choice in choices]
        wanted = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
        guess = nearest(value or "", names)
        return UsageError("wrong value", where=flag, wanted=wanted, found=value, todo=f"did you mean {guess}?" if guess else None)
    if value is None or not hasattr(kind, "min"):
        return UsageError("wrong value", where=flag, found=error.message.rstrip("."))
    number = "a whole number" if "int" in kind.name else "a number"
    low, high = kind.min, kind.max
    limits = f" of {low:g} to {high:g}" if None not in (low, high) else f" of at least {low:g}" if low is not None else ""
    return UsageError("wrong value", where=flag, wanted=number + limits, found=value)
