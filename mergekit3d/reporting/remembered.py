"""What is left of the sources' tasks, from the forgetting matrices of a run: of a study's sizes and seeds together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.metrics import defined_mean
from mergekit3d.paired import student_interval
from mergekit3d.reporting import discover
from mergekit3d.reporting.record import StudyRecord
from mergekit3d.reporting.results import LEARNED, Forgetting, display_name
from mergekit3d.textfiles import read_json_object

if TYPE_CHECKING:
    from mergekit3d.reporting.discover import Found

Interval = tuple[float, float]
NONE: Interval = (math.nan, math.nan)
OVER_SUBJECTS = "below each mean, its 95 % bootstrap interval over the test subjects"
OVER_SEEDS = "; of T-IMM, whose ratios are learned anew with each seed, mean and 95 % interval by Student's t over {} seeds"


@dataclass
class _Measured:
    """One network on one task: a Dice a seed, and the interval over the subjects with the first of them."""

    dice: list[float] = field(default_factory=list)
    over_subjects: Interval = NONE


def forgetting_of(found: Found, record: StudyRecord) -> Forgetting | None:
    """The matrices of all sizes and seeds as one table; of a folder with others, the first.

    Raises:
        InputError: a matrix is damaged.
    """
    paths = found.named(discover.FORGETTING)
    splits = {Path(arm.folder).parent: arm.split for arm in record.arms}
    inner = set(paths)
    of_arms = [(split, folder / discover.FORGETTING) for folder, split in splits.items() if folder / discover.FORGETTING in inner]
    chosen = of_arms or [("", path) for path in paths[:1]]
    by_split: dict[str, list[Path]] = {}
    for split, path in chosen:
        by_split.setdefault(split, []).append(path)
    if not by_split:
        return None
    tables = {split: _read(found.folder, files) for split, files in by_split.items()}
    networks = list(dict.fromkeys(network for table in tables.values() for _, network in table))
    rows, dice, intervals = [], [], []
    for split, table in tables.items():
        tasks = list(dict.fromkeys(task for task, _ in table))
        start = f"{split}: " if len(tables) > 1 else ""
        for task in tasks:
            cells = [_cell(network, table.get((task, network), _Measured())) for network in networks]
            rows.append(start + (f"{record.tasks[task]} (S of {task})" if record.tasks.get(task) else f"task of {task}"))
            dice.append([mean for mean, _ in cells])
            intervals.append([interval for _, interval in cells])
        if len(tasks) > 1:
            rows.append(f"{start}mean of the tasks")
            dice.append([defined_mean(row[index] for row in dice[-len(tasks) :]) for index in range(len(networks))])
            intervals.append([NONE] * len(networks))
    seeds = max(len(files) for files in by_split.values())
    known = any(not math.isnan(low) for row in intervals for low, _ in row)
    note = OVER_SUBJECTS + (OVER_SEEDS.format(seeds) if seeds > 1 and LEARNED in networks else "") if known else ""
    return Forgetting(rows, [display_name(network) for network in networks], dice, intervals, note)


def _read(folder: Path, files: Sequence[Path]) -> dict[tuple[str, str], _Measured]:
    from mergekit3d.forgetting_matrix import dice_of_json

    table: dict[tuple[str, str], _Measured] = {}
    for path in files:
        content = read_json_object(folder / path, "the forgetting matrix")
        networks, tasks, dice = dice_of_json(content, folder / path)
        for row, network in enumerate(networks):
            for column, task in enumerate(tasks):
                measured = table.setdefault((task, network), _Measured(over_subjects=_interval(content, row, column)))
                measured.dice.append(dice[row][column])
    return table


def _interval(content: dict[str, Any], row: int, column: int) -> Interval:
    """The interval over the subjects; NaN where a matrix has none."""
    try:
        low, high = content["interval_95"][row][column]
        return float(low), float(high)
    except (KeyError, IndexError, TypeError, ValueError):
        return NONE


def _cell(network: str, measured: _Measured) -> tuple[float, Interval]:
    """Mean and interval; sources and uniform merges are the same network with every seed, and measured once."""
    if network == LEARNED and len(measured.dice) > 1:
        return defined_mean(measured.dice), student_interval(measured.dice)
    return defined_mean(measured.dice[:1]), measured.over_subjects
