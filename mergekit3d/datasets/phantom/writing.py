"""The folders that phantoms are written into: real layouts, and the orientations that such files have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mergekit3d.datasets.phantom.anatomy import CENTRE_MM
from mergekit3d.datasets.phantom.fields import Array, View
from mergekit3d.errors import UsageError
from mergekit3d.registry import Registry
from mergekit3d.volumes.nifti import Grid, write_volume

FIRST_HCP_ID, LAST_HCP_ID = 100001, 999999
ORIGIN_JITTER_MM = 6.0


@dataclass(frozen=True)
class Layout:
    """Where the files of a subject lie.

    Args:
        images: file of each modality below the folder of a subject; {name} is the folder's name.
        label: the same of the label map.
        orientations: axis codes that files of this layout are stored in, each listed as often as it is likely.
        tumours: whether its subjects have tumours, and labels of tumours rather than of anatomy.
        folder: folder of a subject below the root, from (seed, index, grade).
    """

    images: Mapping[str, str]
    label: str
    orientations: tuple[str, ...]
    tumours: bool
    folder: Callable[[int, int, str | None], str]


LAYOUTS: Registry[Layout] = Registry("phantom layout")


def _hcp_folder(seed: int, index: int, grade: str | None) -> str:
    del seed, grade
    if FIRST_HCP_ID + index > LAST_HCP_ID:
        raise UsageError("too many subjects for six-digit ids", wanted=f"at most {LAST_HCP_ID - FIRST_HCP_ID + 1}", found=index + 1)
    return str(FIRST_HCP_ID + index)


def _brats_folder(seed: int, index: int, grade: str | None) -> str:
    # The seed is part of the name because the grade depends on it: one name is never in both folders.
    return f"{grade}/Brats18_S{seed}_{index + 1:04d}_1"


LAYOUTS.register("hcp")(
    Layout(
        images={"t1": "T1w/T1w_acpc_dc_restore.nii.gz", "t2": "T1w/T2w_acpc_dc_restore.nii.gz"},
        label="T1w/aparc+aseg.nii.gz",
        orientations=("LAS", "LAS", "RAS", "LIA"),
        tumours=False,
        folder=_hcp_folder,
    )
)
LAYOUTS.register("brats")(
    Layout(
        images={modality: f"{{name}}_{modality}.nii.gz" for modality in ("t1", "t1ce", "t2", "flair")},
        label="{name}_seg.nii.gz",
        orientations=("LPS", "LPS", "LAS", "RAS"),
        tumours=True,
        folder=_brats_folder,
    )
)


def draw_grid(generator: np.random.Generator, layout: Layout, view: View) -> tuple[Grid, str]:
    """Draw how the files of one subject are stored.

    Args:
        generator: the source of randomness.
        layout: whose orientations to draw from.
        view: the image voxels.

    Returns:
        The grid in the axis order of the files, and its axis codes.
    """
    codes = layout.orientations[int(generator.integers(len(layout.orientations)))]
    centre = np.array(CENTRE_MM) + np.round(generator.uniform(-ORIGIN_JITTER_MM, ORIGIN_JITTER_MM, 3), 1)
    stored, affine = [0, 0, 0], np.zeros((4, 4))
    affine[:3, 3], affine[3, 3] = centre, 1
    for axis, code in enumerate(codes):
        pair = next(pair for pair in ("LR", "PA", "IS") if code in pair)
        row, sign = ("LR", "PA", "IS").index(pair), 2 * pair.index(code) - 1
        stored[axis] = view.shape[row]
        affine[row, axis] = sign * view.spacing_mm
        affine[row, 3] -= sign * view.spacing_mm * (stored[axis] - 1) / 2
    return Grid((stored[0], stored[1], stored[2]), affine), codes


def write_subject(folder: Path, layout: Layout, grid: Grid, images: Mapping[str, Array], label: Array) -> None:
    """Write the files of one subject, the label last.

    Args:
        folder: of the subject.
        layout: names the files.
        grid: the axis order to store them in.
        images: (X, Y, Z) by modality, RAS+.
        label: (X, Y, Z) integers, RAS+.

    Raises:
        OutputError: the file system refused.
    """
    for modality, image in images.items():
        write_volume(folder / layout.images[modality].format(name=folder.name), image, native=grid)
    write_volume(folder / layout.label.format(name=folder.name), label, native=grid)
