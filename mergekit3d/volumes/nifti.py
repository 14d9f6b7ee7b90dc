"""NIfTI files: read with every check that nibabel leaves out, written with a fresh header.

nibabel parses the header; the bytes are read here, because nibabel neither checks a gzip stream to its end (450 of 600 bit flips
changed voxels silently) nor caps what a header may ask for. Header extensions are skipped: they can carry patient identifiers.
"""

from __future__ import annotations

import gzip
import math
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np

from mergekit3d.errors import InputError, UsageError
from mergekit3d.storage.atomic import atomic_open
from mergekit3d.storage.steady import Stamp, refuse_changed
from mergekit3d.volumes.header import checked_affine, checked_shape, read_header, unreadable
from mergekit3d.volumes.orientation import Array, Shape, canonical_grid, from_canonical, spacing_of, to_canonical

SUFFIXES = (".nii.gz", ".nii")
LARGEST_LABEL = 2**15 - 1
MAX_DATA_OFFSET = 2**26
MAX_TRAILING_BYTES = 2**20
GZIP_LEVEL = 3
LABEL_TOLERANCE = 1e-6  # relative; only scaled files need it


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an array lie, in the axis order of the file.

    Args:
        shape: voxels along each axis.
        affine: (4, 4) float64, voxel indices to RAS+ mm.
    """

    shape: Shape
    affine: Array

    def canonical(self) -> Grid:
        """The same voxels in RAS+ axis order."""
        return Grid(*canonical_grid(self.shape, self.affine))


@dataclass(frozen=True)
class Channel:
    """One of the volumes of a 4D file.

    Args:
        index: along the fourth axis, from 0.
        count: volumes that the file must hold.
    """

    index: int
    count: int


ONLY = Channel(0, 1)
"""What a 3D file holds."""


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D array in RAS+ axis order.

    Args:
        data: (X, Y, Z).
        affine: (4, 4) float64, voxel indices of `data` to RAS+ mm.
        native: the grid of the file that it came from.
    """

    data: Array
    affine: Array
    native: Grid

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edge lengths along the axes of `data`."""
        return spacing_of(self.affine)


def read_image(path: Path | str, *, channel: Channel = ONLY, called: str | None = None) -> Volume:
    """Read one 3D image.

    Args:
        path: the file.
        channel: which of its volumes, where it is a 4D file.
        called: what errors call the image, as a path may hold a patient's name; left out: the path.

    Returns:
        The volume, its data float32.

    Raises:
        InputError: the file is missing, damaged or no 3D NIfTI; its geometry is singular or contradictory; it holds NaN or Inf.
    """
    return read_channels(path, [channel.index], channel.count, called=None if called is None else [called])[0]


def read_channels(path: Path | str, indices: Sequence[int], count: int, *, called: Sequence[str] | None = None) -> list[Volume]:
    """Read several volumes of a 4D file in one pass; the others are skipped, or unpacked one by one and forgotten.

    Args:
        path: the file.
        indices: of the volumes wanted.
        count: volumes that the file must hold.
        called: what an error calls each of them; left out: the path.

    Returns:
        The volumes in the order of `indices`, their data float32, on one grid.

    Raises:
        InputError: as `read_image`; the file holds another number of volumes.
    """
    names = dict(zip(indices, called or [str(path)] * len(indices), strict=True))
    found = {}
    with _told_as(path, None if called is None else called[0]):
        for index, stored, grid in _read(path, indices, count):
            with np.errstate(over="ignore", invalid="ignore"):
                data = stored.astype(np.float32)
            _refuse_not_finite(data, names[index])
            found[index] = Volume(*to_canonical(data, grid.affine), native=grid)
    return [found[index] for index in indices]


@contextmanager
def _told_as(path: Path | str, called: str | None) -> Iterator[None]:
    """Let errors about a file call it otherwise than by its path."""
    try:
        yield
    except InputError as error:
        if called is None or error.where != str(path):
            raise
        found = None if error.found is None else error.found.replace(str(path), "the file")
        raise InputError(error.failed, where=called, wanted=error.wanted, found=found, todo=error.todo) from error


def read_labels(path: Path | str, *, called: str | None = None) -> Volume:
    """Read one 3D label map.

    Args:
        path: the file.
        called: as in `read_image`.

    Returns:
        The volume, its data int32 in 0 to 32767.

    Raises:
        InputError: as `read_image`; a label is not integral, negative or too large.
    """
    with _told_as(path, called):
        return _labels(path, called)


def _labels(path: Path | str, called: str | None) -> Volume:
    ((_, stored, grid),) = _read(path, [0], 1)
    if stored.dtype.kind == "f":
        _refuse_not_finite(stored, path if called is None else called)
        rounded = np.rint(stored)
        uneven = np.abs(stored - rounded) > LABEL_TOLERANCE * np.maximum(1, np.abs(stored))
        if uneven.any():
            example = stored[uneven].flat[0]
            raise unreadable(path, wanted="whole numbers as labels", found=f"{int(uneven.sum())} voxels with others, such as {example:g}")
        stored = rounded
    lowest, highest = stored.min(), stored.max()
    if lowest < 0 or highest > LARGEST_LABEL:
        culprit = lowest if lowest < 0 else highest
        raise unreadable(path, wanted=f"labels from 0 to {LARGEST_LABEL}", found=f"label {culprit:g}")
    return Volume(*to_canonical(stored.astype(np.int32), grid.affine), native=grid)


def read_grid(path: Path | str, *, channel: Channel = ONLY) -> Grid:
    """Read only where the voxels lie; the data are not checked.

    Args:
        path: the file.
        channel: as in `read_image`.

    Raises:
        InputError: the header is damaged, or its geometry is singular or contradictory.
    """
    size = _regular_file(path).size
    try:
        with _open(path) as stream:
            header = read_header(stream, path)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    return Grid(checked_shape(header, path, file_size=size, volumes=channel.count), checked_affine(header, path))


def write_volume(path: Path | str, data: Array, *, native: Grid) -> None:
    """Write an array back into the axis order of the file that it came from, atomically.

    The header is fresh: affine, voxel sizes and units, nothing of the source's. Whole numbers take the smallest type that holds
    them (uint8, int16, int32), others become float32. The same content always gives the same bytes.

    Args:
        path: ends in .nii or .nii.gz.
        data: (X, Y, Z) or (X, Y, Z, C), on the canonical grid of `native`.
        native: the grid to write on.

    Raises:
        UsageError: another suffix.
        OutputError: the file system refused.
    """
    import nibabel

    name = Path(path).name
    if not name.endswith(SUFFIXES):
        raise UsageError("cannot write a volume", where=path, wanted="a name that ends in .nii or .nii.gz")
    if data.shape[:3] != native.canonical().shape:
        raise ValueError(f"data of shape {data.shape} do not lie on the grid of shape {native.canonical().shape}")
    image = nibabel.Nifti1Image(from_canonical(_storable(data), native.affine), native.affine)
    image.set_sform(native.affine, code=1)
    image.set_qform(native.affine, code=1)
    if not np.allclose(image.get_qform(), native.affine, atol=1e-3 * min(spacing_of(native.affine))):
        image.set_qform(None, code=0)  # a qform cannot hold shears
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    with atomic_open(path) as file:
        if name.endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0) as packed:
                packed.write(content)
        else:
            file.write(content)


def _storable(data: Array) -> Array:
    if data.dtype.kind == "b":
        return data.astype(np.uint8)
    if data.dtype.kind in "iu":
        for dtype in (np.uint8, np.int16, np.int32):
            limits = np.iinfo(dtype)
            if data.size == 0 or (data.min() >= limits.min and data.max() <= limits.max):
                return data.astype(dtype)
        raise ValueError("labels beyond 32 bits cannot be written")
    return data.astype(np.float32)


def _read(path: Path | str, indices: Sequence[int], count: int) -> Iterator[tuple[int, Array, Grid]]:
    """Index, stored array, scaled, in the axis order of the file, and grid of each volume wanted, in the order of the file."""
    before = _regular_file(path)
    file_size = before.size
    try:
        with _open(path) as stream:
            header = read_header(stream, path)
            shape = checked_shape(header, path, file_size=file_size, volumes=count)
            grid = Grid(shape, checked_affine(header, path))
            _skip_to_voxels(stream, header, path)
            size = math.prod(shape) * header.get_data_dtype().itemsize
            if not isinstance(stream, gzip.GzipFile) and file_size < float(header["vox_offset"]) + size * count:
                raise EOFError
            for index in range(count):
                content = _read_volume(stream, size, wanted=index in indices)
                if content is not None:
                    stored = np.frombuffer(content, dtype=header.get_data_dtype()).reshape(shape, order="F")
                    yield index, _scaled(stored, header, path), grid
            if len(stream.read(MAX_TRAILING_BYTES + 1)) > MAX_TRAILING_BYTES:  # the end, where a gzip file's checksum is checked
                raise unreadable(path, wanted=f"{size * count} bytes of voxels", found="many more")
            refuse_changed(before, stream.fileno(), path)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error


def _regular_file(path: Path | str) -> Stamp:
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise InputError("no such file" if missing else "cannot read the volume", where=path, found=None if missing else error) from error
    if not stat.S_ISREG(status.st_mode):
        raise unreadable(path, wanted="a regular file", found="a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device")
    if status.st_size == 0:
        raise unreadable(path, found="an empty file")
    return Stamp.from_status(status)


def _open(path: Path | str) -> BinaryIO:
    """The uncompressed stream; the first bytes tell a gzip file, not the name."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else open(path, "rb")


def _skip_to_voxels(stream: IO[bytes], header: Any, path: Path | str) -> None:
    offset, start = float(header["vox_offset"]), int(header["sizeof_hdr"])
    if not start <= offset <= MAX_DATA_OFFSET:
        raise unreadable(path, wanted=f"voxels that start at byte {start} to {MAX_DATA_OFFSET}", found=f"byte {offset:g} in the header")
    gap = int(offset) - start
    if len(stream.read(gap)) < gap:
        raise EOFError


def _read_volume(stream: IO[bytes], size: int, *, wanted: bool) -> bytes | None:
    """The bytes of the next volume; None where it is not wanted: it is unpacked nevertheless, so that its checksum is checked."""
    if not wanted and not isinstance(stream, gzip.GzipFile):
        stream.seek(size, os.SEEK_CUR)
        return None
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content if wanted else None


def _scaled(stored: Array, header: Any, path: Path | str) -> Array:
    try:
        slope, intercept = header.get_slope_inter()  # a slope of NaN is nibabel's own way to say that there is none
        if np.isinf(header["scl_slope"]):
            raise ValueError
    except Exception as error:  # nibabel raises several kinds
        raise unreadable(path, wanted="a finite intensity scale", found="NaN or Inf") from error
    if slope is None or (slope == 1 and not intercept):
        return stored
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(stored.astype(np.float64) * slope + (intercept or 0.0))


def _refuse_not_finite(data: Array, where: Path | str) -> None:
    count = data.size - int(np.isfinite(data).sum())
    if count:
        raise unreadable(where, wanted="finite voxels", found=f"{count} of {data.size} are NaN, Inf or beyond float32")


def _damaged(path: Path | str, error: Exception) -> InputError:
    if isinstance(error, EOFError):
        return unreadable(path, wanted="a whole file", found="one that ends early", todo="copy or download it again")
    if isinstance(error, gzip.BadGzipFile | zlib.error):
        return unreadable(path, wanted="a sound gzip stream", found=str(error).lower(), todo="copy or download it again")
    reason = error.strerror if isinstance(error, OSError) else None
    return unreadable(path, found=(reason or type(error).__name__).lower())
