"""DARE: drop most changes at random, rescale the rest, then add them as task arithmetic does."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from mergekit3d.merging.arrays import array_namespace
from mergekit3d.merging.methods import MergeMethod, register
from mergekit3d.merging.methods.task_arithmetic import TaskArithmeticParameters, weighted_sum
from mergekit3d.merging.piece import Piece


class DareParameters(TaskArithmeticParameters):
    """Parameters of DARE."""

    drop: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="share of the changes that is dropped, drawn for each weight")


def drop_and_rescale(piece: Piece, parameters: DareParameters) -> Any:
    """theta^base + lambda sum_t w^t m^t (theta^t - theta^base) / (1 - p), m^t drawn from Bernoulli(1 - p).

    The draws depend on the recipe's seed, the source and the tensor alone: the same seed gives the same bytes.

    Source: Yu et al., ICML 2024, eq. 2 and 3 (DARE with task arithmetic).
    """
    assert piece.uniform is not None
    vectors = piece.task_vectors()
    xp = array_namespace(*vectors)
    zero = xp.zeros_like(vectors[0])
    kept = [xp.where(piece.uniform(index) >= parameters.drop, tau, zero) for index, tau in enumerate(vectors)]
    return piece.base + (parameters.scale / (1 - parameters.drop)) * weighted_sum(kept, piece.ratios)


DARE = register(
    MergeMethod(
        name="dare",
        summary="drop most changes at random, rescale the rest, add them to the base; seeded",
        reference="Yu et al., Language Models are Super Mario: Absorbing Abilities from Homologous Models, ICML 2024",
        combine=drop_and_rescale,
        parameters=DareParameters,
        uses_base=True,
        normalised=False,
    )
)
