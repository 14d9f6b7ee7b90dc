"""Mode-IMM: the Fisher-weighted average with equal ratios, or those that the recipe gives."""

from __future__ import annotations

from typing import Any

from mergekit3d.merging.fusion import weighted_average
from mergekit3d.merging.methods import MergeMethod, Parameters, register
from mergekit3d.merging.piece import Piece


def fisher_average(piece: Piece, parameters: Parameters) -> Any:  # noqa: ARG001  every method takes them
    """Eq. 2 of T-IMM: ( sum_t a^t F^t )^-1 sum_t a^t F^t theta^t; identical sources return themselves bit for bit.

    Source: Lee et al. 2017, mode-IMM; Geyer et al., MIDL 2019, eq. 2. See `mergekit3d.merging.fusion` for the numerics.
    """
    return weighted_average(piece.thetas, *piece.weights)


IMM = register(
    MergeMethod(
        name="imm",
        summary="Fisher-weighted average of the sources, one weight at a time (mode-IMM)",
        reference="Lee et al., Overcoming Catastrophic Forgetting by Incremental Moment Matching, NeurIPS 2017",
        combine=fisher_average,
        learnable=True,
        uses_fisher=True,
    )
)
