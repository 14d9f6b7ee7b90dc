"""What the streams can take: colours, and letters beyond ASCII."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

PLAIN: Mapping[str, str] = {
    "…": "...", "–": "-", "—": "-", "−": "-", "±": "+-", "×": "x", "·": ".", "→": "->", "≤": "<=", "≥": ">=", "²": "2", "³": "3",
    "°": " deg", "σ": "sigma", "θ": "theta", "δ": "delta", "‘": "'", "’": "'", "“": '"', "”": '"', "─": "-", "━": "-", "│": "|",
    "█": "#", "\u00a0": " ",
}  # fmt: skip
"""ASCII for letters that mergekit3d itself writes; all others, such as those in names of files, are spelt out as escapes."""
HANDLER = "mergekit3d.plain"


def colours(stream: TextIO) -> bool:
    """Whether to colour what goes to a stream: NO_COLOR, then FORCE_COLOR (both unless empty), then whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    forced = os.environ.get("FORCE_COLOR")
    if forced:
        return forced != "0"
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def label(text: str, sgr: str, stream: TextIO) -> str:
    """A word in a colour (as parameters of the escape sequence) where the stream takes colours."""
    return f"\033[{sgr}m{text}\033[0m" if colours(stream) else text


def console(stream: TextIO, *, width: int | None = None) -> Console:
    """A console of rich that agrees with `colours`."""
    from rich.console import Console

    coloured = colours(stream)
    terminal = stream.isatty() or coloured
    return Console(
        file=stream, force_terminal=terminal, color_system="auto" if coloured else None, highlight=False, markup=False, width=width
    )


def accept_every_letter() -> None:
    """Let no stream fail on a letter that its encoding lacks."""
    codecs.register_error(HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=HANDLER)


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler for encoding: ASCII that reads like it, else an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters), error.end
