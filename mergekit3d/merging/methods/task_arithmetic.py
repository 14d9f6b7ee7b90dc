"""Task arithmetic: the base plus scaled task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from mergekit3d.merging.methods import MergeMethod, Parameters, register
from mergekit3d.merging.piece import Array, Piece


class TaskArithmeticParameters(Parameters):
    """Parameters of task arithmetic."""

    scale: float = Field(0.4, description="lambda, by which the sum of the task vectors is multiplied")


def weighted_sum(vectors: Sequence[Array], ratios: Sequence[Array | float]) -> Array:
    """sum_t w^t tau^t."""
    total = ratios[0] * vectors[0]
    for ratio, vector in zip(ratios[1:], vectors[1:], strict=True):
        total = total + ratio * vector
    return total


def add_task_vectors(piece: Piece, parameters: TaskArithmeticParameters) -> Any:
    """theta^base + lambda sum_t w^t (theta^t - theta^base).

    A negative w^t makes a network forget task t.

    Source: Ilharco et al., ICLR 2023, eq. of section 2; lambda = 0.4 where there is no validation data: Yadav et al. 2023, 4.
    """
    return piece.base + parameters.scale * weighted_sum(piece.task_vectors(), piece.ratios)


TASK_ARITHMETIC = register(
    MergeMethod(
        name="task-arithmetic",
        summary="the base plus a scaled sum of the sources' differences from it",
        reference="Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023",
        combine=add_task_vectors,
        parameters=TaskArithmeticParameters,
        uses_base=True,
        normalised=False,
    )
)
