"""NIfTI headers: parsed by nibabel, then checked for what nibabel loads without a word."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any

import numpy as np

from mergekit3d.errors import InputError
from mergekit3d.volumes.orientation import Array, Shape, spacing_of

MAX_VOXELS = 2**30
LARGEST_DEFLATE_RATIO = 1032  # zlib's own limit: a header that asks for more than the file can hold is a lie
GEOMETRY_TOLERANCE = 0.5  # of the smallest voxel edge, between the corners of qform and sform
FARTHEST_MM = 1e6
SMALLEST_EDGE_MM = 1e-6
TEMPLATE_CODES = (3, 4, 5)  # Talairach, MNI, another template


def read_header(stream: IO[bytes], path: Path | str) -> Any:
    """The NIfTI-1 or NIfTI-2 header at the start of a stream, as nibabel's object; nothing in it is checked yet.

    Raises:
        InputError: no header of a single-file NIfTI stands there.
    """
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    block = stream.read(348)
    size = block[:4]
    if size in ((540).to_bytes(4, "little"), (540).to_bytes(4, "big")):
        block += stream.read(540 - 348)
    header_class: Any = Nifti2Header if len(block) == 540 else Nifti1Header
    magic = b"n+2" if len(block) == 540 else b"n+1"
    if len(block) not in (348, 540) or size not in [len(block).to_bytes(4, order) for order in ("little", "big")]:
        raise unreadable(path, wanted="a NIfTI file (.nii or .nii.gz)", found="other content")
    header = header_class(block, check=False)
    if bytes(header["magic"].item())[:3] != magic:
        raise unreadable(path, wanted="header and voxels in one NIfTI file (.nii or .nii.gz)", found="another kind of header")
    return header


def checked_shape(header: Any, path: Path | str, *, file_size: int, volumes: int = 1) -> Shape:
    """Voxels along the three axes of space; the voxel type is checked too, and both against what the file can hold.

    Args:
        header: of the file.
        path: the file, for the error.
        file_size: its bytes.
        volumes: how many it must hold, along its fourth axis.

    Raises:
        InputError: not that many 3D volumes of real numbers, or more than the file can hold.
    """
    dimensions = [int(size) for size in header["dim"]]
    if not 3 <= dimensions[0] <= 7 or min(dimensions[1 : dimensions[0] + 1]) < 1:
        raise unreadable(path, wanted="three axes", found=f"header sizes {dimensions[: max(1, min(dimensions[0], 7) + 1)]}")
    shape, rest = dimensions[1:4], dimensions[4 : dimensions[0] + 1]
    if math.prod(rest) != volumes:
        found = "x".join(map(str, shape + rest))
        if volumes > 1:
            raise unreadable(path, wanted=f"{volumes} volumes, one a modality", found=found, todo="correct the modalities of the data set")
        raise unreadable(path, wanted="one 3D volume", found=found, todo="split it into one file a volume")
    voxels = shape[0] * shape[1] * shape[2]
    if voxels > MAX_VOXELS:
        raise unreadable(path, wanted=f"at most {MAX_VOXELS} voxels", found=f"{voxels} in the header")
    try:
        dtype = header.get_data_dtype()
    except Exception as error:  # nibabel raises several kinds
        raise unreadable(path, wanted="a known voxel type", found=f"code {int(header['datatype'])}") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise unreadable(path, wanted="real numbers of at most 64 bits", found=f"voxels of type {dtype}")
    size = voxels * dtype.itemsize * volumes
    if size > file_size * LARGEST_DEFLATE_RATIO:
        raise unreadable(path, wanted=f"{size} bytes of voxels", found="a file too short for them")
    return shape[0], shape[1], shape[2]


def checked_affine(header: Any, path: Path | str) -> Array:
    """The affine by nibabel's rule: sform, else qform, else the voxel sizes.

    A qform and an sform that contradict each other are refused, because other tools would take the other one; only an sform to a
    template space may differ from the qform, as the standard means it.

    Returns:
        (4, 4) float64, voxel indices to RAS+ mm.

    Raises:
        InputError: the affine is not finite, singular or contradictory.
    """
    qform_code, sform_code = int(header["qform_code"]), int(header["sform_code"])
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        qform = np.asarray(header.get_qform(), dtype=np.float64) if qform_code > 0 else affine
    except Exception as error:  # nibabel raises several kinds
        raise unreadable(path, wanted="an affine", found=error) from error
    if not np.isfinite(affine).all():
        raise unreadable(path, wanted="a finite affine", found="NaN or Inf in it")
    if np.abs(affine).max() > FARTHEST_MM:
        raise unreadable(path, wanted=f"an affine in mm of at most {FARTHEST_MM:g}", found=f"{np.abs(affine).max():g} in it")
    edges = np.asarray(spacing_of(affine))
    if edges.min() < SMALLEST_EDGE_MM or abs(np.linalg.det(affine[:3, :3] / edges)) < 1e-3:
        raise unreadable(path, wanted="an affine with three independent axes", found="a singular one")
    two_spaces = sform_code in TEMPLATE_CODES and qform_code != sform_code  # scanner and template, as the standard means it
    if qform_code > 0 and sform_code > 0 and not two_spaces:
        corners = np.stack(np.meshgrid(*[(0, int(size) - 1) for size in header["dim"][1:4]], [1], indexing="ij")).reshape(4, -1)
        with np.errstate(over="ignore", invalid="ignore"):  # a NaN or Inf in the qform is refused below
            distance = float(np.sqrt((((affine - qform) @ corners)[:3] ** 2).sum(axis=0)).max())
        if not distance <= GEOMETRY_TOLERANCE * edges.min():
            raise unreadable(
                path,
                wanted="qform and sform that agree",
                found=f"corners {distance:.3g} mm apart",
                todo="correct the wrong one, or set its code to 0",
            )
    return affine


def unreadable(path: Path | str, *, found: object, wanted: object = None, todo: str | None = None) -> InputError:
    """The error of a file that cannot be taken as a volume."""
    return InputError("cannot read the volume", where=path, wanted=wanted, found=found, todo=todo)
