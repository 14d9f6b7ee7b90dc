"""Implicit shapes: approximate signed distances in millimetres, positive inside, on lists of points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mergekit3d.datasets.phantom.fields import Array

Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Points:
    """Points in millimetres.

    Args:
        x, y, z: coordinates, float32 arrays of one shape.
    """

    x: Array
    y: Array
    z: Array

    def __getitem__(self, chosen: Array) -> Points:
        return Points(self.x[chosen], self.y[chosen], self.z[chosen])

    def mirrored(self) -> Points:
        """The points with left folded onto right."""
        return replace(self, x=np.abs(self.x))


@dataclass(frozen=True)
class Ball:
    """An ellipsoid.

    Args:
        centre, radii: in mm, along x, y, z.
        lean: how far y moves backwards for each mm outwards along x.
    """

    centre: Triple
    radii: Triple
    lean: float = 0.0

    def distance(self, points: Points) -> Array:
        """Signed distance to the surface to first order, positive inside."""
        x = (points.x - np.float32(self.centre[0])) / np.float32(self.radii[0])
        y = (points.y - np.float32(self.centre[1])) / np.float32(self.radii[1])
        z = (points.z - np.float32(self.centre[2])) / np.float32(self.radii[2])
        if self.lean:
            y += np.float32(self.lean * self.radii[0] / self.radii[1]) * x
        level = np.sqrt(x * x + y * y + z * z)
        across, along, up = (np.float32(1 / radius) for radius in self.radii)
        slope = np.sqrt((across * x) ** 2 + (along * y) ** 2 + (up * z) ** 2) + np.float32(1e-6)
        return np.asarray(level * (1 - level) / slope)

    def box(self) -> tuple[Triple, Triple]:
        """Lowest and highest coordinates."""
        x, y, z = self.centre
        across, along, up = self.radii[0], self.radii[1] + abs(self.lean) * self.radii[0], self.radii[2]
        return (x - across, y - along, z - up), (x + across, y + along, z + up)

    def varied(self, offset: Triple, size: float) -> Ball:
        """The ball moved by `offset` mm and scaled by `size`."""
        x, y, z = (centre + move for centre, move in zip(self.centre, offset, strict=True))
        across, along, up = self.radii
        return replace(self, centre=(x, y, z), radii=(across * size, along * size, up * size))


@dataclass(frozen=True)
class Tube:
    """A bent tube.

    Args:
        course: x, y, z and radius in mm at each bend.
    """

    course: tuple[tuple[float, float, float, float], ...]

    def distance(self, points: Points) -> Array:
        """Signed distance to the surface, positive inside."""
        nearest: Array | None = None
        for start, end in zip(self.course[:-1], self.course[1:], strict=True):
            along = [np.float32(b - a) for a, b in zip(start[:3], end[:3], strict=True)]
            offsets = [points.x - np.float32(start[0]), points.y - np.float32(start[1]), points.z - np.float32(start[2])]
            share = sum(offset * step for offset, step in zip(offsets, along, strict=True)) / sum(step * step for step in along)
            share = np.clip(share, 0, 1)
            squares = sum((offset - share * step) ** 2 for offset, step in zip(offsets, along, strict=True))
            inside = np.float32(start[3]) + np.float32(end[3] - start[3]) * share - np.sqrt(squares)
            nearest = inside if nearest is None else np.maximum(nearest, inside)
        assert nearest is not None
        return np.asarray(nearest)

    def box(self) -> tuple[Triple, Triple]:
        """Lowest and highest coordinates."""
        bends = np.array(self.course)
        low, high = (bends[:, :3] - bends[:, 3:]).min(axis=0), (bends[:, :3] + bends[:, 3:]).max(axis=0)
        return (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2]))

    def varied(self, offset: Triple, size: float) -> Tube:
        """The tube moved by `offset` mm and made thicker by `size`."""
        return Tube(tuple((x + offset[0], y + offset[1], z + offset[2], radius * size) for x, y, z, radius in self.course))


Shape = Ball | Tube


def smooth_union(first: Array, second: Array, width_mm: float) -> Array:
    """The union of two shapes given by signed distances, its seam rounded over `width_mm`."""
    overlap = np.maximum(np.float32(width_mm) - np.abs(first - second), 0)
    return np.asarray(np.maximum(first, second) + overlap * overlap / np.float32(4 * width_mm))


def inside(shape: Shape, points: Points) -> Array:
    """Indices of the points that lie in a shape."""
    low, high = shape.box()
    coordinates = zip((points.x, points.y, points.z), low, high, strict=True)
    near = np.flatnonzero(np.logical_and.reduce([(at >= least) & (at <= most) for at, least, most in coordinates]))
    return near[shape.distance(points[near]) > 0]
