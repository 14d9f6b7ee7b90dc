"""Help that reads at 80 columns, without colours: usage, what it does, arguments, flags by group, examples, exit codes.

Rich would take 0.2 s a call for it. The groups are Typer's ``rich_help_panel``, and the examples the last part of a docstring, after a
line "Examples:"; there lines stay as they are.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from mergekit3d.errors import UsageError
from mergekit3d.registry import did_you_mean, nearest

from .completion import answer
from .flags import COMPUTING, INFERENCE, INPUT, MESSAGES, OUTPUT, Output
from .telling import BROKEN_PIPE, EXIT_CODES, tell, usage_error
from .terminal import accept_every_letter

OTHERS = "Options"
PANELS = (INPUT, OTHERS, INFERENCE, COMPUTING, OUTPUT, MESSAGES)
EXAMPLES = "\nExamples:\n"


class Command(TyperCommand):
    """A command; its ``options_metavar`` is its usage, ways to call it being separated by "|"."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """A line for each way to call the command."""
        _write_usage(self, ctx, formatter)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  click's signature
        """What it does; examples follow the flags."""
        _write_text(self.help, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then flags by group, then examples."""
        arguments = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "argument"]
        _write_section("Arguments", _records(arguments, ctx), formatter)
        _write_flags([parameter for parameter in self.get_params(ctx) if parameter not in arguments], ctx, formatter)
        _write_examples(self.help, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  click's signature
        """Exit codes, where they tell something of this command."""
        _write_epilog(self.epilog, formatter)


class Group(TyperGroup):
    """All commands; whatever goes wrong before one of them begins is one line, too."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """How to call a command."""
        _write_usage(self, ctx, formatter)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  click's signature
        """What it is for, and how to begin."""
        _write_text(self.help, formatter)
        _write_examples(self.help, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Commands by group, flags, exit codes."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            if not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or OTHERS
                groups.setdefault(panel, []).append((name, (command.help or "").strip().partition("\n")[0]))
        wide = max((len(name) for rows in groups.values() for name, _ in rows), default=0)
        for panel, rows in groups.items():
            _write_section(panel, [(name.ljust(wide), text) for name, text in rows], formatter)
        _write_flags(self.get_params(ctx), ctx, formatter)
        _write_section("Exit codes", list(EXIT_CODES.items()), formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  click's signature
        """Where to read on."""
        _write_epilog(self.epilog, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, where ``help COMMAND`` stands for ``COMMAND --help``."""
        return super().parse_args(ctx, _without_the_word_help(args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is meant.

        Raises:
            UsageError: there is none of that name.
        """
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            raise _unknown_command(name, list(self.commands))
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit."""
        given = list(sys.argv[1:] if args is None else args)
        accept_every_letter()
        answer(self, prog_name or "mergekit3d")
        try:
            code = super().main(given, prog_name, complete_var, False, windows_expand_args, **extra)
        except SystemExit as end:
            # What the parser makes of help that nobody reads on.
            if standalone_mode and isinstance(end.__context__, BrokenPipeError):
                sys.exit(BROKEN_PIPE)
            raise
        except Exception as error:
            if not standalone_mode:
                raise
            code = self._complain(error, given)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code

    def _complain(self, error: Exception, given: Sequence[str]) -> int:
        output = Output(json="--json" in given, quiet=False, debug="--debug" in given)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(str(error), file=sys.stderr)
            return UsageError.exit_code
        return tell(usage_error(error, self.commands, given) if hasattr(error, "format_message") else error, output)


def _without_the_word_help(args: list[str]) -> list[str]:
    if args[:1] != ["help"]:
        return args
    return [*args[1:2], "--help"]


def _unknown_command(name: str, commands: list[str]) -> UsageError:
    if name == "version":
        return UsageError("unknown command 'version'", todo="did you mean --version?")
    known = nearest(name, commands) is not None
    return UsageError(f"unknown command {name!r}", todo=did_you_mean(name, commands) if known else "see: mergekit3d --help")


def _write_usage(command: Any, ctx: Any, formatter: Any) -> None:
    ways = [way.strip() for way in (command.options_metavar or "").split(" | ")]
    if isinstance(command, Group):
        ways = [command.subcommand_metavar]
    for index, way in enumerate(ways):
        formatter.write_usage(ctx.command_path, way, prefix=None if index == 0 else "       ")


def _write_text(text: str | None, formatter: Any) -> None:
    said = inspect.cleandoc(text or "").partition(EXAMPLES)[0].strip()
    if said:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(said)


def _write_examples(text: str | None, formatter: Any) -> None:
    """One example a paragraph of the docstring, to be copied: where it runs over several lines, the shell is told so."""
    examples = inspect.cleandoc(inspect.cleandoc(text or "").partition(EXAMPLES)[2])
    if examples:
        with formatter.section("Examples"):
            for example in examples.split("\n\n"):
                lines = [line.strip() for line in example.strip().splitlines()]
                formatter.write("".join(f"{'':>{formatter.current_indent}}{line}\n" for line in " \\\n    ".join(lines).split("\n")))


def _write_epilog(text: str | None, formatter: Any) -> None:
    if text:
        formatter.write_paragraph()
        formatter.write_text(inspect.cleandoc(text))


def _write_flags(parameters: Iterable[Any], ctx: Any, formatter: Any) -> None:
    """Flags by group."""
    groups: dict[str, list[Any]] = {}
    for parameter in parameters:
        # The parser makes --help itself.
        own = MESSAGES if parameter.name == "help" and ctx.parent is not None else OTHERS
        groups.setdefault(getattr(parameter, "rich_help_panel", None) or own, []).append(parameter)
    for name in sorted(groups, key=PANELS.index):
        _write_section(name, _records(groups[name], ctx), formatter)


def _records(parameters: Iterable[Any], ctx: Any) -> list[tuple[str, str]]:
    return [record for parameter in parameters if (record := parameter.get_help_record(ctx)) is not None]


def _write_section(name: str, rows: Sequence[tuple[str, str]], formatter: Any) -> None:
    if rows:
        with formatter.section(name):
            formatter.write_dl(rows)
