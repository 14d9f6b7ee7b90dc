"""Rotation, scaling and elastic deformation of a sample, in one resampling of the volume that it is cut from.

What is turned or shrunk into a patch comes from the volume around it; beyond the volume there is 0. ``torch.nn.functional.grid_sample``
does the work: on one thread and four modalities of 96^3 it takes 72 ms, scipy's map_coordinates 212 ms, MONAI's Rand3DElastic 1.4 s
(``benchmarks/results/train_step.md``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit3d.datasets.prepare import Prepared
from mergekit3d.volumes.orientation import spacing_of

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray[Any, Any]
Block = tuple[slice, slice, slice]

COARSE_VOXELS = 4
"""Distance of the points between which a deformation is linear."""
SMOOTHNESS_VOXELS = 11.0
"""Standard deviation of the Gaussian that smooths a deformation (nnU-Net: 9 to 13)."""


@dataclass(frozen=True)
class Chance:
    """A random change: how often, and between which values it is uniform.

    Args:
        probability: 0 to 1.
        low: smallest value.
        high: largest one.
    """

    probability: float
    low: float
    high: float

    def draw(self, rng: np.random.Generator, count: int = 1) -> Array | None:
        """So many values, or None where it does not happen this time."""
        return rng.uniform(self.low, self.high, count) if rng.random() < self.probability else None


@dataclass(frozen=True)
class Spatial:
    """Random rotation, scaling and deformation.

    Args:
        rotate: degrees, drawn for each of the three axes.
        scale: size of what the sample shows, relative to its own: above 1, things shrink.
        elastic: standard deviation of the displacement, in voxels.
    """

    rotate: Chance
    scale: Chance
    elastic: Chance

    def cut(self, prepared: Prepared, block: Block, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """A block of a subject, changed at random.

        Args:
            prepared: the subject.
            block: what to cut out where nothing is changed.
            rng: the generator.

        Returns:
            Image (M, *block), trilinear, and target (as the subject's), by the nearest voxel; None where there is none.
        """
        angles, factor, amplitude = self.rotate.draw(rng, 3), self.scale.draw(rng), self.elastic.draw(rng)
        if angles is None and factor is None and amplitude is None:
            return cut(prepared, block)
        whole = prepared.image.shape[1:]
        limits = [part.indices(size)[:2] for part, size in zip(block, whole, strict=True)]
        shape = [stop - start for start, stop in limits]
        matrix = _matrix(np.zeros(3) if angles is None else angles, 1.0 if factor is None else float(factor[0]), prepared)
        displacement = None if amplitude is None else float(amplitude[0]) * smooth_field(shape, rng)
        return _sampled(prepared, _places([start for start, _ in limits], shape, matrix, displacement, whole))


def cut(prepared: Prepared, block: Block) -> tuple[Array, Array | None]:
    """A block of a subject as it is: image and target, views of its arrays."""
    return prepared.image[..., *block], None if prepared.target is None else prepared.target[..., *block]


def smooth_field(shape: Sequence[int], rng: np.random.Generator) -> Array:
    """Smooth random displacements of standard deviation 1 along each axis: (3, X, Y, Z) float32."""
    import torch
    from scipy.ndimage import gaussian_filter
    from torch.nn import functional

    coarse = [-(-size // COARSE_VOXELS) + 1 for size in shape]
    margin = int(3 * SMOOTHNESS_VOXELS / COARSE_VOXELS)
    noise = rng.standard_normal((3, *(size + 2 * margin for size in coarse)), dtype=np.float32)
    sigma = SMOOTHNESS_VOXELS / COARSE_VOXELS
    inner = (slice(margin, -margin),) * 3
    smooth = np.stack([gaussian_filter(part, sigma, mode="wrap")[inner] for part in noise])
    # What a Gaussian of this width leaves of white noise.
    smooth *= (2 * np.sqrt(np.pi) * sigma) ** 1.5
    fine = functional.interpolate(torch.from_numpy(smooth)[None], size=list(shape), mode="trilinear", align_corners=True)
    return np.asarray(fine[0].numpy())


def _matrix(degrees: Array, factor: float, prepared: Prepared) -> Array:
    """Offsets from the centre of the sample, in voxels, to those in the volume: rotation and scaling in mm."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    spacing = np.asarray(spacing_of(prepared.affine))
    return np.asarray(factor * (rotation * spacing) / spacing[:, None])


@dataclass(frozen=True)
class _Places:
    """Where the voxels of a sample come from.

    Args:
        box: a part of the volume that holds all of them.
        grid: (1, X, Y, Z, 3), places within it as grid_sample takes them.
    """

    box: Block
    grid: Tensor


def _places(starts: Sequence[int], shape: Sequence[int], matrix: Array, displacement: Array | None, whole: Sequence[int]) -> _Places:
    import torch

    centre = np.array([start + (size - 1) / 2 for start, size in zip(starts, shape, strict=True)])
    offsets = [np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2) for size in shape]
    x, y, z = offsets[0][:, None, None], offsets[1][None, :, None], offsets[2][None, None, :]
    corners = np.array(list(itertools.product(*[(offset[0], offset[-1]) for offset in offsets]))) @ matrix.T + centre
    reach = 1 if displacement is None else 1 + float(np.abs(displacement).max())
    begin = np.clip(np.floor(corners.min(0) - reach), 0, np.array(whole) - 1).astype(int)
    end = np.clip(np.ceil(corners.max(0) + reach) + 1, begin + 1, whole).astype(int)
    grid = np.empty((1, *shape, 3), np.float32)
    for axis in range(3):
        row = matrix[axis].astype(np.float32)
        place = (row[0] * x + row[1] * y) + (row[2] * z + np.float32(centre[axis] - begin[axis]))
        if displacement is not None:
            place += displacement[axis]
        # grid_sample counts axes from the last one, from -1 to 1 between the outer faces of the box.
        grid[0, ..., 2 - axis] = (2 * place + 1) / np.float32(end[axis] - begin[axis]) - 1
    bx, by, bz = (slice(int(first), int(last)) for first, last in zip(begin, end, strict=True))
    return _Places((bx, by, bz), torch.from_numpy(grid))


def _sampled(prepared: Prepared, places: _Places) -> tuple[Array, Array | None]:
    import torch
    from torch.nn import functional

    def taken(values: Array, mode: str) -> Array:
        source = torch.from_numpy(values[..., *places.box].reshape(-1, *(part.stop - part.start for part in places.box)).astype(np.float32))
        result = functional.grid_sample(source[None], places.grid, mode=mode, padding_mode="zeros", align_corners=False)
        return np.asarray(result[0].numpy()).reshape(*values.shape[:-3], *places.grid.shape[1:4])

    with torch.no_grad():
        image = taken(prepared.image, "bilinear")
        target = None if prepared.target is None else taken(prepared.target, "nearest").astype(np.uint8)
    return image, target
