from __future__ import annotations

import math

import numpy as np
import pytest

from mergekit3d.paired import bootstrap_interval, holm, paired_differences, wilcoxon_p


def test_differences_carry_no_rounding_noise():
    """0.3 - 0.2 and 0.2 - 0.1 are the same difference, so that their ranks tie."""
    first, second = paired_differences(np.array([0.3, 0.2]), np.array([0.2, 0.1]))
    assert first == second


@pytest.mark.parametrize(("pairs", "expected"), [(5, 2 / 2**5), (6, 2 / 2**6), (8, 2 / 2**8)])
def test_smallest_wilcoxon_p_is_two_in_all_signs(pairs, expected):
    """All differences of one sign: 2 of the 2^n arrangements are as extreme."""
    assert wilcoxon_p(np.arange(1, pairs + 1) / 100) == pytest.approx(expected)


def test_wilcoxon_without_differences():
    """No pair gives no p; pairs that are all equal give 1."""
    assert math.isnan(wilcoxon_p(np.array([])))
    assert wilcoxon_p(np.zeros(4)) == 1.0


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
