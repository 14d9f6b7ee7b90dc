"""Tables of plain text: aligned, a line a row, within the width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit3d.aligned import Table, cell_width, cut, printable, shortened

TABLE = Table(
    ("layer", "bias", "empty", "parameters"),
    [("encoder.0.context.1.conv", "8", "", "1,234"), ("head", "", "", "9"), ("alias", "= encoder.0.context.1.conv.of.a.long.name")],
    frozenset({"parameters"}),
    frozenset({"layer"}),
    ("bias",),
)


def test_columns_are_aligned():
    """Numbers to the right; a column without text is left out; a short row runs over the columns that follow."""
    assert [
        "layer                     bias  parameters",
        "encoder.0.context.1.conv  8          1,234",
        "head                                     9",
        "alias                     = encoder.0.context.1.conv.of.a.long.name",
    ] == TABLE.lines()


def test_columns_give_way():
    """An optional column first, then the middles of names, until the line fits."""
    assert [
        "layer                     parameters",
        "encoder.0.context.1.conv       1,234",
        "head                               9",
        "alias                     = enc….name",
    ] == TABLE.lines(37)
    assert ["layer           parameters", "encoder…1.conv       1,234"] == TABLE.lines(26)[:2]


def test_table_without_rows():
    """Has no lines, not even a heading."""
    assert [] == Table(("a", "b"), []).lines(10)


@pytest.mark.parametrize(
    ("expected", "text", "width"),
    [
        ("encoder", "encoder", 7),
        ("enc…er", "encoder", 6),
        ("e…", "encoder", 2),
        ("…", "encoder", 1),
        ("", "encoder", 0),
        ("脳…脳", "脳脳脳脳", 6),
        ("脳脳脳", "脳脳脳", 6),
    ],
)
def test_middles_are_left_out(expected, text, width):
    """In cells, not in letters: those of some scripts take two."""
    assert expected == shortened(text, width)
    assert cell_width(expected) <= width


def test_control_characters_are_spelt_out():
    """So are marks that turn the direction of writing."""
    assert r"a\x1b[31m\n\u202eb é" == printable("a\x1b[31m\n\u202eb é")


def test_cut():
    """A letter of two cells is not halved, a mark goes with its letter."""
    assert ["ab", "脳", "e\u0301"] == [cut("abc", 2), cut("脳脳", 3), cut("e\u0301x", 1)]


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1, max_size=4), st.integers(0, 60))
def test_no_line_is_longer_than_the_width(rows, width):
    """Whatever the cells hold, a row is one line."""
    lines = Table(("name", "why", "n"), rows, frozenset({"n"}), frozenset({"name", "why"}), ("why",)).lines(width)

    assert len(rows) + 1 == len(lines)
    assert all(cell_width(line) <= width and line.isprintable() for line in lines)
