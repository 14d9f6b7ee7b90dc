"""Random smooth fields in millimetres: the same field whatever the voxel grid that it is looked at on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

Array = np.ndarray[Any, Any]
Axes = tuple[Array, Array, Array]
Shape = tuple[int, int, int]

FIELD_MM = 192.0  # 64 voxels of 3 mm; an adult brain is some 180 mm long
SIZE_STEP = 16  # voxels: networks of depth 5 halve four times
FINENESS_LIMIT = 3  # 27 fine voxels a voxel show partial volume well enough
REACH_MM = 160.0  # random fields are drawn over a cube of twice this edge, whatever part of it is looked at
SPLINE_STD = 0.479**1.5  # of a sum of standard normal controls under tensor-product cubic B-splines, averaged over space


@dataclass(frozen=True)
class View:
    """A field of view: image voxels, each of several fine voxels, centred on the origin.

    Args:
        shape: image voxels along x, y, z (RAS+).
        spacing_mm: edge of an image voxel.
        fineness: fine voxels along the edge of an image voxel.
    """

    shape: Shape
    spacing_mm: float
    fineness: int

    @property
    def fine_mm(self) -> float:
        """Edge of a fine voxel."""
        return self.spacing_mm / self.fineness

    def axes(self) -> Axes:
        """Voxel centres along x, y, z in mm, float32."""
        return _axes(self.shape, self.spacing_mm)

    def fine_axes(self) -> Axes:
        """Centres of the fine voxels along x, y, z in mm, float32."""
        x, y, z = self.shape
        return _axes((x * self.fineness, y * self.fineness, z * self.fineness), self.fine_mm)


@dataclass(frozen=True, eq=False)
class SmoothField:
    """A smooth random field of mean 0 and standard deviation 1 (on average over space).

    Args:
        controls: (N, N, N) float32, independent standard normal.
        knot_mm: distance between two controls; features are some two to three times as long.
    """

    controls: Array
    knot_mm: float

    def on(self, axes: Axes) -> Array:
        """The field on a grid of points.

        Args:
            axes: coordinates along x, y, z in mm.

        Returns:
            (X, Y, Z) float32.
        """
        (x, along_x), (y, along_y), (z, along_z) = (_spline_weights(axis, self.knot_mm, len(self.controls)) for axis in axes)
        rows = y @ (self.controls[along_x, along_y, along_z] @ z.T)
        field = (x / np.float32(SPLINE_STD)) @ rows.reshape(len(rows), -1)
        return np.asarray(field.reshape(len(axes[0]), len(axes[1]), len(axes[2])))


def view_of(spacing_mm: float, *, finest_mm: float) -> View:
    """The field of view at a spacing: a cube of 192 mm, rounded up to a multiple of 16 voxels.

    Args:
        spacing_mm: edge of an image voxel.
        finest_mm: fine voxels are about this small, but no larger than an image voxel and no smaller than a third of it.
    """
    size = SIZE_STEP * int(np.ceil(FIELD_MM / spacing_mm / SIZE_STEP - 1e-6))
    return View((size, size, size), spacing_mm, min(FINENESS_LIMIT, max(1, round(spacing_mm / finest_mm))))


def draw_field(generator: np.random.Generator, knot_mm: float) -> SmoothField:
    """Draw a field whose controls stand `knot_mm` apart."""
    size = int(np.ceil(2 * REACH_MM / knot_mm)) + 4
    return SmoothField(generator.standard_normal((size, size, size), dtype=np.float32), knot_mm)


def _axes(shape: Shape, spacing_mm: float) -> Axes:
    x, y, z = (((np.arange(size) - (size - 1) / 2) * spacing_mm).astype(np.float32) for size in shape)
    return x, y, z


def _spline_weights(axis: Array, knot_mm: float, size: int) -> tuple[Array, slice]:
    """Uniform cubic B-spline weights, (points, controls) float32, four a point; and the controls that take part."""
    position = (np.clip(axis, -REACH_MM, REACH_MM) + REACH_MM) / knot_mm
    first = np.minimum(position.astype(int), size - 4)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    low, high = int(first.min()), int(first.max()) + 4
    dense = np.zeros((len(axis), high - low), dtype=np.float32)
    np.put_along_axis(dense, first[:, None] - low + np.arange(4), weights.astype(np.float32), axis=1)
    return dense, slice(low, high)


def bounding_box(mask: Array) -> tuple[slice, slice, slice]:
    """The smallest box around what is true in a 3D mask; the whole of it where nothing is."""
    slices = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        slices.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, mask.shape[axis]))
    return slices[0], slices[1], slices[2]


def largest_part(mask: Array) -> Array:
    """The largest connected part of a 3D mask."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax())
