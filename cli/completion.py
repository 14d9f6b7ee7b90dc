"""What the shell offers after a Tab: commands, flags, and values; where nothing is offered, it offers files.

The scripts that ``--install-completion`` and ``--show-completion`` hand out are Typer's. This answers what they ask, for bash, zsh and
fish: Typer's own answers import rich, take no note of where bash splits words, and know nothing of values.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .known import ARCHITECTURES, DEVICES, FORMATS, KEYS, LAYOUTS, MODALITIES, REGIONS

Candidate = tuple[str, str]
"""A value and what it is."""
VALUES: Mapping[str, Sequence[str]] = {
    "--architecture": ARCHITECTURES,
    "--device": DEVICES,
    "--devices": DEVICES[1:],
    "--layout": ("auto", *LAYOUTS),
    "--mirror-axes": ("x", "x,y", "x,y,z"),
    "--modalities": MODALITIES,
    "--private": ("kind:norm", "kind:conv", "kind:linear", "kind:activation", "kind:other"),
    "--regions": REGIONS,
    "--to": FORMATS,
}
SPLITS = "=:"
"""Where bash splits words (COMP_WORDBREAKS), and so what it replaces begins."""


def answer(group: Any, program: str) -> None:
    """Answer a shell that asks for completions and exit; else do nothing."""
    asked = os.environ.get(f"_{program.replace('-', '_').upper()}_COMPLETE", "")
    shell = asked.removeprefix("complete_")
    if shell not in SHELLS or shell == asked:
        return
    words, incomplete = _words_of_bash() if shell == "bash" else _words_of_a_line()
    found = completions(group, words, incomplete)
    if shell == "fish" and os.environ.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        sys.exit(0 if found else 1)
    print(SHELLS[shell](found, incomplete))
    sys.exit(0)


def completions(group: Any, words: Sequence[str], incomplete: str) -> list[Candidate]:
    """What may stand in place of `incomplete`.

    Args:
        group: the command line.
        words: what stands before, without the program.
        incomplete: the beginning of the word.
    """
    words = [] if list(words) == ["help"] else words
    if not words:
        found = _flags(group, ()) if incomplete.startswith("-") else _commands(group)
    else:
        command = group.commands.get(words[0])
        found = [] if command is None else _of_command(command, words[1:], incomplete)
    return [(value, text) for value, text in found if value.startswith(incomplete)]


def _commands(group: Any) -> list[Candidate]:
    return [(name, (command.help or "").strip().partition("\n")[0]) for name, command in group.commands.items() if not command.hidden]


def _of_command(command: Any, words: Sequence[str], incomplete: str) -> list[Candidate]:
    by_flag = {flag: parameter for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    flag, equals, begun = incomplete.partition("=")
    if equals and flag in by_flag:
        return [(f"{flag}={value}", text) for value, text in _values(flag, by_flag[flag], begun)]
    last = by_flag.get(words[-1]) if words and words[-1].startswith("-") else None
    if last is not None and not last.is_flag:
        return _values(words[-1], last, incomplete)
    takes_arguments = any(parameter.param_type_name == "argument" for parameter in command.params)
    return _flags(command, words) if incomplete.startswith("-") or not takes_arguments else []


def _flags(command: Any, words: Sequence[str]) -> list[Candidate]:
    """The flags that may still be given."""
    found = []
    for parameter in command.params:
        names = [name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")]
        if parameter.param_type_name == "option" and (parameter.multiple or not set(names) & set(words)):
            found += [(name, parameter.help or "") for name in names]
    return [*found, ("--help", "Show this message and exit.")]


def _values(flag: str, parameter: Any, begun: str) -> list[Candidate]:
    if flag == "--set":
        return [(text, "") for text in _overrides(begun)]
    choices = getattr(parameter.type, "choices", None) or VALUES.get(flag, ())
    before = begun[: begun.rfind(",") + 1] if flag in ("--modalities", "--devices") else ""
    return [(f"{before}{choice}", "") for choice in choices]


def _overrides(begun: str) -> list[str]:
    """KEY=VALUE as far as one can tell: sections, keys of one, values of a key."""
    if "=" in begun:
        key, _, _ = begun.partition("=")
        return [f"{key}={value}" for value in KEYS.get(key, ())]
    keys = [key for key in KEYS if key.startswith(begun)]
    if len(keys) == 1:
        return [f"{keys[0]}=", *(f"{keys[0]}={value}" for value in KEYS[keys[0]])]
    depth = len(begun)
    found = {key[: dot + 1] if (dot := key.find(".", depth)) >= 0 else f"{key}=" for key in keys}
    only = next(iter(found)) if len(found) == 1 else ""
    return _overrides(only) if only.endswith(".") and only != begun else sorted(found)


def _words_of_bash() -> tuple[list[str], str]:
    """The words up to the cursor, those that bash split at "=" and ":" in one piece again."""
    words = os.environ.get("COMP_WORDS", "").split("\n")
    if len(words) == 1:
        words = words[0].split(" ")
    joined: list[str] = []
    glue = False
    for word in words[1 : int(os.environ.get("COMP_CWORD", "0")) + 1]:
        splits = word != "" and all(letter in SPLITS for letter in word)
        if joined and (splits or glue):
            joined[-1] += word
        else:
            joined.append(word)
        glue = splits
    return joined[:-1], joined[-1] if joined else ""


def _words_of_a_line() -> tuple[list[str], str]:
    line = os.environ.get("_TYPER_COMPLETE_ARGS", "")
    try:
        words = shlex.split(line)[1:]
    except ValueError:  # a quotation mark that is still open
        words = line.split()[1:]
    return (words, "") if not words or line.endswith(" ") else (words[:-1], words[-1])


def _for_bash(found: Iterable[Candidate], incomplete: str) -> str:
    kept = max(incomplete.rfind(split) for split in SPLITS) + 1
    return "\n".join(value[kept:] for value, _ in found)


def _for_zsh(found: Iterable[Candidate], _: str) -> str:
    items = [f'"{_escaped(value)}":"{_escaped(text)}"' if text else f'"{_escaped(value)}"' for value, text in found]
    return f"_arguments '*: :(({chr(10).join(items)}))'" if items else "_files"


def _escaped(text: str) -> str:
    for letter, instead in (('"', '""'), ("'", "''"), ("$", "\\$"), ("`", "\\`"), (":", "\\\\:")):
        text = text.replace(letter, instead)
    return text


def _for_fish(found: Iterable[Candidate], _: str) -> str:
    return "\n".join(f"{value}\t{' '.join(text.split())}" if text else value for value, text in found)


SHELLS: Mapping[str, Callable[[Iterable[Candidate], str], str]] = {"bash": _for_bash, "zsh": _for_zsh, "fish": _for_fish}
