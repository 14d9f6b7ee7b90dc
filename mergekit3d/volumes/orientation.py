"""Axis order: every array inside the product is RAS+ (first axis to the right, second to the front, third up).

Source: the canonical orientation as in nibabel's ``as_closest_canonical``: axes are permuted and flipped, never interpolated.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int]


def to_canonical(data: Array, affine: Array) -> tuple[Array, Array]:
    """Permute and flip the axes of `data` to the RAS+ order nearest to its affine.

    Args:
        data: (I, J, K), as stored.
        affine: (4, 4), voxel indices of `data` to RAS+ mm.

    Returns:
        The data, (X, Y, Z), and its affine, (4, 4).
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    orientation = io_orientation(affine)
    turned = apply_orientation(data, orientation)
    return np.ascontiguousarray(turned), affine @ inv_ornt_aff(orientation, data.shape)


def from_canonical(data: Array, affine: Array) -> Array:
    """The inverse of `to_canonical`: back to the axis order of the file.

    Args:
        data: (X, Y, Z) or (X, Y, Z, C), RAS+.
        affine: (4, 4), of the array as stored.

    Returns:
        The data, (I, J, K) or (I, J, K, C).
    """
    from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    return np.ascontiguousarray(apply_orientation(data, ornt_transform(axcodes2ornt("RAS"), io_orientation(affine))))


def canonical_grid(shape: Shape, affine: Array) -> tuple[Shape, Array]:
    """Shape and affine that `to_canonical` gives, without the data."""
    from nibabel.orientations import inv_ornt_aff, io_orientation

    orientation = io_orientation(affine)
    turned = [0, 0, 0]
    for axis, (target, _) in enumerate(orientation):
        turned[int(target)] = shape[axis]
    return (turned[0], turned[1], turned[2]), affine @ inv_ornt_aff(orientation, shape)


def spacing_of(affine: Array) -> tuple[float, float, float]:
    """Voxel edge lengths in mm: the lengths of the affine's columns."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)
