"""Mean-IMM: the plain average of the weights, equal ratios by default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergekit3d.merging.fusion import fuse
from mergekit3d.merging.methods import MergeMethod, register


def average(thetas: Sequence[Any], fishers: Sequence[Any] | None, ratios: Sequence[Any]) -> Any:  # noqa: ARG001  every method takes them
    """sum_t a^t theta^t: eq. 2 of T-IMM with F = 1; identical sources return themselves bit for bit.

    Args:
        thetas: weights, one array a source, all of one shape.
        fishers: not used.
        ratios: mixing ratios, one a source.

    Returns:
        The average, of the shape and dtype of the weights.

    Source: Lee et al. 2017, mean-IMM.
    """
    return fuse(thetas, None, ratios)


MEAN_IMM = register(
    MergeMethod(
        name="mean-imm",
        summary="plain average of the weights (mean-IMM)",
        reference="Lee et al., Overcoming Catastrophic Forgetting by Incremental Moment Matching, NeurIPS 2017",
        combine=average,
    )
)
