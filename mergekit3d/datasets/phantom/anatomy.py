"""Procedural brains: FreeSurfer label maps from formulas, no data files.

Coordinates are RAS+ millimetres about the anterior commissure, as in the common atlases. Hulls are ellipsoids, deep structures
ellipsoids and tubes; the folded cortex is a ribbon along the hull and along random sheets that run inwards from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mergekit3d.datasets.phantom.deformation import Deformation, draw_deformation
from mergekit3d.datasets.phantom.fields import Array, Axes, SmoothField, View, bounding_box, draw_field
from mergekit3d.datasets.phantom.shapes import Ball, Points, Shape, Tube, inside, smooth_union
from mergekit3d.datasets.phantom.tissues import LEFT_TO_RIGHT

CENTRE_MM = (0.0, -17.0, 5.0)  # of the field of view
FINEST_MM = 1.25  # fine voxels: the cortex is two wide
CORTEX_MM = 2.6
SULCUS_HALF_MM = 0.5
LATTICE_STEP_MM = 2.5
LATTICE_MM = np.arange(-100, 101, LATTICE_STEP_MM, dtype=np.float32)  # where folds are drawn, whatever the view
SHEETS = ((13.0, 17.0), (8.5, 8.0))  # controls' distance and depth, in mm, of primary and secondary sulci
CSF, CORTEX, WHITE, CEREBELLAR_CORTEX, CEREBELLAR_WHITE, BRAINSTEM = 24, 3, 2, 8, 7, 16
VENTRICLES, MIDLINE = (4, 5, 14), (14, 85)  # ids

CEREBRUM = Ball((0, -17, 14), (66, 83, 62))
TEMPORAL_LOBE = Ball((41, -19, -17), (22, 41, 21), lean=0.1)
CEREBELLAR_LOBE = Ball((23, -62, -33), (29, 28, 23))
VERMIS = Ball((0, -62, -29), (15, 23, 22))
STEM = Tube(((0, -20, -4, 10), (0, -21, -14, 11), (0, -24, -24, 14.5), (0, -27, -34, 13), (0, -33, -46, 8.5), (0, -38, -62, 6.5)))
CISTERN = Ball((0, -14, -12), (26, 26, 17))
WHITE_CORE = Ball((0, -15, 9), (31, 37, 19))  # no folds here: corpus callosum above, basal ganglia below

FOURTH_VENTRICLE = Ball((0, -44, -33), (6.5, 5, 9))

# Painted in this order, later over earlier; coordinates are those of the right side, ids those of the left.
LATERAL_VENTRICLE = (
    (4, Tube(((7, 28, 3, 5.2), (8, 15, 13, 5.8), (9, -5, 20, 5.8), (13, -25, 19, 6.8), (22, -40, 10, 8.5), (21, -58, 6, 5)))),
    (5, Tube(((23, -40, 6, 6), (31, -34, -5, 4.5), (34, -20, -13, 3.2), (32, -8, -17, 2.4)))),
)
DEEP_STRUCTURES: tuple[tuple[int, Shape], ...] = (
    (7, Tube(((10, -34, -31, 4), (17, -46, -33, 4)))),  # the peduncle
    (28, Ball((10, -13, -7.5), (11.5, 12.5, 8))),
    *LATERAL_VENTRICLE,
    (14, Ball((0, -11, -1), (2.6, 13, 10))),
    (10, Ball((12, -18, 6), (10, 15.5, 11.5), lean=0.5)),
    (11, Tube(((12.5, 19, 1, 6), (13, 12, 9, 6), (15.5, 0, 15.5, 4.2), (18.5, -15, 19, 3.2), (22, -29, 16, 2.6)))),
    (12, Ball((26, 2, 1), (6.8, 17, 10.5), lean=0.3)),
    (13, Ball((19, -3, 0), (4.6, 10, 7.5), lean=0.3)),
    (26, Ball((9.5, 11, -7), (4, 5, 4))),
    (17, Tube(((24, -11, -19, 6.3), (27, -20, -16, 5.8), (28, -29, -10, 5.2), (24, -38, -3, 4)))),
    (18, Ball((23, -3, -18), (6.8, 7.2, 7))),
    (85, Ball((0, 3, -13), (8, 3, 1.6))),
    (31, Ball((21, -41, 10), (3, 5, 3))),
    (30, Ball((27, 0, -9), (3.5, 1.8, 2))),
)


@dataclass(frozen=True, eq=False)
class _Brain:
    """What is random in a brain.

    Args:
        deformation: of everything.
        sheets: fields whose zeros are the sulci, and how deep those run in mm.
        folia: a field that bends the folds of the cerebellum.
        structures: id, shape on the left and shape on the right of each deep structure, both in coordinates of the right.
    """

    deformation: Deformation
    sheets: tuple[tuple[SmoothField, float], ...]
    folia: SmoothField
    structures: tuple[tuple[int, Shape, Shape], ...]


@dataclass(frozen=True, eq=False)
class _Surfaces:
    """Signed distances in mm, positive inside, on a list of points."""

    hull: Array  # of the cerebrum, sulci filled
    temporal: Array
    cerebellum: Array
    stem: Array
    skull: Array

    def __getitem__(self, chosen: Array) -> _Surfaces:
        return _Surfaces(self.hull[chosen], self.temporal[chosen], self.cerebellum[chosen], self.stem[chosen], self.skull[chosen])


def draw_anatomy(generator: np.random.Generator, view: View) -> Array:
    """Draw one brain.

    Args:
        generator: the source of randomness; the view takes nothing from it, so that a brain is the same at every spacing.
        view: where to look at it.

    Returns:
        (X, Y, Z) int16 of FreeSurfer ids, hemispheres apart, on the fine voxels of `view`.
    """
    brain = _draw_brain(generator)
    axes = view.fine_axes()
    box = _bounding_box(brain.deformation, axes)
    points = _points(brain.deformation, (axes[0][box[0]], axes[1][box[1]], axes[2][box[2]]))
    surfaces = _surfaces(points)
    within = surfaces.skull > 0
    labels = np.zeros([len(axis) for axis in axes], dtype=np.int16)
    labels[box][within] = _label(points[within], surfaces[within], brain)
    return labels


def _draw_brain(generator: np.random.Generator) -> _Brain:
    deformation, _ = draw_deformation(generator, rotation_deg=2.0, scale=0.03, displacements_mm=((2.6, 55.0), (1.3, 22.0), (0.5, 9.0)))
    sheets = tuple((draw_field(generator, knot_mm), depth_mm) for knot_mm, depth_mm in SHEETS)
    folia = draw_field(generator, 14.0)
    ventricles = _draw_size(generator, 0.18)  # they vary most
    structures = []
    for label, shape in DEEP_STRUCTURES:
        size = _draw_size(generator, 0.06) * (ventricles if label in VENTRICLES else 1.0)
        left, right = (_draw_shape(generator, shape, size, midline=label in MIDLINE) for _ in range(2))
        structures.append((label, left, right))
    return _Brain(deformation, sheets, folia, tuple(structures))


def _draw_shape(generator: np.random.Generator, shape: Shape, size: float, *, midline: bool) -> Shape:
    x, y, z = 0.7 * generator.standard_normal(3)
    return shape.varied((0.0 if midline else float(x), float(y), float(z)), size * _draw_size(generator, 0.03))


def _draw_size(generator: np.random.Generator, spread: float) -> float:
    return float(np.exp(spread * np.clip(generator.standard_normal(), -2.5, 2.5)))


def _bounding_box(deformation: Deformation, axes: Axes) -> tuple[slice, slice, slice]:
    """Slices around the skull, found on every fourth millimetre."""
    strides = [max(1, round(4.0 / float(axis[1] - axis[0]))) for axis in axes]
    coarse = (axes[0][:: strides[0]], axes[1][:: strides[1]], axes[2][:: strides[2]])
    skull = _surfaces(_points(deformation, coarse)).skull > -4.0
    found = zip(bounding_box(skull), strides, strict=True)
    x, y, z = (slice(max(0, (extent.start - 1) * stride), (extent.stop + 1) * stride) for extent, stride in found)
    return x, y, z


def _points(deformation: Deformation, axes: Axes) -> Points:
    x, y, z = deformation.sources(axes)
    return Points(x + np.float32(CENTRE_MM[0]), y + np.float32(CENTRE_MM[1]), z + np.float32(CENTRE_MM[2]))


def _surfaces(points: Points) -> _Surfaces:
    folded = points.mirrored()
    cerebrum = CEREBRUM.distance(points)
    # The floor of the cerebrum: the orbits' roof in front, the tentorium behind.
    floor = points.z + 8 - 9 * np.exp(-(((points.y + 58) / 26) ** 2) - (points.x / 38) ** 2) - 3 * np.exp(-(((points.y - 35) / 30) ** 2))
    temporal = TEMPORAL_LOBE.distance(folded)
    hull = smooth_union(np.minimum(cerebrum, floor), temporal, 6)
    cerebellum = smooth_union(CEREBELLAR_LOBE.distance(folded), VERMIS.distance(points), 5)
    stem = STEM.distance(points)
    fossa = np.maximum(cerebellum + 4, stem + 4.5)
    skull = smooth_union(smooth_union(np.minimum(cerebrum + 3, floor + 5), temporal + 3, 8), fossa, 8)
    return _Surfaces(hull, temporal, cerebellum, stem, smooth_union(skull, CISTERN.distance(points), 8))


def _label(points: Points, surfaces: _Surfaces, brain: _Brain) -> Array:
    """FreeSurfer ids of points inside the skull."""
    labels = np.full(points.x.shape, CSF, dtype=np.int16)
    _paint_cerebrum(labels, points, surfaces, brain.sheets)
    _paint_cerebellum(labels, points, surfaces, brain.folia)
    core = WHITE_CORE.distance(points)
    labels[core > 0] = WHITE
    labels[(surfaces.stem > 0) & ((core <= 0) | (points.z < -6))] = BRAINSTEM
    labels[inside(FOURTH_VENTRICLE, points)] = 15
    right = points.x > 0
    on_left, on_right = np.flatnonzero(~right), np.flatnonzero(right)
    left_points, right_points = points[on_left].mirrored(), points[on_right]
    for label, left_shape, right_shape in brain.structures:
        labels[on_left[inside(left_shape, left_points)]] = label
        labels[on_right[inside(right_shape, right_points)]] = label
    labels[right] = LEFT_TO_RIGHT[labels[right]]
    return labels


def _paint_cerebrum(labels: Array, points: Points, surfaces: _Surfaces, sheets: tuple[tuple[SmoothField, float], ...]) -> None:
    """White matter, and the cortex as a ribbon below the hull, the midline fissure and the sulci."""
    across = np.abs(points.x)
    depth = np.minimum(surfaces.hull, across - 1.2)
    chosen = np.flatnonzero(depth > 0)
    points, depth, across = points[chosen], depth[chosen], across[chosen]
    # The Sylvian fissure runs between the temporal lobe and the rest, down to the insula.
    fissure = np.sqrt((surfaces.temporal[chosen] + 0.5) ** 2 + np.maximum(34 - across, 0) ** 2 + np.maximum(-45 - points.y, 0) ** 2)
    for field, depth_mm in sheets:
        distance = _distance_to_sheet(points, field)
        fissure = np.minimum(fissure, np.sqrt(distance**2 + np.maximum(depth - depth_mm, 0) ** 2))
    pial = np.minimum(depth, fissure - SULCUS_HALF_MM * np.clip(1.6 - depth / 14, 0.5, 1.6))
    labels[chosen[pial > 0]] = CORTEX
    labels[chosen[pial > CORTEX_MM]] = WHITE


def _distance_to_sheet(points: Points, field: SmoothField) -> Array:
    """Approximate distance in mm to the zero level of a field that is drawn out along the lines to the hemisphere's centre."""
    values = field.on((LATTICE_MM, LATTICE_MM, LATTICE_MM))
    slopes = np.sqrt(sum(np.square(slope) for slope in np.gradient(values, np.float32(LATTICE_STEP_MM))))
    centre = np.where(points.x > 0, np.float32(28), np.float32(-28))
    x, y, z = points.x - centre, points.y + 16, points.z - 12
    stretch = (45 / (np.sqrt(x * x + (0.75 * y) ** 2 + z * z) + 1)) ** 0.75
    places = (np.stack([x * stretch + centre, y * stretch, z * stretch]) - LATTICE_MM[0]) / np.float32(LATTICE_STEP_MM)
    value = ndimage.map_coordinates(values, places, order=1, mode="nearest")
    slope = ndimage.map_coordinates(slopes, places, order=1, mode="nearest")
    return np.asarray(np.abs(value) / (stretch * (slope + 0.1 * slopes.mean())))


def _paint_cerebellum(labels: Array, points: Points, surfaces: _Surfaces, folia: SmoothField) -> None:
    """Folia fan out from the white core: branches of white matter between fissures."""
    chosen = np.flatnonzero((surfaces.cerebellum > 0) & (labels == CSF))
    points, depth = points[chosen], surfaces.cerebellum[chosen]
    y, z = points.y + 48, points.z + 34
    radius = np.sqrt(y * y + z * z)
    places = (np.stack([points.x, points.y, points.z]) - LATTICE_MM[0]) / np.float32(LATTICE_STEP_MM)
    wobble = ndimage.map_coordinates(folia.on((LATTICE_MM, LATTICE_MM, LATTICE_MM)), places, order=1, mode="nearest")
    phase = 11 * np.arctan2(z, y) + 1.3 * wobble + 0.04 * np.abs(points.x)
    white = (depth > 18.0) | ((radius / 11 * np.abs(np.sin(phase)) < 0.6) & (depth > 5))
    fissure = (radius / 11 * np.abs(np.cos(phase)) < 0.5) & (depth < 5)
    labels[chosen] = np.where(fissure, CSF, np.where(white, CEREBELLAR_WHITE, CEREBELLAR_CORTEX))
