"""A folder of real label maps in FreeSurfer ids: each subject is one of them, moved, deformed and half of the time mirrored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from mergekit3d.datasets.phantom.deformation import Deformation, draw_deformation
from mergekit3d.datasets.phantom.fields import FIELD_MM, REACH_MM, Array, Axes, View, bounding_box, largest_part, view_of
from mergekit3d.datasets.phantom.tissues import LARGEST_ID, SWAPPED_SIDES, TISSUES
from mergekit3d.errors import InputError, ProblemCollector
from mergekit3d.volumes.nifti import SUFFIXES, read_labels

CSF = 24
CSF_REACH_MM = 12.0  # CSF farther than this from brain tissue is in the neck or around the eyes
FINEST_MM = 1.0
COARSE_MM = 4.0
KEPT_MAPS = 16  # some 12 MB each


@dataclass(frozen=True, eq=False)
class _Map:
    """A label map and the way from its centre, in mm, to its voxels.

    Args:
        labels: (X, Y, Z) int16, background outside the brain.
        to_voxels: (3, 3) float32, from mm.
        centre: (3,) float32, the voxel indices of the origin.
    """

    labels: Array
    to_voxels: Array
    centre: Array


class LabelMaps:
    """The label maps of a folder, in the order of their names; the first few are kept in memory.

    Args:
        folder: holds .nii or .nii.gz files in FreeSurfer ids; ids outside the brain count as background.

    Raises:
        InputError: there is no such folder, it cannot be read, or it holds none.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError("not a folder of label maps" if folder.exists() else "no such folder", where=folder)
        try:
            self._paths = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES) and not path.name.startswith("."))
        except OSError as error:
            raise InputError("cannot read the folder of label maps", where=folder, found=(error.strerror or "an error").lower()) from error
        if not self._paths:
            raise InputError("no label maps in the folder", where=folder, wanted="files that end in .nii or .nii.gz")
        self._kept: dict[int, _Map] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def pick(self, generator: np.random.Generator, index: int) -> int:
        """Which map subject `index` is made from: every run of as many subjects as there are maps takes each of them once.

        Args:
            generator: the source of randomness of that run.
            index: of the subject.
        """
        return int(generator.permutation(len(self))[index % len(self)])

    def check(self, picks: Iterable[int]) -> None:
        """Read maps before any work.

        Raises:
            MergeKit3DError: some are damaged or hold no brain; all of them are told.
        """
        problems = ProblemCollector()
        for pick in sorted(picks):
            try:
                self._map(pick)
            except InputError as problem:
                problems.add(problem)
        problems.raise_if_any()

    def draw(self, generator: np.random.Generator, pick: int, spacing_mm: float) -> tuple[Array, View]:
        """Draw one subject from a map; a head that is longer than the field of view is made to fit.

        Args:
            generator: the source of randomness.
            pick: number of the map, from 0.
            spacing_mm: edge of an image voxel.

        Returns:
            (X, Y, Z) int16 of FreeSurfer ids on the fine voxels, and the view that they are of.

        Raises:
            InputError: the file is damaged, or holds no brain.
        """
        source = self._map(pick)
        deformation, mirrored = draw_deformation(
            generator, rotation_deg=2.0, scale=0.02, displacements_mm=((1.2, 45.0), (0.5, 18.0)), flip=True
        )
        low, high = _extent(source, deformation)
        if (high - low).max() > FIELD_MM - COARSE_MM:
            shrunk = np.float32((high - low).max() / (FIELD_MM - 2 * COARSE_MM))
            deformation = replace(deformation, linear=deformation.linear * shrunk)
            low, high = _extent(source, deformation)
        view = view_of(spacing_mm, finest_mm=FINEST_MM)
        axes = [axis + np.float32(middle) for axis, middle in zip(view.fine_axes(), (low + high) / 2, strict=True)]
        low, high = low - COARSE_MM, high + COARSE_MM
        x, y, z = (slice(*np.searchsorted(axis, (least, most))) for axis, least, most in zip(axes, low, high, strict=True))
        labels = np.zeros([len(axis) for axis in axes], dtype=np.int16)
        labels[x, y, z] = _sample(source, deformation, (axes[0][x], axes[1][y], axes[2][z]))
        return (SWAPPED_SIDES[labels] if mirrored else labels), view

    def _map(self, pick: int) -> _Map:
        kept = self._kept.get(pick)
        if kept is None:
            kept = _brain(self._paths[pick])
            if len(self._kept) < KEPT_MAPS:
                self._kept[pick] = kept
        return kept


def _brain(path: Path) -> _Map:
    """The brain and the CSF around it; everything else is background."""
    volume = read_labels(path)
    table = np.zeros(max(LARGEST_ID, int(volume.data.max())) + 1, dtype=np.int16)
    table[list(TISSUES)] = list(TISSUES)
    labels = table[volume.data]
    tissue = (labels != 0) & (labels != CSF)
    if not tissue.any():
        raise InputError(
            "no brain in the label map", where=path, wanted="FreeSurfer ids such as 2, 3, 41, 42", found=_some_ids(volume.data)
        )
    reach = [int(np.ceil(CSF_REACH_MM / edge)) for edge in volume.spacing_mm]
    box = tuple(
        slice(max(0, extent.start - margin), extent.stop + margin) for extent, margin in zip(bounding_box(tissue), reach, strict=True)
    )
    labels, tissue = labels[box], tissue[box]
    near = ndimage.maximum_filter(tissue.astype(np.uint8), size=[2 * margin + 1 for margin in reach])
    labels[near == 0] = 0
    labels[~largest_part(labels > 0)] = 0
    centre = np.array(tissue.shape, dtype=np.float32) / 2
    to_voxels = np.linalg.inv(volume.affine[:3, :3]).astype(np.float32)
    return _Map(labels, to_voxels, centre)


def _extent(source: _Map, deformation: Deformation) -> tuple[Array, Array]:
    """Lowest and highest coordinates of the deformed brain along x, y, z in mm, to some millimetres."""
    coarse = np.arange(-REACH_MM, REACH_MM + 1, COARSE_MM, dtype=np.float32)
    found = bounding_box(_sample(source, deformation, (coarse, coarse, coarse)) > 0)
    return np.array([coarse[extent.start] for extent in found]), np.array([coarse[extent.stop - 1] for extent in found])


def _sample(source: _Map, deformation: Deformation, axes: Axes) -> Array:
    """The label nearest to where each point of a grid comes from; 0 beyond the map."""
    places = deformation.sources(axes)
    index = np.zeros(places[0].shape, dtype=np.int32)
    known = np.ones(places[0].shape, dtype=bool)
    for row, size in enumerate(source.labels.shape):
        position = source.centre[row] + sum(source.to_voxels[row, column] * places[column] for column in range(3))
        voxel = np.rint(position).astype(np.int32)
        known &= (voxel >= 0) & (voxel < size)
        index = index * size + np.clip(voxel, 0, size - 1)
    return np.where(known, source.labels.ravel()[index], np.int16(0))


def _some_ids(data: Array) -> str:
    ids = [str(label) for label in np.unique(data)]
    return f"only {', '.join(ids[:6])}{' and others' if len(ids) > 6 else ''}"
