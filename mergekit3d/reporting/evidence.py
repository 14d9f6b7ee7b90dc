"""The numbers behind the report: means over seeds and subjects, intervals, paired comparisons, the order of the initialisations."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, replace

import numpy as np

from mergekit3d.comparison import CompareResult, compare_rows
from mergekit3d.errors import InputError
from mergekit3d.metrics import RegionMeans, SubjectMetrics, defined_mean, mean_over_regions, means_by_region
from mergekit3d.paired import bootstrap_interval, student_interval
from mergekit3d.reporting.results import BASELINE, FUSED, MEAN_IMM, StudyResults, display_name

BOOTSTRAP_SEED = 0
LACKING = re.compile(r"^(?P<name>.*) lacks subject (?P<subjects>.*): left out everywhere$")
"""A note of a comparison that names subjects."""


@dataclass(frozen=True)
class ArmDice:
    """Test Dice of one initialisation at one size.

    Args:
        mean: of the regions, over subjects and seeds; NaN where nothing was measured.
        interval_95: bootstrap interval over the subjects.
        seeds_95: interval over the seeds by Student's t; NaN with one seed.
        by_subject: mean of the regions of every subject, averaged over the seeds.
        by_region: means of every region.
    """

    mean: float
    interval_95: tuple[float, float]
    seeds_95: tuple[float, float]
    by_subject: dict[str, float]
    by_region: dict[str, RegionMeans]


def seed_averaged_rows(results: StudyResults, split: str, name: str) -> list[SubjectMetrics]:
    """One row a subject and region, averaged over the seeds; NaN values are left out."""
    gathered: dict[tuple[str, str], list[SubjectMetrics]] = {}
    for arm in results.of(split, name):
        for row in arm.metrics:
            gathered.setdefault((row.subject, row.region), []).append(row)
    return [
        SubjectMetrics(subject, region, defined_mean(row.dice for row in rows), defined_mean(row.hd95 for row in rows))
        for (subject, region), rows in gathered.items()
    ]


def arm_dice(results: StudyResults, split: str, name: str) -> ArmDice:
    """Test Dice of one initialisation at one size of the training set."""
    rows = seed_averaged_rows(results, split, name)
    of_subject: dict[str, list[float]] = {}
    for row in rows:
        of_subject.setdefault(row.subject, []).append(row.dice)
    by_subject = {subject: defined_mean(values) for subject, values in of_subject.items()}
    values = np.array([value for value in by_subject.values() if not math.isnan(value)])
    seed_means = _seed_means(results, split, name)
    return ArmDice(
        mean=defined_mean(seed_means),
        interval_95=bootstrap_interval(values, np.random.default_rng(BOOTSTRAP_SEED)),
        seeds_95=student_interval(seed_means),
        by_subject=by_subject,
        by_region=means_by_region(rows),
    )


def ranking(results: StudyResults, split: str) -> list[tuple[str, float]]:
    """Initialisations of one size by mean test Dice, the best first; those without a number are left out."""
    means = {name: defined_mean(_seed_means(results, split, name)) for name in results.names}
    return sorted(((name, mean) for name, mean in means.items() if not math.isnan(mean)), key=lambda pair: -pair[1])


def paired(results: StudyResults, split: str) -> CompareResult | None:
    """T-IMM (or else the best initialisation) against every other one at one size; None where there is nothing to pair."""
    ranked = [name for name, _ in ranking(results, split)]
    if len(ranked) < 2:
        return None
    first = "timm" if "timm" in ranked else ranked[0]
    others = [name for name in results.names if name in ranked and name != first]
    rows = {display_name(name): seed_averaged_rows(results, split, name) for name in (first, *others)}
    try:
        return without_names(compare_rows(rows, seed=BOOTSTRAP_SEED))
    except InputError:
        return None


def without_names(comparison: CompareResult) -> CompareResult:
    """A comparison whose notes name no subject."""
    notes = []
    for note in comparison.notes:
        match = LACKING.match(note)
        notes.append(f"{match['name']} lacks subjects that others have: left out everywhere" if match else note)
    return replace(comparison, notes=tuple(notes))


def differences(results: StudyResults) -> list[tuple[str, CompareResult]]:
    """Paired comparisons with the name of their size, where there are several, or of their folder: the arms', and those of `compare`."""
    several = len(results.splits) > 1
    found = [(split if several else "", comparison) for split in results.splits if (comparison := paired(results, split)) is not None]
    names = [name if len(results.comparisons) > 1 and name != "." else "" for name in results.comparisons]
    return found + list(zip(names, results.comparisons.values(), strict=True))


def pair(results: StudyResults, split: str, first: str, other: str) -> CompareResult | None:
    """Two initialisations at one size; None where they share no subject."""
    try:
        return compare_rows({display_name(name): seed_averaged_rows(results, split, name) for name in (first, other)}, seed=BOOTSTRAP_SEED)
    except InputError:
        return None


def seed_differences(results: StudyResults, split: str, first: str, other: str) -> list[float]:
    """Mean test Dice of the first less that of the other, with every seed that both were run with."""
    means = [{arm.seed: mean_over_regions(arm.metrics).dice for arm in results.of(split, name)} for name in (first, other)]
    return [means[0][seed] - means[1][seed] for seed in means[0] if seed in means[1]]


def paper_order(results: StudyResults, split: str) -> tuple[list[tuple[str, float]], bool] | None:
    """T-IMM, IMM, the best single source and none with their means, and whether they fall in that order as in the paper.

    Returns:
        None where one of the four was not measured.
    """
    means = dict(ranking(results, split))
    singles = [name for name in means if name not in (BASELINE, *FUSED, MEAN_IMM, *results.baselines)]
    if not singles or not {BASELINE, *FUSED} <= means.keys():
        return None
    best_single = max(singles, key=lambda name: means[name])
    order = [(name, means[name]) for name in ("timm", "imm", best_single, BASELINE)]
    return order, all(before[1] > after[1] for before, after in itertools.pairwise(order))


def _seed_means(results: StudyResults, split: str, name: str) -> list[float]:
    return [mean_over_regions(arm.metrics).dice for arm in results.of(split, name)]
