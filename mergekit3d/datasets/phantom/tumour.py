"""Simulated gliomas: a necrotic core inside an enhancing rim inside edema, each taking up tissue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mergekit3d.datasets.phantom.fields import Array, Axes, View, draw_field, largest_part
from mergekit3d.datasets.phantom.tissues import ENHANCING, NECROSIS, SIDES, member_table

SEED_DEPTH_MM = 5.0  # of the centre below the surface of the white matter
SKULL_MM = 3.0  # the core keeps this far from the edge of the brain
FADE_MM = 7.0  # width of the zone in which edema fades out
BOX_MM = 56.0  # half the edge of the box around the centre that is looked at
LATTICE_MM = 3.0
TRIES = 4000
CORE, EDEMA, RIM = 1, 2, 4  # labels of BraTS 2018
WHITE = member_table("white matter", "lesion")
SOFT = member_table(
    "white matter", "lesion", "cortex", "thalamus", "caudate", "putamen", "pallidum", "accumbens", "hippocampus", "amygdala"
)
FLUID = member_table("csf", "vessel", "dura")


@dataclass(frozen=True, eq=False)
class Tumour:
    """A brain with a tumour, on fine voxels.

    Args:
        tissues: (X, Y, Z) int16, FreeSurfer ids, and our own for necrosis and enhancing tumour.
        regions: (X, Y, Z) uint8: 1 necrosis and non-enhancing core, 2 edema, 4 enhancing.
        infiltration: (X, Y, Z) float32, the share of edema in each voxel, 0 to 1.
    """

    tissues: Array
    regions: Array
    infiltration: Array


@dataclass(frozen=True)
class _Plan:
    """Sizes of one tumour: lengths in mm, shares of the radius."""

    radius_mm: float
    necrosis: float
    edema_mm: float
    push: float
    enhancing: float | None  # share of the core that enhances in patches; None: a rim around the necrosis


def draw_tumour(generator: np.random.Generator, labels: Array, view: View, *, high_grade: bool) -> Tumour:
    """Grow a tumour in a brain.

    Args:
        generator: the source of randomness.
        labels: (X, Y, Z) int16 of FreeSurfer ids on the fine voxels of `view`.
        view: where they lie.
        high_grade: a thick rim around necrosis and much edema; else a core that enhances in patches and little edema.
    """
    plan = _draw_plan(generator, high_grade=high_grade)
    axes = view.fine_axes()
    centre = _draw_centre(generator, labels, axes)
    box = tuple(
        slice(int(np.searchsorted(axis, at - BOX_MM)), int(np.searchsorted(axis, at + BOX_MM)))
        for axis, at in zip(axes, centre, strict=True)
    )
    local = tuple(axis[extent] - np.float32(at) for axis, extent, at in zip(axes, box, centre, strict=True))
    around = _displaced(labels[box], local, plan, view.fine_mm)
    regions, share = _grow(generator, around, (local[0], local[1], local[2]), plan, view.fine_mm)

    whole = Tumour(labels.copy(), np.zeros(labels.shape, np.uint8), np.zeros(labels.shape, np.float32))
    around[regions == CORE], around[regions == RIM] = NECROSIS, ENHANCING
    whole.tissues[box], whole.regions[box], whole.infiltration[box] = around, regions, share
    return whole


def _draw_plan(generator: np.random.Generator, *, high_grade: bool) -> _Plan:
    a, b, c, d = generator.random(4)
    if high_grade:
        return _Plan(14 + 10 * a, 0.55 + 0.25 * b, 6 + 12 * c, 0.1 + 0.2 * d, None)
    return _Plan(15 + 9 * a, 0.0, 3 + 6 * c, 0.05 + 0.15 * d, 0.2 + 0.2 * b)


def _draw_centre(generator: np.random.Generator, labels: Array, axes: Axes) -> tuple[float, float, float]:
    """A point deep in the cerebral white matter, found on a lattice that does not depend on the view."""
    steps = [LATTICE_MM * np.arange(np.ceil(axis[0] / LATTICE_MM), np.floor(axis[-1] / LATTICE_MM) + 1) for axis in axes]
    places = [
        np.clip(np.rint((step - axis[0]) / (axis[1] - axis[0])).astype(int), 0, len(axis) - 1)
        for step, axis in zip(steps, axes, strict=True)
    ]
    white = WHITE[labels[np.ix_(*places)]]
    deep = ndimage.distance_transform_edt(white) * LATTICE_MM
    needed = min(SEED_DEPTH_MM, float(deep.max()))
    for point in generator.uniform(-90, 90, (TRIES, 3)):
        found = tuple(int(np.rint((at - step[0]) / LATTICE_MM)) for at, step in zip(point, steps, strict=True))
        if all(0 <= at < size for at, size in zip(found, deep.shape, strict=True)) and deep[found] >= needed > 0:
            return float(point[0]), float(point[1]), float(point[2])
    x, y, z = (float(step[at]) for step, at in zip(steps, np.unravel_index(int(deep.argmax()), deep.shape), strict=True))
    return x, y, z


def _displaced(labels: Array, local: tuple[Array, ...], plan: _Plan, fine_mm: float) -> Array:
    """Tissue pushed outwards by the mass; the edge of the brain stays where it is."""
    x, y, z = local[0][:, None, None], local[1][None, :, None], local[2][None, None, :]
    distance = np.sqrt(x * x + y * y + z * z) + np.float32(1e-3)
    width = np.float32(0.6 * plan.radius_mm)
    push = np.float32(plan.push * plan.radius_mm) * np.exp(-(((distance - plan.radius_mm) / width) ** 2) / 2) / distance / fine_mm
    index = np.zeros(labels.shape, dtype=np.int32)
    for axis, (offset, size) in enumerate(zip((x, y, z), labels.shape, strict=True)):
        steps = np.rint(-offset * push).astype(np.int32)
        own = np.arange(size, dtype=np.int32).reshape([-1 if other == axis else 1 for other in range(3)])
        index = index * size + np.clip(own + steps, 0, size - 1)
    moved = labels.ravel()[index]
    return np.where((labels > 0) & (moved > 0), moved, labels)


def _grow(generator: np.random.Generator, labels: Array, local: Axes, plan: _Plan, fine_mm: float) -> tuple[Array, Array]:
    """Regions of the tumour and the share of edema, around its centre."""
    lumps, bumps, holes, spread, cavity = (draw_field(generator, knot_mm).on(local) for knot_mm in (13.0, 6.0, 7.0, 18.0, 9.0))
    distance = _stretched_distance(generator, local, 0.15)
    mass = distance * (1 + 0.16 * lumps + 0.05 * bumps)
    reach = _stretched_distance(generator, local, 0.3) * (1 + 0.2 * spread + 0.06 * bumps)
    sides = SIDES[labels]
    left, right = np.bincount(sides[distance < plan.radius_mm / 2], minlength=3)[1:]
    own_side = sides != (2 if left > right else 1)
    edge = ndimage.maximum_filter((labels == 0).astype(np.uint8), size=2 * max(1, round(SKULL_MM / fine_mm)) + 1) > 0
    tissue = SOFT[labels] & own_side & ~edge
    core = largest_part((mass < plan.radius_mm) & (tissue | ((mass < 0.8 * plan.radius_mm) & FLUID[labels] & ~edge)))

    regions = np.zeros(labels.shape, dtype=np.uint8)
    regions[core] = RIM
    if plan.enhancing is None:
        dead = (mass * (1 + 0.18 * cavity) < plan.necrosis * plan.radius_mm) & (mass < plan.radius_mm - 2.0)
        regions[core & (dead | (holes > 1.5))] = CORE
    else:
        patch = core & (mass < 0.85 * plan.radius_mm)
        limit = np.quantile(holes[patch], 1 - plan.enhancing) if patch.any() else np.inf
        regions[core & ~(patch & (holes >= limit))] = CORE
    white = WHITE[labels] & own_side & ~core
    outer = plan.radius_mm + np.where(white, np.float32(plan.edema_mm), np.float32(min(1.0, plan.edema_mm)))
    share = np.clip((outer - reach) / FADE_MM + 0.5, 0, 1) * (white | (tissue & ~core))
    regions[(share > 0.5) & white] = EDEMA
    return regions, share.astype(np.float32)


def _stretched_distance(generator: np.random.Generator, local: Axes, spread: float) -> Array:
    """Distance from the centre in mm, along axes that are turned at random and stretched by a few tenths, the volume kept."""
    turn, _ = np.linalg.qr(generator.standard_normal((3, 3)))
    stretch = spread * generator.standard_normal(3)
    rows = (np.diag(np.exp(stretch - stretch.mean())) @ turn).astype(np.float32)
    x, y, z = local[0][:, None, None], local[1][None, :, None], local[2][None, None, :]
    return np.asarray(np.sqrt(sum((row[0] * x + row[1] * y + row[2] * z) ** 2 for row in rows)))
