"""Tables of plain text: aligned columns that fit a width, a line a row whatever the names in them hold.

The same for a terminal and for a log; without rich, which costs more time to import than a table takes to read.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

ELLIPSIS = "…"
GAP = "  "
NARROWEST = 8
COMFORTABLE = 24
WIDEST_CELL = 120


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        headings: of the columns; a column without any text in its rows is left out.
        rows: a text for every column; in a row with fewer, the last one runs over the columns that follow.
        right: headings of the columns that are aligned to the right: numbers.
        flexible: headings of the columns that give way where the width does not suffice.
        optional: headings of the columns that are left out where little would be left of the flexible ones, in this order.
    """

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: frozenset[str] = frozenset()
    flexible: frozenset[str] = frozenset()
    optional: tuple[str, ...] = ()

    def lines(self, width: int | None = None) -> list[str]:
        """The heading and a line a row.

        Args:
            width: the most cells of a line; None for as many as it takes.
        """
        if not self.rows:
            return []
        cells = [tuple(shortened(printable(cell), WIDEST_CELL) for cell in row) for row in (self.headings, *self.rows)]
        widths = self._widths(cells, width)
        return [self._line(row, widths, width) for row in cells]

    def _widths(self, cells: Sequence[tuple[str, ...]], width: int | None) -> list[int]:
        """The cells of every column; 0 for one that is left out."""
        widths = []
        for index in range(len(self.headings)):
            # What runs over several columns makes none of them wider.
            texts = [row[index] for row in cells[1:] if index < len(row) - (len(row) < len(self.headings))]
            widths.append(max(map(cell_width, [cells[0][index], *texts])) if any(texts) else 0)
        if width is None:
            return widths
        flexible = [index for index, heading in enumerate(self.headings) if heading in self.flexible and widths[index]]
        for heading in self.optional:
            if _excess(widths, width) > sum(max(widths[index] - COMFORTABLE, 0) for index in flexible):
                widths[self.headings.index(heading)] = 0
        for _ in range(_excess(widths, width)):
            widest = max(flexible, key=widths.__getitem__, default=0)
            if widest not in flexible or widths[widest] <= NARROWEST:
                break
            widths[widest] -= 1
        return widths

    def _line(self, row: tuple[str, ...], widths: list[int], width: int | None) -> str:
        line = ""
        for index, cell in enumerate(row):
            runs_on = index == len(row) - 1 and len(row) < len(self.headings)
            if widths[index] or runs_on:
                line += GAP if line else ""
                left = WIDEST_CELL if width is None else max(0, width - cell_width(line))
                room = left if runs_on else widths[index]
                text = shortened(cell, room)
                line += text if runs_on else padded(text, room, right=self.headings[index] in self.right)
        return (line if width is None else cut(line, width)).rstrip()


def _excess(widths: Sequence[int], width: int) -> int:
    """How many cells a line is too long."""
    used = [cells for cells in widths if cells]
    return max(0, sum(used) + len(GAP) * (len(used) - 1) - width)


def printable(text: str) -> str:
    """The text with control characters, line ends and what else cannot be printed spelt out: names come from outside."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shortened(text: str, width: int) -> str:
    """The text in at most so many cells, its middle left out: the ends of parameter names tell most."""
    if len(text) <= width // 2 or cell_width(text) <= width:
        return text
    tail = (width - 1) // 2
    return cut(text, width - 1 - tail) + ELLIPSIS + cut(text[::-1], tail)[::-1] if width > 1 else ELLIPSIS[:width]


def cut(text: str, width: int) -> str:
    """The beginning of a text, in at most so many cells."""
    if text.isascii():
        return text[:width]
    for index, letter in enumerate(text):
        width -= cell_width(letter)
        if width < 0:
            return text[:index]
    return text


def padded(text: str, width: int, *, right: bool = False) -> str:
    """The text filled up with spaces to so many cells."""
    spaces = " " * (width - cell_width(text))
    return spaces + text if right else text + spaces


def cell_width(text: str) -> int:
    """How many cells a text takes on a terminal: two for a wide letter, none for a mark on the letter before it."""
    return len(text) if text.isascii() else sum(map(_letter_width, text))


def _letter_width(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
