"""From a subject's files to what a network takes, and from its output back to the subject's own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit3d.datasets.labels import encode
from mergekit3d.datasets.reading import read_subject
from mergekit3d.datasets.subject import Subject
from mergekit3d.datasets.vocabulary import Vocabulary
from mergekit3d.errors import InputError
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.volumes.nifti import Grid, Volume, read_labels
from mergekit3d.volumes.normalise import NORMALISATIONS, WHOLE_IMAGE, foreground_mask
from mergekit3d.volumes.orientation import Shape
from mergekit3d.volumes.resample import has_spacing, onto_grid, same_grid, spaced_grid, within_view

if TYPE_CHECKING:
    from mergekit3d.checkpoints.metadata import TaskSpec

Array = np.ndarray[Any, Any]

MARGIN = 2
PREPARATION = 1
"""Counted up when the same files would give other arrays: what is stored of earlier ones is not used any more."""


@dataclass(frozen=True)
class Box:
    """A block of voxels: first index, and the one after the last, along each axis."""

    start: Shape
    stop: Shape

    @property
    def shape(self) -> Shape:
        """Voxels along each axis."""
        x, y, z = (stop - start for start, stop in zip(self.start, self.stop, strict=True))
        return x, y, z

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The block as an index."""
        x, y, z = (slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))
        return x, y, z


@dataclass(frozen=True, eq=False)
class Prepared:
    """One subject, ready for a network.

    Args:
        number: of the subject, from 1.
        image: (M, X, Y, Z) float32, modalities in the task's order, cropped to the foreground and normalised.
        target: uint8, (C, X, Y, Z) for regions or (X, Y, Z) for exclusive classes; None: not asked for.
        affine: (4, 4), voxel indices of `image` to RAS+ mm.
        box: the crop, on the native grid in RAS+ axis order.
        native: the grid of the file that results are written on.
    """

    number: int
    image: Array
    target: Array | None
    affine: Array
    box: Box
    native: Grid

    @property
    def size_bytes(self) -> int:
        """Memory that image and target take."""
        return int(self.image.nbytes + (0 if self.target is None else self.target.nbytes))


def prepare(
    subject: Subject,
    number: int,
    task: TaskSpec,
    *,
    vocabulary: Vocabulary,
    with_target: bool = True,
    reporter: Reporter = SILENT,
) -> Prepared:
    """Read, bring onto one grid, crop, resample and normalise a subject.

    The grid is the label map's, else the first modality's. Modalities on another grid are resampled to it (and `reporter` told);
    a label map never is.

    Args:
        subject: its files; every modality of `task` among them.
        number: of the subject, from 1.
        task: modalities, outputs, normalisation and spacing.
        vocabulary: ids that the label map may hold.
        with_target: whether to read the label map; the subject must have one then.
        reporter: is told of resampling.

    Raises:
        InputError: a file is unreadable, or not finite (by the subject's number), label map and images lie on different grids, a label is
            unknown, or an image is constant.
        RecipeError: an output asks for a label that the vocabulary lacks.
    """
    volumes = read_subject(subject, task.modalities, lambda modality: f"subject {number}, {modality}")
    labels = subject_labels(subject, task.outputs, vocabulary, called=f"subject {number}") if with_target else None
    reference = next(iter(volumes.values())) if labels is None else _of_labels(labels, volumes, number)
    images = np.stack([_on_reference(volume, reference, modality, number, reporter) for modality, volume in volumes.items()])
    whole = WHOLE_IMAGE.get(task.normalisation)
    mask = foreground_mask(images) if whole is None else np.asarray((images != 0).any(axis=0))
    if not mask.any():
        raise InputError("the images are empty", where=f"subject {number}", wanted="foreground", found="one value everywhere")
    box = bounding_box(mask, MARGIN if whole is None else 0)
    images, mask = images[:, *box.slices], mask[box.slices]
    affine = cropped_affine(reference.affine, box)
    cropped = None if labels is None else labels.data[box.slices]
    if whole is not None:
        # As nnU-Net does: before the voxels change, over all of the box.
        for image, modality in zip(images, task.modalities, strict=True):
            _refuse_constant(image, modality, f"subject {number}, {modality}")
            image[...] = whole(image)
    if task.spacing_mm is not None and not has_spacing(affine, task.spacing_mm):
        shape, target_affine = spaced_grid(box.shape, affine, task.spacing_mm)
        images = np.stack([within_view(image, affine, shape, target_affine, order=1) for image in images])
        mask = within_view(mask.astype(np.uint8), affine, shape, target_affine, order=0).astype(bool)
        cropped = None if cropped is None else within_view(cropped, affine, shape, target_affine, order=0)
        affine = target_affine
    for image, modality in zip(images, task.modalities, strict=True) if whole is None else ():
        image[...] = _normalised(image, mask, task.normalisation, modality, f"subject {number}, {modality}")
    target = None if cropped is None else encode(cropped, task)
    return Prepared(number, np.ascontiguousarray(images), target, affine, box, reference.native)


def subject_labels(subject: Subject, outputs: Mapping[str, Sequence[int]], vocabulary: Vocabulary, *, called: str | None = None) -> Volume:
    """The label map of a subject, its ids checked against the vocabulary and merged as it says.

    Args:
        subject: with a label map.
        outputs: region or class name -> ids, which may call for the wider vocabulary.
        vocabulary: ids that may occur.
        called: what an error calls the subject; left out: by its number.

    Raises:
        InputError: no label map, an unreadable one, or unknown ids in it.
        RecipeError: an output asks for an id that the vocabulary lacks.
    """
    allowed = vocabulary.for_outputs(outputs)
    if subject.label is None:
        raise InputError("a subject has no label map", where=called or subject.called)
    volume = read_labels(subject.label, called=f"{called or subject.called}, labels")
    allowed.check(volume.data, called or subject.called)
    return Volume(allowed.merge(volume.data), volume.affine, volume.native)


def restore(values: Array, prepared: Prepared, *, order: int = 1) -> Array:
    """Bring a network's output back onto the whole native grid, in RAS+ axis order; 0 outside of the crop.

    Args:
        values: (C, X, Y, Z) or (X, Y, Z), on the grid of `prepared.image`.
        prepared: the subject.
        order: 1 linear (probabilities), 0 nearest (labels); matters only where the subject was resampled.

    Returns:
        The values, (C, X', Y', Z') or (X', Y', Z'), of the same dtype.
    """
    return pasted(native_crop(values, prepared, order=order), prepared)


def native_crop(values: Array, prepared: Prepared, *, order: int = 1) -> Array:
    """The first half of `restore`: onto the voxels of the native grid, still cropped to the box.

    Args and returns as `restore`; X', Y', Z' are those of the box.
    """
    if values.shape[-3:] != prepared.image.shape[1:]:
        raise ValueError(f"values of shape {values.shape} do not lie on the grid of shape {prepared.image.shape[1:]}")
    shape, affine = prepared.box.shape, cropped_affine(prepared.native.canonical().affine, prepared.box)
    if same_grid(shape, affine, values.shape[-3:], prepared.affine):
        return values
    channels = values.reshape(-1, *values.shape[-3:])
    resampled = np.empty((len(channels), *shape), dtype=values.dtype)
    for target, channel in zip(resampled, channels, strict=True):
        target[...] = within_view(channel, prepared.affine, shape, affine, order=order)
    return resampled.reshape(*values.shape[:-3], *shape)


def pasted(values: Array, prepared: Prepared) -> Array:
    """The second half of `restore`: values on the crop's native voxels in their place on the whole grid, 0 elsewhere.

    Decoding between the two halves needs a fraction of the memory: labels are pasted in place of all probabilities.
    """
    result = np.zeros((*values.shape[:-3], *prepared.native.canonical().shape), dtype=values.dtype)
    result[..., *prepared.box.slices] = values
    return result


def _of_labels(labels: Volume, volumes: Mapping[str, Volume], number: int) -> Volume:
    """The volume that shares the label map's grid."""
    for volume in volumes.values():
        if same_grid(volume.data.shape, volume.affine, labels.data.shape, labels.affine):
            return volume
    first = next(iter(volumes.values()))
    raise InputError(
        "label map and images lie on different grids",
        where=f"subject {number}",
        wanted=_described(first),
        found=_described(labels),
        todo="resample the label map onto an image's grid",
    )


def _described(volume: Volume) -> str:
    spacing = " x ".join(f"{edge:.4g}" for edge in volume.spacing_mm)
    origin = ", ".join(f"{position:.4g}" for position in volume.affine[:3, 3])
    return f"{' x '.join(map(str, volume.data.shape))} voxels of {spacing} mm from ({origin})"


def _on_reference(volume: Volume, reference: Volume, modality: str, number: int, reporter: Reporter) -> Array:
    if same_grid(volume.data.shape, volume.affine, reference.data.shape, reference.affine):
        return volume.data
    reporter.info(f"subject {number}: {modality} resampled from {_described(volume)} to {_described(reference)}")
    return onto_grid(volume.data, volume.affine, reference.data.shape, reference.affine, order=1)


def bounding_box(mask: Array, margin: int) -> Box:
    """The block that holds every voxel of a mask, (X, Y, Z), which is not empty, and `margin` more on each side."""
    start, stop = [], []
    for axis in range(3):
        present = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        start.append(max(0, int(present[0]) - margin))
        stop.append(min(mask.shape[axis], int(present[-1]) + 1 + margin))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def cropped_affine(affine: Array, box: Box) -> Array:
    """The affine, (4, 4), of the voxels in a box, so that they stay where they are."""
    cropped = affine.copy()
    cropped[:3, 3] = affine[:3, :3] @ np.asarray(box.start) + affine[:3, 3]
    return cropped


def _normalised(image: Array, mask: Array, normalisation: str, modality: str, called: str) -> Array:
    """Statistics come from the foreground voxels where this modality has a value: it may cover less than the others."""
    inside = mask & (image != 0)
    _refuse_constant(image[inside], modality, called)
    return NORMALISATIONS[normalisation](image, inside)


def _refuse_constant(values: Array, modality: str, called: str) -> None:
    if values.size == 0 or values.min() == values.max():
        raise InputError("an image is constant over the foreground", where=called, wanted=f"{modality} intensities", found="one value")
