"""Paired comparison of measured methods: the first against every other, over the subjects and regions that all share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit3d.errors import InputError
from mergekit3d.metrics import SubjectMetrics, defined_mean
from mergekit3d.paired import FEWEST_PAIRS, MOST_EXACT, bootstrap_interval, holm, paired_differences, signed_rank

MEAN = "mean"
"""Stands where a region's name would: the mean over the regions of each subject."""

METHOD = {
    "differences": "Dice of the first minus Dice of the other, subject by subject, where every file defines it",
    "mean": "per subject, over the regions that every file defines",
    "p": "two-sided Wilcoxon signed-rank test; differences of 0 are left out of the ranks, ties share their mean rank",
    "p_method": f"exact up to {MOST_EXACT} differences other than 0, over all signs of their ranks, ties included; beyond, the normal "
    "approximation with its correction for ties",
    "p_holm": "Holm's correction: one family of the comparisons of the mean, a second one of all comparisons of single regions",
    "interval_95": "percentile bootstrap of the mean difference over subjects, 10,000 resamples",
}


@dataclass(frozen=True)
class Comparison:
    """The first file against one other, in one region or their mean.

    Args:
        other: name of the other file.
        region: the region, or `MEAN`.
        mean_difference: of Dice, first minus other; NaN without pairs.
        interval_95: bootstrap interval of the mean difference; NaN with fewer than 2 pairs.
        p: of Wilcoxon's test; NaN without pairs.
        p_method: exact or normal approximation; None where nothing was tested.
        p_holm: p corrected for the family.
        wins: subjects where the first has the larger Dice.
        losses: subjects where the other has.
        ties: the rest.
        differences: by subject, sorted by name.
    """

    other: str
    region: str
    mean_difference: float
    interval_95: tuple[float, float]
    p: float
    p_method: str | None
    p_holm: float
    wins: int
    losses: int
    ties: int
    differences: Mapping[str, float]


@dataclass(frozen=True)
class CompareResult:
    """What a comparison found.

    Args:
        first: name of the file that the others are compared with.
        others: names of the others, in order.
        subjects: those in every file, sorted.
        regions: those in every file, in the order of the first.
        mean_dice: by file and region (`MEAN` too), over the subjects where every file defines it.
        first_dice: the first's mean over the regions, by subject.
        comparisons: one an other and region, `MEAN` first.
        notes: what a reader has to know: who was left out, too few pairs.
        seed: of the bootstrap.
        table: compare.json, where it was written.
        picture: compare.png, where it was written.
    """

    first: str
    others: tuple[str, ...]
    subjects: tuple[str, ...]
    regions: tuple[str, ...]
    mean_dice: Mapping[str, Mapping[str, float]]
    first_dice: Mapping[str, float]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    seed: int = 0
    table: Path | None = None
    picture: Path | None = None

    def of_mean(self) -> list[Comparison]:
        """The comparisons of the mean over the regions, one an other file."""
        return [comparison for comparison in self.comparisons if comparison.region == MEAN]

    def as_json(self) -> dict[str, Any]:
        """The content of compare.json, and where it was written; undefined numbers are None."""
        written = {"out": self.table and self.table.parent, "table": self.table, "picture": self.picture}
        return {
            **{key: str(path) for key, path in written.items() if path is not None},
            "first": self.first,
            "others": list(self.others),
            "subjects": list(self.subjects),
            "regions": list(self.regions),
            "mean_dice": {name: {region: _finite(value) for region, value in dice.items()} for name, dice in self.mean_dice.items()},
            "first_dice": {subject: _finite(value) for subject, value in self.first_dice.items()},
            "comparisons": [
                {
                    "other": comparison.other,
                    "region": comparison.region,
                    "pairs": len(comparison.differences),
                    "mean_difference": _finite(comparison.mean_difference),
                    "interval_95": [_finite(end) for end in comparison.interval_95],
                    "p": _finite(comparison.p),
                    "p_method": comparison.p_method,
                    "p_holm": _finite(comparison.p_holm),
                    "wins": comparison.wins,
                    "losses": comparison.losses,
                    "ties": comparison.ties,
                    "differences": dict(comparison.differences),
                }
                for comparison in self.comparisons
            ],
            "notes": list(self.notes),
            "method": {**METHOD, "seed": self.seed},
        }

    def lines(self) -> list[str]:
        """The result in words, a line a comparison of the mean, then the notes."""
        return [sentence(self.first, comparison) for comparison in self.of_mean()] + [f"note: {note}" for note in self.notes]


def compare_rows(rows: Mapping[str, Sequence[SubjectMetrics]], *, seed: int = 0) -> CompareResult:
    """Compare the first file with every other one, subject by subject.

    Args:
        rows: the rows of every metrics.csv by its name, in order.
        seed: of the bootstrap.

    Raises:
        InputError: no subject or no region is in every file.
    """
    names = tuple(rows)
    subjects, missing_subjects = _common({name: sorted({row.subject for row in rows[name]}) for name in names}, "subject")
    regions, missing_regions = _common({name: list(dict.fromkeys(row.region for row in rows[name])) for name in names}, "region")
    if MEAN in regions:
        raise InputError("cannot compare", where=", ".join(names), found=f"a region called {MEAN!r}, which stands for the mean of all")
    dice = np.stack([_dice_table(rows[name], subjects, regions) for name in names])
    defined = np.isfinite(dice).all(axis=0)
    dice[:, ~defined] = np.nan
    by_region = dict(zip((MEAN, *regions), (_mean_over_regions(dice), *np.moveaxis(dice, 2, 0)), strict=True))

    generator = np.random.default_rng(seed)
    comparisons = [
        _comparison(other, region, subjects, values[0], values[index], generator)
        for region, values in by_region.items()
        for index, other in enumerate(names[1:], start=1)
    ]
    return CompareResult(
        first=names[0],
        others=names[1:],
        subjects=tuple(subjects),
        regions=tuple(regions),
        mean_dice={name: {region: defined_mean(values[index]) for region, values in by_region.items()} for index, name in enumerate(names)},
        first_dice=dict(zip(subjects, by_region[MEAN][0].tolist(), strict=True)),
        comparisons=tuple(_corrected(comparisons)),
        notes=(*missing_subjects, *missing_regions, *_notes(defined, comparisons)),
        seed=seed,
    )


def sentence(first: str, comparison: Comparison) -> str:
    """One comparison in words."""
    pairs = len(comparison.differences)
    low, high = comparison.interval_95
    interval = "" if math.isnan(low) else f", 95 % interval {low:+.3f} to {high:+.3f}"
    method = f"{comparison.p_method}; " if comparison.p_method is not None else ""
    p = "" if math.isnan(comparison.p) else f", Wilcoxon {p_words(comparison.p)} ({method}Holm: {p_words(comparison.p_holm)})"
    return (
        f"{first} - {comparison.other}: Dice {comparison.mean_difference:+.3f}{interval}{p}; "
        f"better on {comparison.wins} of {pairs}, worse on {comparison.losses}"
    )


def p_words(p: float) -> str:
    """A p value as papers print it."""
    if math.isnan(p):
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _common(by_file: Mapping[str, Sequence[str]], what: str) -> tuple[list[str], list[str]]:
    first, *others = by_file.values()
    common = [item for item in first if all(item in other for other in others)]
    if not common:
        raise InputError(f"cannot compare: no {what} is in every file", where=", ".join(by_file))
    notes = []
    everything = dict.fromkeys(item for items in by_file.values() for item in items)
    for name, items in by_file.items():
        missing = [item for item in everything if item not in items]
        if missing:
            # Names of subjects may be patients'.
            listed = f"{len(missing)} of {len(everything)} subjects" if what == "subject" else f"{what} {', '.join(missing)}"
            notes.append(f"{name} lacks {listed}: left out everywhere")
    return common, notes


def _dice_table(rows: Sequence[SubjectMetrics], subjects: Sequence[str], regions: Sequence[str]) -> NDArray[np.float64]:
    """Dice (subjects, regions), NaN where there is no row."""
    dice = {(row.subject, row.region): row.dice for row in rows}
    return np.array([[dice.get((subject, region), math.nan) for region in regions] for subject in subjects])


def _mean_over_regions(dice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis without NaN; NaN where all are."""
    return np.apply_along_axis(defined_mean, -1, dice)


def _comparison(
    other: str,
    region: str,
    subjects: Sequence[str],
    first_dice: NDArray[np.float64],
    other_dice: NDArray[np.float64],
    generator: np.random.Generator,
) -> Comparison:
    defined = np.isfinite(first_dice)
    differences = paired_differences(first_dice[defined], other_dice[defined])
    tested = signed_rank(differences)
    named = dict(zip(np.asarray(subjects)[defined].tolist(), differences.tolist(), strict=True))
    return Comparison(
        other=other,
        region=region,
        mean_difference=defined_mean(differences.tolist()),
        interval_95=bootstrap_interval(differences, generator),
        p=tested.p,
        p_method=tested.method,
        p_holm=math.nan,
        wins=int(np.count_nonzero(differences > 0)),
        losses=int(np.count_nonzero(differences < 0)),
        ties=int(np.count_nonzero(differences == 0)),
        differences=named,
    )


def _corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    families = [[c for c in comparisons if c.region == MEAN], [c for c in comparisons if c.region != MEAN]]
    return [
        replace(comparison, p_holm=p)
        for family in families
        for comparison, p in zip(family, holm([comparison.p for comparison in family]), strict=True)
    ]


def _notes(defined: Any, comparisons: Sequence[Comparison]) -> list[str]:
    notes = []
    if not defined.all():
        count = int(np.count_nonzero(~defined))
        notes.append(
            f"{count} of {defined.size} values (subject and region) are undefined in some file, such as a region that is empty in "
            "prediction and truth, and are left out; `evaluate` with the brats convention counts them"
        )
    fewest = min(comparison.wins + comparison.losses for comparison in comparisons)
    if fewest < FEWEST_PAIRS:
        pairs = "1 pair that differs" if fewest == 1 else f"{fewest} pairs that differ"
        notes.append(f"with {pairs} Wilcoxon's p cannot reach 0.05, whatever the differences: {FEWEST_PAIRS} are needed")
    ties = max(comparison.ties for comparison in comparisons)
    if ties:
        notes.append(f"pairs without a difference (up to {ties} in a comparison) are left out of Wilcoxon's ranks, and count as no win")
    return notes


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def comparison_of(content: Mapping[str, Any], where: object) -> CompareResult:
    """A comparison from the content of compare.json, the inverse of `CompareResult.as_json`.

    Args:
        content: the parsed file.
        where: the file, for errors.

    Raises:
        InputError: it is not what `as_json` gives.
    """
    try:
        return CompareResult(
            first=str(content["first"]),
            others=tuple(map(str, content["others"])),
            subjects=tuple(map(str, content["subjects"])),
            regions=tuple(map(str, content["regions"])),
            mean_dice={name: {region: _number(value) for region, value in dice.items()} for name, dice in content["mean_dice"].items()},
            first_dice={subject: _number(value) for subject, value in content["first_dice"].items()},
            comparisons=tuple(
                Comparison(
                    other=str(row["other"]),
                    region=str(row["region"]),
                    mean_difference=_number(row["mean_difference"]),
                    interval_95=(_number(row["interval_95"][0]), _number(row["interval_95"][1])),
                    p=_number(row["p"]),
                    p_method=row.get("p_method"),
                    p_holm=_number(row["p_holm"]),
                    wins=int(row["wins"]),
                    losses=int(row["losses"]),
                    ties=int(row["ties"]),
                    differences={subject: _number(value) for subject, value in row["differences"].items()},
                )
                for row in content["comparisons"]
            ),
            notes=tuple(map(str, content["notes"])),
            seed=int(content.get("method", {}).get("seed", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError("cannot read the comparison", where=where, wanted="what compare writes", found=found) from error


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
