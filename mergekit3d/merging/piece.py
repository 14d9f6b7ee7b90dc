"""What a merge method gets to see: the same entries of one tensor in every source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergekit3d.merging.fusion import fusion_weights

Array = Any
"""A numpy array or a torch tensor."""


@dataclass(frozen=True)
class Piece:
    """The same entries of one tensor in every source that takes part.

    Args:
        thetas: weights, one array a source, all of one shape, float32 or float64.
        ratios: mixing ratios a^t, one a source; numbers, or arrays that broadcast against the weights.
        phis: relative Fisher diagonals (`fusion.relative_fisher`), as `thetas`; None where the method uses none.
        base: weights of the base, as `thetas`; None where the method uses none.
        surveys: what the method's survey found in the whole tensor of each source; None where it makes none.
        uniform: source index -> uniform numbers in [0, 1), one for each entry; they depend on the seed, the tensor, the source and
            the entry alone, never on how the tensor is cut into pieces.
    """

    thetas: Sequence[Array]
    ratios: Sequence[Array | float]
    phis: Sequence[Array] | None = None
    base: Array | None = None
    surveys: Sequence[Any] | None = None
    uniform: Callable[[int], Array] | None = None

    @cached_property
    def weights(self) -> tuple[Sequence[Array | float], Array | float]:
        """a^t phi^t of every source, and their sum: the weights of eq. 2 and its normaliser."""
        return fusion_weights(self.phis, self.ratios)

    def task_vectors(self) -> list[Array]:
        """theta^t - theta^base of every source."""
        return [theta - self.base for theta in self.thetas]
