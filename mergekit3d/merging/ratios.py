"""Mixing ratios from unconstrained parameters, eq. 3 of T-IMM, and the way back for gradients.

    a_i^t = sigmoid(delta_i^t) / sum_j sigmoid(delta_i^j)

Source: Geyer, Corinzia, Wegmayr, MIDL 2019, eq. 3. What differs: the paper's formula sums over the wrong index, the sum is over
the sources; and it is computed from log-sigmoids relative to their largest, so that it is finite for every delta.
"""

from __future__ import annotations

from typing import Any

from mergekit3d.merging.arrays import array_namespace

Array = Any

SMALLEST_LOG_RATIO = -60.0
"""Log of the smallest ratio relative to the largest one: exp(-60) is about 9e-27."""


def mixing_ratios(delta: Array) -> Array:
    """Mixing ratios of every group.

    Args:
        delta: (sources, ...), any finite values; 0 everywhere gives 1 / sources.

    Returns:
        a, of the same shape: positive, summing to 1 over the sources.

    Source: MIDL 2019, eq. 3.
    """
    xp = array_namespace(delta)
    log_sigmoid = -xp.logaddexp(xp.zeros_like(delta), -delta)
    relative = log_sigmoid - xp.max(log_sigmoid, axis=0, keepdims=True)
    weights = xp.exp(xp.clip(relative, SMALLEST_LOG_RATIO, None))
    return weights / xp.sum(weights, axis=0, keepdims=True)


def delta_gradient(delta: Array, ratios: Array, gradient: Array) -> Array:
    """dL/d delta from dL/da.

    Args:
        delta: (sources, ...).
        ratios: `mixing_ratios(delta)`.
        gradient: dL/da, of the same shape, the ratios taken as free.

    Returns:
        dL/d delta^s = (1 - sigmoid(delta^s)) a^s (dL/da^s - sum_t a^t dL/da^t); 0 where the ratio stands at its smallest.
    """
    xp = array_namespace(delta, ratios, gradient)
    log_sigmoid = -xp.logaddexp(xp.zeros_like(delta), -delta)
    relative = log_sigmoid - xp.max(log_sigmoid, axis=0, keepdims=True)
    free = relative >= SMALLEST_LOG_RATIO
    slope = xp.exp(-xp.logaddexp(xp.zeros_like(delta), delta))
    centred = gradient - xp.sum(ratios * gradient, axis=0, keepdims=True)
    return xp.where(free, slope * ratios * centred, xp.zeros_like(delta))
