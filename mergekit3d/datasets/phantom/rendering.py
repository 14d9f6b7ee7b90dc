"""From tissues on fine voxels to images and labels: partial volume, texture, bias field, noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from scipy import ndimage

from mergekit3d.datasets.phantom.contrasts import draw_contrasts
from mergekit3d.datasets.phantom.fields import Array, View, bounding_box, draw_field
from mergekit3d.datasets.phantom.tissues import DURA, VESSEL, member_table

LESION = 77
DURA_MM, DURA_GAPS = 1.5, 0.6
BIAS_MM, BIAS_SPREAD = 80.0, 0.15  # of the logarithm of the gain: what a scanner's own correction leaves
TEXTURE_MM, TEXTURE_SPREAD = 5.0, 0.03
NOISE = (0.02, 0.04)  # of white matter in T1, at 1 mm
BLUR_MM = 0.45
UNITS = (250.0, 1000.0)  # scanner units of white matter in T1


def add_details(generator: np.random.Generator, labels: Array, view: View) -> Array:
    """Small things that no label map shows: vessels and patches of dura in the fluid around the brain, lesions of the white matter.

    Args:
        generator: the source of randomness.
        labels: (X, Y, Z) int16 on the fine voxels of `view`.
        view: where they lie.

    Returns:
        (X, Y, Z) int16: the tissues to render.
    """
    box = bounding_box(labels > 0)
    x, y, z = (axis[extent] for axis, extent in zip(view.fine_axes(), box, strict=True))
    tissues = labels.copy()
    within = tissues[box]
    fluid, white = member_table("csf")[within], member_table("white matter")[within]
    edge = ndimage.maximum_filter(
        (within == 0).astype(np.uint8), size=2 * max(1, round(DURA_MM / view.fine_mm)) + 1, mode="constant", cval=1
    )
    within[fluid & (edge > 0) & (draw_field(generator, 16.0).on((x, y, z)) > DURA_GAPS)] = DURA
    for knot_mm, width in ((13.0, 0.16), (30.0, 0.11)):
        first, second = (draw_field(generator, knot_mm).on((x, y, z)) for _ in range(2))
        within[fluid & (np.abs(first) < width) & (np.abs(second) < width)] = VESSEL
    burden = float(np.clip(2.5 + 0.4 * generator.standard_normal(), 1.8, 3.2))
    spots = draw_field(generator, 6.0).on((x, y, z)) + np.float32(0.7) * draw_field(generator, 35.0).on((x, y, z))
    within[white & (spots > burden)] = LESION
    return tissues


def majority(fine: Array, view: View) -> Array:
    """The label that fills most of each image voxel; the lowest of several.

    Args:
        fine: (X, Y, Z) integers on the fine voxels of `view`.
        view: where they lie.

    Returns:
        (X, Y, Z) of the same type on the image voxels.
    """
    if view.fineness == 1:
        return fine
    parts = np.stack(list(_parts(fine, view)))
    chosen = np.zeros(view.shape, dtype=fine.dtype)
    most = np.zeros(view.shape, dtype=np.uint8)
    for label in np.flatnonzero(np.bincount(fine.ravel())):
        count = (parts == label).sum(axis=0, dtype=np.uint8)
        better = count > most
        chosen[better], most[better] = label, count[better]
    return chosen


def render(
    generator: np.random.Generator, tissues: Array, view: View, modalities: Sequence[str], *, infiltration: Array | None = None
) -> dict[str, Array]:
    """Render a subject.

    Args:
        generator: the source of randomness.
        tissues: (X, Y, Z) int16 on the fine voxels of `view`; 0 is background.
        view: where they lie.
        modalities: names out of t1, t1ce, t2, flair.
        infiltration: (X, Y, Z) float32, the share of edema in each fine voxel.

    Returns:
        (X, Y, Z) int16 on the image voxels for each modality: at least 1 where most of a voxel is brain, 0 elsewhere.
    """
    table, edema = draw_contrasts(generator, modalities)
    brain = majority((tissues > 0).astype(np.uint8), view).astype(bool)
    shared = draw_field(generator, TEXTURE_MM)
    images = {}
    for row, modality in enumerate(modalities):
        own, bias = draw_field(generator, TEXTURE_MM), draw_field(generator, BIAS_MM)
        low, high = np.log(UNITS)
        # An image is the mean of one of 1 mm over each voxel, as its label is the majority there.
        unit, sigma = np.exp(generator.uniform(low, high)), generator.uniform(*NOISE) * view.spacing_mm**-1.5
        blur = BLUR_MM / view.spacing_mm
        thickness = generator.uniform(0, 0.4) if modality in ("t2", "flair") else 0.0
        signal = _partial_volume(tissues, infiltration, view, table[row], edema[row])
        signal = ndimage.gaussian_filter(signal, (blur, blur, blur + thickness), truncate=3)
        axes = view.axes()
        signal *= 1 + np.float32(TEXTURE_SPREAD * np.sqrt(0.5)) * (shared.on(axes) + own.on(axes))
        signal *= np.exp(np.float32(BIAS_SPREAD) * bias.on(axes))
        real, imaginary = (np.float32(sigma) * generator.standard_normal(view.shape, dtype=np.float32) for _ in range(2))
        magnitude = np.sqrt((signal + real) ** 2 + imaginary**2)
        images[modality] = np.where(brain, np.maximum(1, np.rint(np.float32(unit) * magnitude)), 0).astype(np.int16)
    return images


def _parts(fine: Array, view: View) -> Iterator[Array]:
    """The first, second ... fine voxel of every image voxel."""
    step = view.fineness
    for x, y, z in product(range(step), repeat=3):
        yield fine[x::step, y::step, z::step]


def _partial_volume(tissues: Array, infiltration: Array | None, view: View, brightness: Array, edema: np.float32) -> Array:
    """Mean brightness of the fine voxels of every image voxel."""
    total = np.zeros(view.shape, dtype=np.float32)
    shares = _parts(infiltration, view) if infiltration is not None else None
    for part in _parts(tissues, view):
        values = brightness[part]
        if shares is not None:
            values += next(shares) * (edema - values)
        total += values
    return total / np.float32(view.fineness**3)
