"""Reading log.csv, which training, adaptation and fine-tuning write: one row an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mergekit3d.errors import InputError
from mergekit3d.textfiles import read_csv

REGION_PREFIX = "validation_dice_"
RATIO_PREFIX = "ratio_"

Column = NDArray[np.float64]


@dataclass(frozen=True)
class TrainingLog:
    """The columns of a log.csv.

    Args:
        columns: (epochs,) by name; NaN where a cell is empty.
    """

    columns: Mapping[str, Column]

    @property
    def epochs(self) -> Column:
        """Number of every row's epoch."""
        return self.columns["epoch"]

    @property
    def regions(self) -> dict[str, Column]:
        """Validation Dice by region."""
        return {name.removeprefix(REGION_PREFIX): values for name, values in self.columns.items() if name.startswith(REGION_PREFIX)}

    def ratios(self, source: str) -> dict[str, Column]:
        """The mixing ratio of one source by layer; empty where the log is not one of `adapt`."""
        ending = f"_{source}"
        return {
            name[len(RATIO_PREFIX) : -len(ending)]: values
            for name, values in self.columns.items()
            if name.startswith(RATIO_PREFIX) and name.endswith(ending)
        }

    def get(self, name: str) -> Column | None:
        """A column, or None where the log lacks it or has no number in it."""
        values = self.columns.get(name)
        return None if values is None or np.isnan(values).all() else values


def read_log(path: Path) -> TrainingLog:
    """Read a log.csv.

    Raises:
        InputError: no such file, no table with a column ``epoch`` and a row, or a cell that is no number.
    """
    rows = read_csv(path, "the training log", ("epoch",))
    if not rows:
        raise InputError("cannot read the training log", where=path, wanted="a row an epoch", found="a header alone")
    columns: dict[str, list[float]] = {name: [] for name in rows[0][1]}
    for number, cells in rows:
        for name, cell in cells.items():
            columns[name].append(_number(cell, f"{path}, line {number}, column {name}"))
    return TrainingLog({name: np.asarray(values) for name, values in columns.items()})


def _number(cell: str, where: str) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        raise InputError("cannot read the training log", where=where, wanted="a number", found=repr(cell)) from None
