from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mergekit3d.paired import (
    EXACT,
    MOST_EXACT,
    NORMAL,
    SignedRank,
    bootstrap_interval,
    holm,
    paired_differences,
    signed_rank,
    student_interval,
)


def test_differences_carry_no_rounding_noise():
    """0.3 - 0.2 and 0.2 - 0.1 are the same difference, so that their ranks tie."""
    first, second = paired_differences(np.array([0.3, 0.2]), np.array([0.2, 0.1]))
    assert first == second


@pytest.mark.parametrize(("pairs", "expected"), [(5, 2 / 2**5), (6, 2 / 2**6), (8, 2 / 2**8)])
def test_smallest_wilcoxon_p_is_two_in_all_signs(pairs, expected):
    """All differences of one sign: 2 of the 2^n arrangements are as extreme."""
    found = signed_rank(np.arange(1, pairs + 1) / 100)
    assert (pytest.approx(expected), EXACT) == (found.p, found.method)


def test_wilcoxon_without_differences():
    """No pair gives no p; pairs that are all equal give 1."""
    assert math.isnan(signed_rank(np.array([])).p)
    assert SignedRank(1.0, None) == signed_rank(np.zeros(4))


@pytest.mark.parametrize("size", [7, 25, MOST_EXACT])
def test_wilcoxon_without_ties_is_scipys_exact_test(size):
    """To the last digits."""
    differences = np.random.default_rng(size).normal(0.3, 1, size)
    assert signed_rank(differences).p == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue, rel=1e-9)


@pytest.mark.parametrize("values", [[1, 1, -1, 2, 2, 3], [1, 1, 1, 1], [0, 0, 1, -2, 2, 2, -1, 3, 0], [5, -5]])
def test_wilcoxon_with_ties_counts_all_signs_of_the_ranks(values):
    """As many as give a sum as small, or smaller, or as large; zeros are left out."""
    differences = np.array(values, float)
    left = differences[differences != 0]
    ranks = stats.rankdata(np.abs(left))
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign) for signs in itertools.product((0, 1), repeat=left.size)]
    found = min(ranks[left > 0].sum(), ranks[left < 0].sum())
    expected = min(1.0, 2 * sum(value <= found for value in sums) / len(sums))

    assert SignedRank(pytest.approx(expected), EXACT) == signed_rank(differences)


def test_wilcoxon_of_many_pairs_is_the_normal_approximation():
    """It says so, and is near the exact test where that ends."""
    values = np.random.default_rng(3).normal(0.25, 1, MOST_EXACT + 1)
    found, before = signed_rank(values), signed_rank(values[:-1])

    assert (NORMAL, EXACT) == (found.method, before.method)
    assert found.p == pytest.approx(stats.wilcoxon(values, method="asymptotic").pvalue)
    assert before.p == pytest.approx(stats.wilcoxon(values[:-1], method="asymptotic").pvalue, rel=0.05)


def test_holm_steps_down():
    """p times the number of hypotheses left, never falling, at most 1; NaN is no hypothesis."""
    assert [0.03, pytest.approx(0.06), pytest.approx(0.06)] == holm([0.01, 0.04, 0.03])
    corrected = holm([0.5, math.nan, 0.9])
    assert [1.0, 1.0] == [corrected[0], corrected[2]]
    assert math.isnan(corrected[1])


def test_bootstrap_interval_is_a_function_of_its_seed():
    """The same generator gives the same interval, and it holds the mean."""
    values = np.random.default_rng(1).normal(0.1, 0.05, size=40)
    low, high = bootstrap_interval(values, np.random.default_rng(0))
    assert (low, high) == bootstrap_interval(values, np.random.default_rng(0))
    assert low < values.mean() < high
    # For many values it nears the normal interval of the mean.
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(values.size), rel=0.1)


def test_bootstrap_of_one_value_is_undefined():
    """One subject tells nothing about the spread."""
    assert all(math.isnan(end) for end in bootstrap_interval(np.array([0.5]), np.random.default_rng(0)))


def test_student_interval_of_three_values():
    """1, 2, 3: the mean 2 plus and minus 4.302653 (two degrees of freedom) times 1 over the square root of 3; NaN is left out."""
    half = 4.302653 / math.sqrt(3)
    assert student_interval([1.0, math.nan, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half), abs=1e-6)


def test_student_interval_needs_two_values():
    """One tells nothing of the spread."""
    assert all(map(math.isnan, student_interval([1.0, math.nan])))
