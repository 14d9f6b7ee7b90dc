"""Small text inputs (CSV, JSON) read whole, with one clear line about what is wrong with them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergekit3d.errors import InputError
from mergekit3d.nearby import did_you_mean_file
from mergekit3d.storage.steady import Stamp, refuse_changed


def read_text(path: Path, what: str) -> str:
    """The text of a small input file.

    Args:
        path: the file.
        what: what it holds, for the error ("the metrics").

    Raises:
        InputError: it is missing, no regular file, unreadable, no text, or changed meanwhile.
    """
    failed = f"cannot read {what}"
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing under that name"
        raise InputError(failed, where=path, wanted="a file", found=found, todo=None if path.exists() else did_you_mean_file(path))
    try:
        before = Stamp.of(path)
        content = path.read_text(encoding="utf-8-sig")
        refuse_changed(before, path, path)
    except UnicodeDecodeError as error:
        raise InputError(failed, where=path, wanted="text in UTF-8", found="other bytes") from error
    except OSError as error:
        raise InputError(failed, where=path, found=(error.strerror or type(error).__name__).lower()) from error
    return content


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object of a small input file; see `read_text`.

    Raises:
        InputError: as `read_text`, or it is no JSON object.
    """
    try:
        content = json.loads(read_text(path, what))
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {what}", where=path, wanted="JSON", found=str(error)) from error
    if not isinstance(content, dict):
        raise InputError(f"cannot read {what}", where=path, wanted="a JSON object", found=f"a {type(content).__name__}")
    return content


def read_csv(
    path: Path, what: str, columns: Sequence[str], *, delimiters: str = ",", any_case: bool = False
) -> list[tuple[int, dict[str, str]]]:
    """The rows of a small CSV file with a header; see `read_text`.

    Args:
        path: the file.
        what: what it holds, for the error.
        columns: the columns that it must have; others are kept.
        delimiters: what may stand between cells: of several, the one that the header has most of.
        any_case: take the names of columns in lower case, however they are written.

    Returns:
        For every row that is not blank its line number (1-based) and its cells, stripped, by column.

    Raises:
        InputError: as `read_text`, or it is no table with those columns.
    """
    text = read_text(path, what)
    header_line = text.lstrip().partition("\n")[0]
    reader = csv.reader(io.StringIO(text), strict=True, delimiter=max(delimiters, key=header_line.count))
    failed = f"cannot read {what}"
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise InputError(failed, where=f"{path}, line {reader.line_num}", wanted="a CSV table", found=str(error)) from error
    header = [name.lower() if any_case else name for name in lines[0][1]] if lines else []
    missing = [column for column in columns if column not in header]
    if missing:
        found = f"no column {', '.join(missing)}" if lines else "an empty file"
        raise InputError(failed, where=path, wanted=f"columns {','.join(columns)}", found=found)
    if len(set(header)) < len(header):
        raise InputError(failed, where=path, wanted="a name a column", found="the same name twice")
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise InputError(failed, where=f"{path}, line {number}", wanted=f"{len(header)} cells", found=str(len(cells)))
    return [(number, dict(zip(header, cells, strict=True))) for number, cells in lines[1:]]
