"""Mean-IMM: the plain average of the weights, equal ratios by default."""

from __future__ import annotations

from typing import Any

from mergekit3d.merging.fusion import fuse_relative
from mergekit3d.merging.methods import MergeMethod, Parameters, register
from mergekit3d.merging.piece import Piece


def average(piece: Piece, parameters: Parameters) -> Any:  # noqa: ARG001  every method takes them
    """sum_t a^t theta^t: eq. 2 of T-IMM with F = 1; identical sources return themselves bit for bit.

    Source: Lee et al. 2017, mean-IMM.
    """
    return fuse_relative(piece.thetas, None, piece.ratios)[0]


MEAN_IMM = register(
    MergeMethod(
        name="mean-imm",
        summary="plain average of the weights (mean-IMM)",
        reference="Lee et al., Overcoming Catastrophic Forgetting by Incremental Moment Matching, NeurIPS 2017",
        combine=average,
        learnable=True,
    )
)
