"""Tensors that are kept as square roots in float16, beside a scale: half the size, for files that are published.

A root is sqrt(F) divided by the largest of its tensor. F comes back within 1e-3 of itself where it is at least 4e-9 of the tensor's
largest entry, within 2e-3 down to 9e-10 of it; below that its error is at most 2e-12 of the largest entry. Zeros stay exact, and
nothing else becomes one: what is too small for float16 is kept as its smallest number, since "no information" is told from "little".
"""

from __future__ import annotations

import numpy as np

SMALLEST = np.float16(2.0**-24)


def to_roots(values: np.ndarray) -> tuple[np.ndarray, float]:
    """The roots of a tensor, and their scale.

    Args:
        values: float32, finite, none below 0.

    Returns:
        float16 of the same shape, from 0 to 1; and the root of the largest value.
    """
    roots = np.sqrt(values, dtype=np.float64)
    scale = float(np.float32(roots.max(initial=0.0)))
    if scale == 0:
        return np.zeros(values.shape, np.float16), 0.0
    scaled = np.minimum(roots / scale, 1.0).astype(np.float16)
    return np.where(values > 0, np.maximum(scaled, SMALLEST), np.float16(0)), scale


def from_roots(roots: np.ndarray, scale: float) -> np.ndarray:
    """The values in float32, from their roots and scale."""
    values = roots.astype(np.float32)
    values *= np.float32(scale)
    values *= values
    return values
