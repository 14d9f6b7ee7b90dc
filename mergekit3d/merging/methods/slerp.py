"""Slerp: along the great circle between two networks, tensor by tensor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mergekit3d.merging.fusion import fuse_relative
from mergekit3d.merging.methods import MergeMethod, Parameters, register
from mergekit3d.merging.piece import Piece

SMALLEST_SINE = 1e-4
"""Below it the arc is a straight line to 1e-8 of its length (or the tensors are opposite, and there is no shortest arc)."""


def dots(theta: Any, first: Any, parameters: Parameters) -> tuple[float, float]:  # noqa: ARG001  every survey takes them
    """< theta, theta^1 > and < theta, theta > over a whole tensor, in float64."""
    here, there = (np.asarray(values, np.float64).reshape(-1) for values in (theta, first))
    return float(here @ there), float(here @ here)


def along_the_arc(piece: Piece, parameters: Parameters) -> Any:  # noqa: ARG001  every method takes them
    """( sin(a^1 w) theta^1 + sin(a^2 w) theta^2 ) / sin w, w the angle between the two as vectors; a straight line where sin w is tiny.

    What differs: mergekit takes the straight line from a cosine of 0.9995 on already; here the arc is followed as long as float64
    can tell it.

    Source: Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985, section 3.3.
    """
    if len(piece.thetas) == 1:  # the other one has a ratio of 0
        return piece.thetas[0]
    assert piece.surveys is not None
    (_, first_square), (dot, second_square) = piece.surveys
    scale = math.sqrt(first_square) * math.sqrt(second_square)
    angle = math.acos(max(-1.0, min(1.0, dot / scale))) if scale > 0 else 0.0
    if math.sin(angle) < SMALLEST_SINE:
        return fuse_relative(piece.thetas, None, piece.ratios)[0]
    (first, second), (here, there) = piece.thetas, [np.asarray(ratio, np.float64) for ratio in piece.ratios]
    weights = [np.asarray(np.sin(ratio * angle) / math.sin(angle), first.dtype) for ratio in (here, there)]
    return weights[0] * first + weights[1] * second


SLERP = register(
    MergeMethod(
        name="slerp",
        summary="spherical interpolation of two sources, tensor by tensor",
        reference="Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985",
        combine=along_the_arc,
        survey=dots,
        sources=2,
    )
)
