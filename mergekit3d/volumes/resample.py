"""Resampling onto another grid, or to another voxel size."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from mergekit3d.volumes.orientation import Array, Shape, spacing_of

SAME_GRID_TOLERANCE = 0.1  # of the smallest voxel edge, at the corners
SAME_SPACING_TOLERANCE = 1e-3  # relative


def same_grid(shape: Shape, affine: Array, other_shape: Shape, other_affine: Array) -> bool:
    """Whether two grids have the same voxels: one shape, and corners less than a tenth of a voxel apart."""
    if tuple(shape) != tuple(other_shape):
        return False
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in shape], [1], indexing="ij")).reshape(4, -1)
    distance = np.sqrt((((affine - other_affine) @ corners)[:3] ** 2).sum(axis=0)).max()
    return bool(distance <= SAME_GRID_TOLERANCE * min(spacing_of(affine)))


def onto_grid(data: Array, affine: Array, shape: Shape, target_affine: Array, *, order: int) -> Array:
    """Data on another grid; what lies outside of it is 0.

    Args:
        data: (X, Y, Z).
        affine: (4, 4), of `data`.
        shape: of the target grid.
        target_affine: (4, 4), of the target grid.
        order: 0 nearest (labels), 1 linear.

    Returns:
        The data on the target grid, in their own dtype.
    """
    mapping = np.linalg.inv(affine) @ target_affine
    smooth = antialiased(data, np.sqrt((mapping[:3, :3] ** 2).sum(axis=1))) if order else data
    result = ndimage.affine_transform(smooth, mapping[:3, :3], mapping[:3, 3], shape, order=order, mode="grid-constant", cval=0)
    return np.asarray(result, dtype=data.dtype)


def spaced_grid(shape: Shape, affine: Array, spacing_mm: tuple[float, float, float]) -> tuple[Shape, Array]:
    """The grid of another voxel size over the same field of view, with the same centre.

    Returns:
        Its shape, and its affine (4, 4).
    """
    factors = np.asarray(spacing_mm) / np.asarray(spacing_of(affine))
    sizes = np.maximum(1, np.rint(np.asarray(shape) / factors)).astype(int)
    scaled = affine.copy()
    scaled[:3, :3] = affine[:3, :3] * factors
    centre = affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + affine[:3, 3]
    scaled[:3, 3] = centre - scaled[:3, :3] @ ((sizes - 1) / 2)
    return (int(sizes[0]), int(sizes[1]), int(sizes[2])), scaled


def has_spacing(affine: Array, spacing_mm: tuple[float, float, float]) -> bool:
    """Whether a grid has this voxel size already."""
    return bool(np.allclose(spacing_of(affine), spacing_mm, rtol=SAME_SPACING_TOLERANCE, atol=0))


def within_view(data: Array, affine: Array, shape: Shape, target_affine: Array, *, order: int) -> Array:
    """Data on a grid over the same field of view; beyond the outermost voxel centres the outermost values go on.

    Args and returns as `onto_grid`; the axes of both grids are parallel.
    """
    mapping = np.linalg.inv(affine) @ target_affine
    factors = np.diag(mapping[:3, :3])
    smooth = antialiased(data, factors) if order else data
    result = ndimage.affine_transform(smooth, factors, mapping[:3, 3], shape, order=order, mode="nearest")
    return np.asarray(result, dtype=data.dtype)


def antialiased(data: Array, factors: Array) -> Array:
    """Data smoothed for down-sampling: a Gaussian of (factor - 1) / 2 voxels along each axis of a factor above 1.

    Source: the rule of scikit-image's ``transform.resize``.
    """
    sigmas = np.maximum(0, (np.asarray(factors, dtype=np.float64) - 1) / 2)
    if not (sigmas > SAME_SPACING_TOLERANCE).any():
        return data
    smooth: Any = ndimage.gaussian_filter(data.astype(np.float32), sigmas, mode="nearest", truncate=3)
    return np.asarray(smooth, dtype=np.float32)
