"""Statistics of paired differences: Wilcoxon's signed-rank test, Holm's correction, a bootstrap interval of the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST_PAIRS = 6
"""With fewer pairs no arrangement of signs gets a two-sided p below 0.05: with 5, the smallest is 2 / 2^5 = 0.0625."""

DECIMALS = 12
"""Of a difference; what lies beyond is rounding: 0.3 - 0.2 and 0.2 - 0.1 must rank alike."""

RESAMPLES = 10_000

EXACT, NORMAL = "exact", "normal approximation"
"""How a p of Wilcoxon's test was computed."""

MOST_EXACT = 50
"""Differences, up to which it is exact."""


def paired_differences(first: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """`first` minus `other` for every pair, with rounding noise removed."""
    rounded: NDArray[np.float64] = np.round(first - other, DECIMALS)
    return rounded


@dataclass(frozen=True)
class SignedRank:
    """What Wilcoxon's signed-rank test gives.

    Args:
        p: two-sided; 1 where every difference is 0, NaN without any.
        method: `EXACT` or `NORMAL`; None where there was nothing to test.
    """

    p: float
    method: str | None


def signed_rank(differences: NDArray[np.float64]) -> SignedRank:
    """Wilcoxon's signed-rank test, two-sided.

    Exact up to `MOST_EXACT` differences, with ties as well, where scipy would take the normal approximation from 14 on: over all signs of
    the mid-ranks that there are. Beyond, the normal approximation with its correction for ties.

    Args:
        differences: (pairs,); zeros are left out of the ranks (Wilcoxon's own way).

    Source: Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1945.
    """
    from scipy import stats

    if differences.size == 0:
        return SignedRank(math.nan, None)
    left = differences[differences != 0]
    if left.size == 0:
        return SignedRank(1.0, None)
    if left.size > MOST_EXACT:
        return SignedRank(float(stats.wilcoxon(left, method="asymptotic").pvalue), NORMAL)
    # Mid-ranks are multiples of one half.
    doubled = np.rint(2 * stats.rankdata(np.abs(left))).astype(int)
    chances = np.ones(1)
    for rank in doubled:
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    smaller = min(int(doubled[left > 0].sum()), int(doubled[left < 0].sum()))
    return SignedRank(min(1.0, 2 * math.fsum(chances[: smaller + 1])), EXACT)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of a family of p values: step-down Bonferroni; NaN stays NaN and does not count.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    corrected = [math.nan] * len(p_values)
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[index] = largest
    return corrected


def bootstrap_interval(values: NDArray[np.float64], generator: np.random.Generator) -> tuple[float, float]:
    """95 % percentile interval of the mean by resampling with replacement; NaN with fewer than 2 values.

    Args:
        values: (N,).
        generator: where the resamples come from.
    """
    if values.size < 2:
        return math.nan, math.nan
    # In slices, so that 10,000 resamples of many subjects stay within some 20 MB.
    slices = [values[generator.integers(values.size, size=(RESAMPLES // 20, values.size))].mean(axis=1) for _ in range(20)]
    low, high = np.percentile(np.concatenate(slices), (2.5, 97.5))
    return float(low), float(high)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t; NaN with fewer than 2 values that are defined.

    Args:
        values: one a seed, or a draw of subjects; NaN is left out.
    """
    from scipy import stats

    defined = [value for value in values if not math.isnan(value)]
    if len(defined) < 2:
        return math.nan, math.nan
    mean = math.fsum(defined) / len(defined)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in defined) / (len(defined) - 1))
    half = float(stats.t.ppf(0.975, len(defined) - 1)) * deviation / math.sqrt(len(defined))
    return mean - half, mean + half
