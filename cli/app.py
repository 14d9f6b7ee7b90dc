"""The application: every command with its flags, and the one place where errors become text and exit codes."""

from __future__ import annotations

import errno
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from typing import Annotated, Any

import typer

from mergekit3d import __version__
from mergekit3d.errors import MergeKit3DError, OutputError, Problems, UsageError
from mergekit3d.training.processes import is_first_process, number_of_processes

from . import files, method, results
from .console import reporter_for, show
from .flags import Output, output_flags, run_flags

INTERNAL_ERROR = 70
INTERRUPTED = 128 + 2
BROKEN_PIPE = 128 + 13
SHARED = ("train", "fisher", "adapt", "finetune", "predict")
"""Commands whose work the processes that torchrun starts share; the others would all do the whole of it."""
COMMANDS = (
    results.demo,
    results.phantom,
    files.inspect,
    results.preprocess,
    method.train,
    method.fisher,
    method.fuse,
    method.adapt,
    method.finetune,
    results.predict,
    results.evaluate,
    results.compare,
    results.forgetting,
    results.plot,
    method.run,
    files.report,
    files.verify,
    files.convert,
    files.schema,
    files.methods,
)

# Rich help and errors cost 0.2 s a call, and their boxes break error messages into pieces that no log search finds.
app = typer.Typer(
    name="mergekit3d",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mergekit3d {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Adaptive merging of 3D medical segmentation networks (IMM, T-IMM).

    Start with:

      mergekit3d demo

    The method, from your own data:

      mergekit3d fisher m1.pt --data hcp/

      mergekit3d adapt --recipe timm.yaml

      mergekit3d fuse --recipe timm.yaml

      mergekit3d finetune --recipe timm.yaml
    """


def _as_command(function: Callable[..., Any]) -> Callable[..., None]:
    """A function for Typer: the flags that `function` declares, and the common ones in place of `options` and `reporter`."""
    own = inspect.signature(function, eval_str=True).parameters
    groups: list[Callable[..., Any]] = [run_flags, output_flags] if "options" in own else [output_flags]
    flags = [flag for group in groups for flag in inspect.signature(group, eval_str=True).parameters.values()]
    parameters = [parameter for name, parameter in own.items() if name not in ("options", "reporter")]

    def command(**given: Any) -> None:
        raise typer.Exit(_carry_out(function, given))

    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature([*parameters, *flags])  # type: ignore[attr-defined]  # what Typer reads
    return command


def _carry_out(function: Callable[..., Any], given: dict[str, Any]) -> int:
    """Run a command and print its result, or its error; the exit code."""
    own = inspect.signature(function).parameters
    output = output_flags(**_taken(given, output_flags))
    if not output.debug and not sys.warnoptions:
        # Importing MONAI alone emits some 65 warnings; those meant for the user come through the reporter.
        warnings.simplefilter("ignore")
    try:
        _check_processes(function.__name__)
        if "options" in own:
            given["options"] = run_flags(**_taken(given, run_flags))
        if "reporter" in own:
            given["reporter"] = reporter_for(quiet=output.quiet)
        with redirect_stdout(sys.stderr):
            result = function(**given)
        if is_first_process():
            show(result, as_json=output.json)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  every error becomes one line here
        return _tell(error, output)
    return 0


def _check_processes(command: str) -> None:
    """Refuse to do the whole of a command in each of several processes.

    Raises:
        UsageError: torchrun started several.
    """
    count = number_of_processes()
    if count > 1 and command not in SHARED:
        todo = f"start it without torchrun; {', '.join(SHARED[:-1])} and {SHARED[-1]} share their work"
        error = UsageError(f"{command} is work for one process", found=f"{count} processes", todo=todo)
        error.told_elsewhere = not is_first_process()
        raise error


def _taken(given: dict[str, Any], group: Callable[..., Any]) -> dict[str, Any]:
    return {name: given.pop(name) for name in inspect.signature(group).parameters}


def _tell(error: BaseException, output: Output) -> int:
    """Print an error as one line (as one each where it holds several); the exit code."""
    if isinstance(error, MergeKit3DError) and error.told_elsewhere:
        return error.exit_code
    if output.debug:
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        error = OutputError(
            "cannot write" if error.filename else "cannot write the result", where=error.filename, found=os.strerror(error.errno).lower()
        )
    if isinstance(error, MergeKit3DError):
        for problem in error.problems if isinstance(error, Problems) else (error,):
            _complain(str(problem))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        _complain("interrupted")
        return INTERRUPTED
    first_line = next(iter(str(error).splitlines()), "")
    said = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    _complain(f"internal error: {said}" if output.debug else f"internal error: {said}; run again with --debug to see where")
    return INTERNAL_ERROR


def _complain(line: str) -> None:
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    label = "\033[1;31merror:\033[0m" if colour else "error:"
    with suppress(OSError):
        print(f"{label} {line}", file=sys.stderr, flush=True)


for _function in COMMANDS:
    app.command()(_as_command(_function))
