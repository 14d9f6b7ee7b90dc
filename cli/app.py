"""The application: every command with its flags, and the one place where errors become text and exit codes."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Annotated, Any, NamedTuple

import typer

from mergekit3d import __version__
from mergekit3d.errors import UsageError
from mergekit3d.training.processes import is_first_process, number_of_processes

from . import files, method, results
from .console import reporter_for, show
from .flags import output_flags, run_flags
from .help import Command, Group
from .telling import tell

SHARED = ("train", "fisher", "adapt", "finetune", "predict")
"""Commands whose work the processes that torchrun starts share; the others would all do the whole of it."""


class Entry(NamedTuple):
    """A command in the list of all."""

    function: Callable[..., Any]
    panel: str
    usage: str
    """Ways to call it, separated by "|"."""
    exit_codes: str | None = None


STOPPED = "Exit code 128 + N after signal N: the state is saved, and --resume goes on."
RECIPE = "--recipe RECIPE [OPTIONS]"
ENTRIES = (
    Entry(results.demo, "All at once", "[OPTIONS]", STOPPED),
    Entry(method.run, "All at once", "RECIPE [OPTIONS]", STOPPED),
    Entry(results.phantom, "Data", "OUT --layout hcp|brats --subjects N [OPTIONS]"),
    Entry(results.preprocess, "Data", "IN OUT [OPTIONS]"),
    Entry(method.train, "Sources", RECIPE, STOPPED),
    Entry(method.fisher, "Sources", "CKPT --data DATA [OPTIONS] | --recipe RECIPE [OPTIONS]", STOPPED),
    Entry(method.adapt, "Merging", RECIPE, STOPPED),
    Entry(method.fuse, "Merging", RECIPE, "Exit code 65: a source is damaged, holds NaN, or does not fit; nothing is written then."),
    Entry(method.finetune, "Merging", RECIPE, STOPPED),
    Entry(files.methods, "Merging", "[OPTIONS]"),
    Entry(results.predict, "Results", "CKPT... --data DATA --out DIR [OPTIONS]", STOPPED),
    Entry(results.evaluate, "Results", "CKPT --data DATA [OPTIONS] | --pred DIR --truth DIR [OPTIONS]", STOPPED),
    Entry(results.compare, "Results", "METRICS METRICS... [OPTIONS]"),
    Entry(
        results.forgetting,
        "Results",
        "--recipe RECIPE [OPTIONS] | CKPT... --source NAME=CKPT... --data DIR [OPTIONS]",
        STOPPED,
    ),
    Entry(results.plot, "Results", "FILE... [OPTIONS]"),
    Entry(files.report, "Results", "RUN [OPTIONS]"),
    Entry(files.inspect, "Files", "CKPT... [OPTIONS] | DATA [OPTIONS] | --recipe RECIPE [OPTIONS]"),
    Entry(files.verify, "Files", "FILE [OPTIONS]"),
    Entry(files.convert, "Files", "CKPT OUT [OPTIONS]"),
    Entry(files.schema, "Files", "[OPTIONS]"),
)
"""Every command, in the order of the work."""
COMMANDS = tuple(entry.function for entry in ENTRIES)

# Rich help and errors cost 0.2 s a call, and their boxes break error messages into pieces that no log search finds.
app = typer.Typer(
    name="mergekit3d",
    cls=Group,
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

    Examples:

      mergekit3d demo                          # all of it, on generated data

      mergekit3d fisher m1.pt --data hcp/      # from your own networks and data:

      mergekit3d adapt --recipe timm.yaml      # mixing ratios

      mergekit3d fuse --recipe timm.yaml       # several networks become one

      mergekit3d finetune --recipe timm.yaml   # which is trained on

      mergekit3d run timm.yaml                 # or all of these at once

      mergekit3d help fuse                     # flags and examples of a command
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
        # It tells of its cache of fonts at the first figure, and where HOME cannot be written at every one.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
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
        return tell(error, output)
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


for _entry in ENTRIES:
    app.command(cls=Command, options_metavar=_entry.usage, rich_help_panel=_entry.panel, epilog=_entry.exit_codes)(
        _as_command(_entry.function)
    )
"""The command line of mergekit3d, installed as ``mergekit3d_cli``: parse, call one function of the library, print."""
