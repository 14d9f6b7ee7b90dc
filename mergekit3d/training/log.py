"""log.csv: one row an epoch, written whole each time, so that it never holds half a row or a row twice."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergekit3d.storage.atomic import write_text

Row = Mapping[str, float]
"""Values by column; epochs and steps are whole numbers."""


def write_log(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows with a header; floats come back bit for bit, and what is not defined (NaN) is an empty cell.

    Args:
        path: log.csv.
        rows: with the columns of the first one, in its order.

    Raises:
        OutputError: the file system refused; the previous log stays.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = list(rows[0])
    writer.writerow(columns)
    writer.writerows([["" if math.isnan(row[column]) else repr(row[column]) for column in columns] for row in rows])
    write_text(path, text.getvalue())
