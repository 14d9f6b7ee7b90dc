"""Eq. 3: mixing ratios that are finite for every delta, and the way back for gradients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergekit3d.merging.ratios import SMALLEST_LOG_RATIO, delta_gradient, mixing_ratios

VECTORS = json.loads(Path(__file__).with_name("fusion_vectors.json").read_text())
EXTREMES = [*VECTORS["ratios"], *({"delta": case["delta"], "alpha": case["alpha"]} for case in VECTORS["fusion"])]
LIMIT = float(np.exp(SMALLEST_LOG_RATIO))


@pytest.mark.parametrize("sources", [1, 2, 3, 7])
def test_zero_delta_is_uniform(sources):
    """T-IMM starts at IMM."""
    np.testing.assert_allclose(np.full(sources, 1 / sources), mixing_ratios(np.zeros(sources)), rtol=1e-15)


def test_two_sources_by_hand():
    """sigmoid(log 3) = 3/4 and sigmoid(0) = 1/2 give 3/5 and 2/5."""
    np.testing.assert_allclose([0.6, 0.4], mixing_ratios(np.array([np.log(3), 0.0])), rtol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", EXTREMES, ids=lambda case: "_".join(f"{value:.3g}" for value in case["delta"]))
def test_reference_vectors(case, dtype):
    """They agree with plain sigmoids in float64, down to the smallest ratio."""
    tolerance = 1e-13 if dtype == torch.float64 else 3e-5
    ratios = mixing_ratios(torch.tensor(case["delta"], dtype=dtype))

    np.testing.assert_allclose(case["alpha"], ratios.double(), rtol=tolerance, atol=2 * LIMIT)
    np.testing.assert_allclose(case["alpha"], mixing_ratios(np.array(case["delta"])), rtol=1e-13, atol=2 * LIMIT)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("delta", [[-110.0, -110.0], [-110.0, 3.0], [-1e4, -2e4], [1e30, -1e30], [800.0, 800.0]], ids=str)
def test_extreme_delta_is_finite(delta, dtype):
    """A plain sigmoid gives 0 / 0 here."""
    ratios = mixing_ratios(np.array(delta, dtype))

    assert np.isfinite(ratios).all()
    assert (ratios > 0).all()
    assert float(ratios.sum()) == pytest.approx(1, abs=1e-6)


def test_smallest_ratio():
    """No source falls below exp(-60) of the largest, so that the normaliser of eq. 2 is never 0."""
    np.testing.assert_allclose([1.0, LIMIT], mixing_ratios(np.array([0.0, -500.0])), rtol=1e-12)


@given(st.lists(st.floats(-150, 150, width=32), min_size=2, max_size=5), st.sampled_from(["float32", "float64"]))
def test_ratios_sum_to_one(delta, dtype):
    """For any delta; numpy and torch agree."""
    ratios = mixing_ratios(np.array(delta, dtype))

    assert float(ratios.sum(dtype=np.float64)) == pytest.approx(1, abs=1e-6 if dtype == "float32" else 1e-14)
    np.testing.assert_allclose(
        ratios, mixing_ratios(torch.tensor(np.array(delta, dtype))).numpy(), rtol=2e-5 if dtype == "float32" else 1e-12
    )


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=5), st.integers(0, 1000))
def test_delta_gradient_equals_autograd(delta, seed):
    """The closed form is the derivative of eq. 3 as it is written, in float64."""
    free = torch.tensor(delta, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(len(delta), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sigmoid = free.sigmoid()
    (sigmoid / sigmoid.sum()).backward(gradient)

    found = delta_gradient(free.detach(), mixing_ratios(free.detach()), gradient)
    torch.testing.assert_close(free.grad, found, rtol=1e-9, atol=1e-12)


def test_delta_gradient_of_many_groups():
    """Columns are independent, and numpy gives what torch gives."""
    generator = np.random.default_rng(0)
    delta, gradient = generator.normal(size=(3, 5)), generator.normal(size=(3, 5))
    found = delta_gradient(delta, mixing_ratios(delta), gradient)

    for column in range(5):
        np.testing.assert_allclose(
            delta_gradient(delta[:, column], mixing_ratios(delta[:, column]), gradient[:, column]), found[:, column], rtol=1e-12
        )
    from_torch = delta_gradient(torch.from_numpy(delta), mixing_ratios(torch.from_numpy(delta)), torch.from_numpy(gradient))
    np.testing.assert_allclose(found, from_torch.numpy(), rtol=1e-12)


def test_one_direction_is_redundant():
    """A gradient that is the same for all ratios moves nothing: sum_t a^t dL/da^t is taken off."""
    delta = np.array([0.3, -1.2, 2.0])

    np.testing.assert_allclose(np.zeros(3), delta_gradient(delta, mixing_ratios(delta), np.full(3, 7.0)), atol=1e-15)


def test_ratio_at_its_smallest_has_no_gradient():
    """Where the clamp holds, delta has no effect, and the gradient says so."""
    delta = np.array([0.0, -500.0])
    found = delta_gradient(delta, mixing_ratios(delta), np.array([1.0, -1.0]))

    assert 0.0 == found[1]
    assert np.isfinite(found).all()
