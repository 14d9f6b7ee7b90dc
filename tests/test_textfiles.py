from __future__ import annotations

import pytest

from mergekit3d.errors import InputError
from mergekit3d.textfiles import read_csv, read_json_object


def test_csv_rows_come_with_their_line_numbers(tmp_path):
    """Blank lines are passed over and cells stripped; numbers are those of the file."""
    (tmp_path / "a.csv").write_text("x, y\n\n1, 2\n")
    assert [(3, {"x": "1", "y": "2"})] == read_csv(tmp_path / "a.csv", "the table", ("x",))


def test_csv_with_a_column_twice_is_refused(tmp_path):
    """One of two columns of a name would win silently."""
    (tmp_path / "a.csv").write_text("x,x\n1,2\n")
    with pytest.raises(InputError, match="wanted a name a column, found the same name twice"):
        read_csv(tmp_path / "a.csv", "the table", ("x",))


@pytest.mark.parametrize(
    ("text", "found"), [("{", "wanted JSON"), ("[1]", "wanted a JSON object, found a list"), ("[" * 100_000, "wanted JSON")]
)
def test_bad_json_is_told_in_one_line(tmp_path, text, found):
    """Broken, of another kind, or nested without end."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=found):
        read_json_object(tmp_path / "a.json", "the ratios")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiter_is_told_by_the_header(tmp_path, delimiter):
    """Of those that may stand there; names of columns in lower case, if that is asked for."""
    path = tmp_path / "a.csv"
    path.write_text(f"Subject{delimiter}T1\na{delimiter}b,c;d\n".replace("b,c;d", "b" if delimiter != "\t" else "b,c;d"))
    ((line, cells),) = read_csv(path, "the list", ["subject"], delimiters=",;\t", any_case=True)
    assert (2, ["subject", "t1"], "a") == (line, list(cells), cells["subject"])
