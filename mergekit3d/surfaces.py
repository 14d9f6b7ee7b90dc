"""Distances between the surfaces of two masks, in mm: what HD95 and the normalised surface Dice are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[Any]
Distances = NDArray[np.float64]


def surface_distances(prediction: Mask, truth: Mask, spacing_mm: tuple[float, float, float]) -> tuple[Distances, Distances]:
    """Distance of every surface voxel of either mask to the nearest one of the other.

    A surface voxel has one of its six neighbours outside the mask; what is beyond the image is outside.

    Args:
        prediction: (X, Y, Z), true where not 0.
        truth: the same shape.
        spacing_mm: size of a voxel along each axis.

    Returns:
        Of the prediction's surface and of the truth's, in mm: one number a voxel, infinite where the other mask is empty.
    """
    predicted, reference = np.asarray(prediction, bool), np.asarray(truth, bool)
    box = _bounding_box(predicted | reference)
    if box is None:
        return np.empty(0), np.empty(0)
    surface, reference_surface = _surface(predicted[box]), _surface(reference[box])
    return _distances_mm(surface, reference_surface, spacing_mm), _distances_mm(reference_surface, surface, spacing_mm)


def _bounding_box(mask: Mask) -> tuple[slice, ...] | None:
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        if occupied.size == 0:
            return None
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


def _surface(mask: Mask) -> Mask:
    from scipy import ndimage

    # Outside the box, as outside the image, counts as background.
    surface: Mask = mask & ~ndimage.binary_erosion(mask)
    return surface


def _distances_mm(start: Mask, goal: Mask, spacing_mm: tuple[float, float, float]) -> Distances:
    """Distance of every voxel of `start` to the nearest of `goal`; voxels in both are 0 without a search."""
    from scipy.spatial import KDTree

    distances = np.zeros(int(np.count_nonzero(start)))
    if not goal.any():
        return np.full_like(distances, np.inf)
    apart = start & ~goal
    if apart.any():
        tree = KDTree(np.argwhere(goal) * np.asarray(spacing_mm))
        found, _ = tree.query(np.argwhere(apart) * np.asarray(spacing_mm))
        distances[: found.size] = found
    return distances
