"""Random changes of a training sample; each is a function of the sample and a generator, and they are applied in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Transform = Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]
"""(image (M, X, Y, Z), target (C, X, Y, Z) or (X, Y, Z), generator) -> the two, changed alike; the arguments stay as they are."""

ALL_AXES = (0, 1, 2)


def flips(axes: Sequence[int] = ALL_AXES) -> Transform:
    """Mirror along each of the axes (0 X, 1 Y, 2 Z) with probability 1/2."""

    def flip(image: Array, target: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        chosen = tuple(axis - 3 for axis, drawn in zip(axes, rng.random(len(axes)) < 0.5, strict=True) if drawn)
        return np.flip(image, chosen), np.flip(target, chosen)

    return flip


def augmented(image: Array, target: Array, transforms: Sequence[Transform], rng: np.random.Generator) -> tuple[Array, Array]:
    """A sample after all the transforms."""
    for transform in transforms:
        image, target = transform(image, target, rng)
    return image, target
