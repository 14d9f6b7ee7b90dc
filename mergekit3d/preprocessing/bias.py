"""The bias field of a magnetic resonance image, by N4.

Source: Tustison et al., "N4ITK: improved N3 bias correction", IEEE Trans. Med. Imaging 29 (2010), as in SimpleITK, with its defaults (four
levels of at most 50 iterations, one control point more in each direction than the spline's order). The field is estimated on a shrunken
grid and evaluated on the whole one.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np

from mergekit3d.errors import InputError, UsageError
from mergekit3d.volumes.orientation import Array, Shape

WORKING_EDGE_MM = 4.0
FEWEST_VOXELS = 64  # as many as a cubic spline has control points on its first level
SMALLEST_POSITIVE_SHARE = 0.5


def require_simpleitk() -> None:
    """Refuse N4 where the library that has it is missing.

    Raises:
        UsageError: SimpleITK is not installed.
    """
    if find_spec("SimpleITK") is None:
        raise UsageError("N4 needs SimpleITK", todo="pip install 'mergekit3d[preprocess]', or pass --no-n4")


def shrink_factors(spacing_mm: tuple[float, float, float], shrink: int | None) -> Shape:
    """The factors along the axes: the one asked for, or those that bring voxels to about 4 mm."""
    if shrink is not None:
        return shrink, shrink, shrink
    x, y, z = (max(1, round(WORKING_EDGE_MM / edge)) for edge in spacing_mm)
    return x, y, z


@contextmanager
def one_thread() -> Generator[None, None, None]:
    """Within the block SimpleITK takes one thread, so that its sums are the same to the bit whatever the machine has."""
    import SimpleITK

    process = SimpleITK.ProcessObject
    before = process.GetGlobalDefaultNumberOfThreads()
    process.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        process.SetGlobalDefaultNumberOfThreads(before)


def log_bias_field(image: Array, mask: Array, spacing_mm: tuple[float, float, float], factors: Shape, *, called: str) -> Array:
    """The logarithm of the field that an image was multiplied by, up to a constant; to be called within `one_thread`.

    Args:
        image: (X, Y, Z) float32.
        mask: bool, (X, Y, Z); voxels of it that are not positive are left out.
        spacing_mm: voxel edges.
        factors: to shrink by, along each axis.
        called: what an error calls the image.

    Returns:
        float32, (X, Y, Z).

    Raises:
        InputError: too few voxels are positive, or N4 failed.
    """
    import SimpleITK

    positive = mask & (image > 0)
    if positive.sum() < SMALLEST_POSITIVE_SHARE * mask.sum():
        raise InputError(
            "N4 needs positive intensities",
            where=called,
            found=f"{int(positive.sum())} of {int(mask.sum())} foreground voxels",
            todo="pass --no-n4 where the intensities were normalised before",
        )
    whole, inside = (_as_image(array, spacing_mm) for array in (image, positive.astype(np.uint8)))
    small, small_inside = (SimpleITK.Shrink(item, factors[::-1]) for item in (whole, inside))
    counted = int(SimpleITK.GetArrayViewFromImage(small_inside).sum())
    if counted < FEWEST_VOXELS:
        wanted = f"{FEWEST_VOXELS} foreground voxels on the shrunken grid"
        raise InputError("too little foreground for N4", where=called, wanted=wanted, found=counted, todo="shrink less, or pass --no-n4")
    corrector = SimpleITK.N4BiasFieldCorrectionImageFilter()
    try:
        corrector.Execute(small, small_inside)
        field = SimpleITK.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(whole))
    except RuntimeError as error:
        raise InputError("N4 failed", where=called, found=str(error).strip().splitlines()[-1].strip()) from error
    if not np.isfinite(field).all():
        raise InputError("N4 failed", where=called, found="a field that is not finite", todo="pass --no-n4")
    return np.asarray(field, dtype=np.float32)


def _as_image(array: Array, spacing_mm: tuple[float, float, float]) -> object:
    """An image whose axes are those of the array in reverse, as SimpleITK has them."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[::-1])
    return image
