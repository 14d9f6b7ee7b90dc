"""The bias field of a magnetic resonance image, by N4.

The field is a cubic B-spline in the logarithm of the intensities, found on a shrunken grid: again and again the histogram is sharpened, and
what that moved is fitted and added. The voxels lie on a grid, so that every sum over them and the control points is three products with
small matrices, one an axis. SimpleITK, which goes from voxel to voxel, takes some 30 times as long for the same field.

Source: Tustison et al., "N4ITK: improved N3 bias correction", IEEE Trans. Med. Imaging 29 (2010), with the defaults of ITK's filter, and
equal to it iteration by iteration (a test has it). Sharpening: Sled, Zijdenbos, Evans, IEEE Trans. Med. Imaging 17 (1998). Fitting: Lee,
Wolberg, Shin, "Scattered data interpolation with multilevel B-splines", IEEE Trans. Vis. Comput. Graph. 3 (1997).
What differs: on the whole grid the field lies where it was found; ITK stretches the field of the shrunken grid over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekit3d.errors import InputError
from mergekit3d.volumes.orientation import Array, Shape

WORKING_EDGE_MM = 4.0
FEWEST_VOXELS = 64  # as many as there are control points on the first level
SMALLEST_POSITIVE_SHARE = 0.5

LEVELS, ITERATIONS, CONVERGED = 4, 50, 1e-3
FIRST_CONTROL_POINTS = (4, 4, 4)
BINS, PADDED_BINS = 200, 512
BLUR_FWHM, WIENER_NOISE = 0.15, 0.01


def shrink_factors(spacing_mm: tuple[float, float, float], shrink: int | None) -> Shape:
    """The factors along the axes: the one asked for, or those that bring voxels to about 4 mm."""
    if shrink is not None:
        return shrink, shrink, shrink
    x, y, z = (max(1, round(WORKING_EDGE_MM / edge)) for edge in spacing_mm)
    return x, y, z


def log_bias_field(image: Array, mask: Array, factors: Shape, *, called: str) -> Array:
    """The logarithm of the field that an image was multiplied by, up to a constant.

    Args:
        image: (X, Y, Z) float32.
        mask: bool, (X, Y, Z); voxels of it that are not positive are left out.
        factors: to shrink by, along each axis.
        called: what an error calls the image.

    Returns:
        float32, (X, Y, Z).

    Raises:
        InputError: too few voxels are positive.
    """
    positive = mask & (image > 0)
    if positive.sum() < SMALLEST_POSITIVE_SHARE * mask.sum():
        raise InputError(
            "N4 needs positive intensities",
            where=called,
            found=f"{int(positive.sum())} of {int(mask.sum())} foreground voxels",
            todo="pass --no-n4 where the intensities were normalised before",
        )
    axes = [_Axis(size, factor) for size, factor in zip(image.shape, factors, strict=True)]
    shrunken = tuple(axis.slice for axis in axes)
    inside = positive[shrunken]
    counted = int(inside.sum())
    if counted < FEWEST_VOXELS:
        wanted = f"{FEWEST_VOXELS} foreground voxels on the shrunken grid"
        raise InputError("too little foreground for N4", where=called, wanted=wanted, found=counted, todo="shrink less, or pass --no-n4")
    control_points = _estimate(np.log(image[shrunken][inside].astype(np.float64)), inside)
    weights = [axis.weights(points).astype(np.float32) for axis, points in zip(axes, control_points.shape, strict=True)]
    return _spread(control_points.astype(np.float32), weights)


@dataclass(frozen=True)
class _Axis:
    """One axis of a grid and of the shrunken one, which takes every `factor`-th voxel, as near to the middle as can be.

    Args:
        size: voxels of the whole grid.
        factor: to shrink by.
    """

    size: int
    factor: int

    @property
    def shrunken_size(self) -> int:
        return max(1, self.size // self.factor)

    @property
    def first(self) -> int:
        return (self.size - (self.shrunken_size - 1) * self.factor) // 2

    @property
    def slice(self) -> slice:
        return slice(self.first, self.first + (self.shrunken_size - 1) * self.factor + 1, self.factor)

    def weights(self, control_points: int) -> Array:
        """Of the control points, for each voxel of the whole grid; beyond the shrunken one the outermost voxel's."""
        places = (np.arange(self.size) - self.first) / (self.factor * max(1, self.shrunken_size - 1))
        return _spline_weights(places, control_points)


def _estimate(log_image: Array, inside: Array) -> Array:
    """The control points of the field of a shrunken image.

    Args:
        log_image: (N), the logarithms within the foreground.
        inside: bool, (X, Y, Z), where they stand; N are True.
    """
    lattice = np.zeros(FIRST_CONTROL_POINTS)
    field = np.zeros(len(log_image))
    for level in range(LEVELS):
        if level:
            lattice = _refined(lattice)
        fit = _Fit.over(inside, lattice.shape)
        for _ in range(ITERATIONS):
            corrected = log_image - field
            lattice = lattice + fit.control_points(corrected - _sharpened(corrected))
            earlier, field = field, fit.values(lattice)
            change = np.exp(earlier - field)
            if change.std(ddof=1) <= CONVERGED * change.mean():
                break
    return lattice


@dataclass(frozen=True)
class _Fit:
    """B-splines over the voxels of a mask.

    Args:
        inside: bool, (X, Y, Z).
        weights: of the control points, (X, A), (Y, B), (Z, C).
        norm: (N), the sum of the squared weights of each voxel.
        support: (A, B, C), the sum of the squared weights of each control point.
    """

    inside: Array
    weights: Sequence[Array]
    norm: Array
    support: Array

    @classmethod
    def over(cls, inside: Array, control_points: Sequence[int]) -> _Fit:
        weights = [_spline_weights(np.linspace(0, 1, size), points) for size, points in zip(inside.shape, control_points, strict=True)]
        squares = [each**2 for each in weights]
        norm = np.einsum("x,y,z->xyz", *(each.sum(axis=1) for each in squares))[inside]
        return cls(inside, weights, norm, _gathered(inside.astype(np.float64), squares))

    def control_points(self, residual: Array) -> Array:
        """Those whose spline is near to a residual, (N): each the mean of what its voxels ask for, weighted by squared weights."""
        asked = np.zeros(self.inside.shape)
        asked[self.inside] = residual / self.norm
        sums = _gathered(asked, [each**3 for each in self.weights])
        return np.divide(sums, self.support, out=np.zeros_like(sums), where=self.support > 0)

    def values(self, lattice: Array) -> Array:
        """The spline of control points at the voxels, (N)."""
        return _spread(lattice, self.weights)[self.inside]


def _spline_weights(places: Array, control_points: int) -> Array:
    """Weights, (N, control points), of a uniform cubic B-spline over [0, 1] at places, (N), which are clipped to it."""
    spans = control_points - 3
    scaled = np.clip(places, 0, 1) * spans
    span = np.minimum(scaled.astype(int), spans - 1)
    t = scaled - span
    four = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    weights = np.zeros((len(places), control_points))
    np.put_along_axis(weights, span[:, None] + np.arange(4), four, axis=1)
    return weights


def _gathered(values: Array, weights: Sequence[Array]) -> Array:
    """Sums of values, (X, Y, Z), for every control point, (A, B, C), by weights (X, A), (Y, B), (Z, C)."""
    # einsum adds up in one order on any machine, which products of a linear algebra library do not.
    by_z = np.einsum("xyz,zc->xyc", values, weights[2])
    by_yz = np.einsum("xyc,yb->xbc", by_z, weights[1])
    return np.asarray(np.einsum("xbc,xa->abc", by_yz, weights[0]))


def _spread(lattice: Array, weights: Sequence[Array]) -> Array:
    """Values at every voxel, (X, Y, Z), of control points, (A, B, C): the transpose of `_gathered`."""
    along_x = np.einsum("abc,xa->xbc", lattice, weights[0])
    along_xy = np.einsum("xbc,yb->xyc", along_x, weights[1])
    return np.asarray(np.einsum("xyc,zc->xyz", along_xy, weights[2]))


def _refined(lattice: Array) -> Array:
    """The control points of the same spline with twice as many spans along each axis."""
    for axis in range(3):
        points = np.moveaxis(lattice, axis, 0)
        finer = np.empty((2 * len(points) - 3, *points.shape[1:]))
        finer[::2] = (points[:-1] + points[1:]) / 2
        finer[1::2] = (points[:-2] + 6 * points[1:-1] + points[2:]) / 8
        lattice = np.moveaxis(finer, 0, axis)
    return lattice


def _sharpened(values: Array) -> Array:
    """What values, (N), are expected to have been before a Gaussian blurred their histogram, by Wiener's filter."""
    low, high = values.min(), values.max()
    if low == high:
        return values
    width = (high - low) / (BINS - 1)
    place = (values - low) / width
    bin_below = np.minimum(place.astype(int), BINS - 2)
    share = place - bin_below
    counts = np.bincount(bin_below, 1 - share, BINS) + np.bincount(bin_below + 1, share, BINS)

    before = (PADDED_BINS - BINS) // 2
    own = slice(before, before + BINS)
    histogram = np.zeros(PADDED_BINS)
    histogram[own] = counts
    index = np.arange(PADDED_BINS)
    fwhm = BLUR_FWHM / width
    bell = np.exp(-4 * np.log(2) * (np.minimum(index, PADDED_BINS - index) / fwhm) ** 2) * 2 * np.sqrt(np.log(2) / np.pi) / fwhm
    blur = np.fft.rfft(bell)
    sharp = np.maximum(0, np.fft.irfft(np.fft.rfft(histogram) * (np.conj(blur) / (np.abs(blur) ** 2 + WIENER_NOISE)).real))
    centres = low + (index - before) * width
    blurred_sum, blurred = (np.fft.irfft(np.fft.rfft(each) * blur) for each in (sharp * centres, sharp))
    expected = np.divide(blurred_sum, blurred, out=np.zeros(PADDED_BINS), where=blurred != 0)[own]
    return np.asarray(expected[bin_below] + (expected[bin_below + 1] - expected[bin_below]) * share)
