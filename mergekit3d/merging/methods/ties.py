"""TIES: trim small changes, elect a sign for every weight, average the changes that agree with it."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mergekit3d.merging.arrays import array_namespace
from mergekit3d.merging.methods import MergeMethod, Parameters, register
from mergekit3d.merging.methods.task_arithmetic import weighted_sum
from mergekit3d.merging.piece import Piece


class TiesParameters(Parameters):
    """Parameters of TIES."""

    density: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="share of each tensor's changes that is kept, largest first")
    scale: float = Field(1.0, description="lambda, by which the merged task vector is multiplied")


def smallest_kept(theta: Any, base: Any, parameters: TiesParameters) -> float:
    """The magnitude of the smallest change of a tensor that is kept: the ceil(density * n)-th largest of |theta - theta^base|.

    What differs: the paper ranks all changes of a model together; here, as in mergekit, each tensor keeps its own share, so that a
    model never has to be in memory.

    Source: Yadav et al., NeurIPS 2023, step 1 (trim).
    """
    magnitudes = np.abs(theta - base).reshape(-1)
    kept = min(len(magnitudes), math.ceil(parameters.density * len(magnitudes)))
    if kept == len(magnitudes):
        return 0.0
    position = len(magnitudes) - kept
    magnitudes.partition(position)
    return float(magnitudes[position])


def elect_and_average(piece: Piece, parameters: TiesParameters) -> Any:
    """theta^base + lambda * the weighted mean of the trimmed changes whose sign is that of their weighted sum.

    A sum of exactly 0 counts as positive (the paper takes the majority of the whole model, mergekit the same as here).

    Source: Yadav et al., NeurIPS 2023, steps 1 to 3 (trim, elect sign, disjoint merge).
    """
    assert piece.surveys is not None
    vectors = piece.task_vectors()
    xp = array_namespace(*vectors)
    zero = xp.zeros_like(vectors[0])
    trimmed = [xp.where(xp.abs(tau) >= smallest, tau, zero) for tau, smallest in zip(vectors, piece.surveys, strict=True)]
    positive = weighted_sum(trimmed, piece.ratios) >= 0
    agreeing = [xp.where(positive, tau > 0, tau < 0) for tau in trimmed]
    weights = [xp.where(agrees, ratio * xp.ones_like(zero), zero) for agrees, ratio in zip(agreeing, piece.ratios, strict=True)]
    normaliser = sum(weights[1:], start=weights[0])
    merged = weighted_sum(trimmed, weights) / xp.where(normaliser > 0, normaliser, xp.ones_like(zero))
    return piece.base + parameters.scale * merged


TIES = register(
    MergeMethod(
        name="ties",
        summary="trim small changes, elect a sign for every weight, average the changes that agree",
        reference="Yadav et al., TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023",
        combine=elect_and_average,
        parameters=TiesParameters,
        survey=smallest_kept,
        uses_base=True,
    )
)
