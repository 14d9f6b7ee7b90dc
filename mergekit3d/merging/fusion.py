"""Fisher-weighted fusion, eq. 2 of T-IMM, and its closed-form gradient.

    theta_i = ( sum_t a_i^t F_i^t )^-1  sum_t a_i^t F_i^t theta_i^t

Source: Geyer, Corinzia, Wegmayr, "Transfer Learning by Adaptive Merging of Multiple Models", MIDL 2019, eq. 2; with a^t = 1/T it
is mode-IMM, with F = 1 mean-IMM (Lee et al., "Overcoming Catastrophic Forgetting by Incremental Moment Matching", NeurIPS 2017).
What differs: it is computed as

    phi^t = F^t / max_s F^s   per entry;   phi^t = 1 for all t where that maximum is 0
    theta = theta^1 + ( sum_t a^t phi^t (theta^t - theta^1) ) / ( sum_t a^t phi^t )

which equals eq. 2 wherever that is well posed, stays finite at any scale of F, gives the a-average where no source has
information, and returns identical sources bit for bit. No floor is added to F: it would move the result.

Every function takes numpy arrays or torch tensors, all of one kind; arithmetic is in the dtype of the arrays, float32 or wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergekit3d.merging.arrays import array_namespace

Array = Any
"""A numpy array or a torch tensor."""


def relative_fisher(fishers: Sequence[Array]) -> list[Array]:
    """The Fisher diagonals relative to the largest one of each entry, phi in [0, 1].

    Args:
        fishers: one array a source, all of one shape, finite and >= 0, unit 1 / weight^2.

    Returns:
        phi, one array a source; 1 for every source where no source has information.
    """
    xp = array_namespace(*fishers)
    largest = fishers[0]
    for fisher in fishers[1:]:
        largest = xp.maximum(largest, fisher)
    # 1 where nothing is known, else 0: added, it leaves every other number as it is, and costs less than a selection.
    unknown = xp.astype(largest <= 0, largest.dtype)
    scale = largest + unknown
    return [fisher / scale + unknown for fisher in fishers]


def fuse(thetas: Sequence[Array], fishers: Sequence[Array] | None, ratios: Sequence[Array | float]) -> Array:
    """Fused weights, eq. 2.

    Args:
        thetas: weights, one array a source, all of one shape, float32 or float64.
        fishers: Fisher diagonals, as `thetas`; None stands for F = 1 (mean-IMM).
        ratios: mixing ratios a^t, one a source, > 0; numbers, or arrays that broadcast against the weights.

    Returns:
        theta, of the shape and dtype of the weights.

    Source: MIDL 2019, eq. 2, in the form of this module's docstring.
    """
    if len(thetas) == 1:
        return thetas[0]
    phis = None if fishers is None else relative_fisher(fishers)
    return fuse_relative(thetas, phis, ratios)[0]


def fuse_relative(thetas: Sequence[Array], phis: Sequence[Array] | None, ratios: Sequence[Array | float]) -> tuple[Array, Array | float]:
    """Fused weights and the normaliser sum_t a^t phi^t, from relative Fisher diagonals.

    Args:
        thetas: weights, one array a source, all of one shape.
        phis: what `relative_fisher` returns, or None for F = 1.
        ratios: mixing ratios, one a source; numbers, or arrays that broadcast against the weights.

    Returns:
        theta, and the normaliser that `ratio_gradient` needs.
    """
    weights, normaliser = fusion_weights(phis, ratios)
    return weighted_average(thetas, weights, normaliser), normaliser


def fusion_weights(phis: Sequence[Array] | None, ratios: Sequence[Array | float]) -> tuple[list[Array | float], Array | float]:
    """a^t phi^t of every source, and their sum over the sources; arguments as of `fuse_relative`."""
    weights = list(ratios) if phis is None else [ratio * phi for ratio, phi in zip(ratios, phis, strict=True)]
    normaliser = weights[0]
    for weight in weights[1:]:
        normaliser = normaliser + weight
    return weights, normaliser


def weighted_average(thetas: Sequence[Array], weights: Sequence[Array | float], normaliser: Array | float) -> Array:
    """theta^1 + ( sum_t w^t (theta^t - theta^1) ) / sum_t w^t: the same array where all sources are alike.

    Args:
        thetas: weights of the network, one array a source.
        weights: what `fusion_weights` returns: w^t, one a source.
        normaliser: their sum.
    """
    first = thetas[0]
    moved = None
    for weight, theta in zip(weights[1:], thetas[1:], strict=True):
        step = weight * (theta - first)
        moved = step if moved is None else moved + step
    return first if moved is None else first + moved / normaliser


def ratio_gradient(
    gradient: Array, fused: Array, thetas: Sequence[Array], phis: Sequence[Array] | None, normaliser: Array | float
) -> list[Array]:
    """The summands of dL/da^t, before they are summed over the entries that share a ratio.

    Args:
        gradient: dL/dtheta at the fused weights.
        fused: theta, what `fuse_relative` returned.
        thetas: weights, one array a source.
        phis: relative Fisher diagonals, or None for F = 1.
        normaliser: sum_t a^t phi^t, what `fuse_relative` returned.

    Returns:
        dL/dtheta * phi^t (theta^t - theta) / sum_s a^s phi^s, one array a source; the direct form, which stays exact in float32.

    Source: derivative of MIDL 2019, eq. 2, by a^t, the ratios taken as free.
    """
    scaled = gradient / normaliser
    if phis is None:
        return [scaled * (theta - fused) for theta in thetas]
    return [scaled * phi * (theta - fused) for theta, phi in zip(thetas, phis, strict=True)]
