"""A subject up to its intensities: one grid, cropped, without its bias field, at the voxel size asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from mergekit3d.datasets.prepare import Box, bounding_box, cropped_affine
from mergekit3d.datasets.reading import read_modalities
from mergekit3d.datasets.vocabulary import Vocabulary
from mergekit3d.errors import InputError
from mergekit3d.preprocessing.bias import log_bias_field, one_thread, shrink_factors
from mergekit3d.preprocessing.settings import Settings
from mergekit3d.volumes.nifti import Channel, Volume, read_labels
from mergekit3d.volumes.normalise import foreground_mask
from mergekit3d.volumes.orientation import Array, spacing_of
from mergekit3d.volumes.resample import has_spacing, onto_grid, same_grid, spaced_grid, within_view

LABEL = "label"
FIELD_PERCENTILES = (1, 99)


@dataclass(frozen=True, eq=False)
class Corrected:
    """A subject whose intensities are still those of its scanner.

    Args:
        images: modality -> (X, Y, Z) float32, RAS+ axis order, on one grid.
        mask: bool, (X, Y, Z), the foreground.
        labels: int32, (X, Y, Z); None: it has none.
        affine: (4, 4), voxel indices to RAS+ mm.
        facts: what was done, as plain data.
    """

    images: Mapping[str, Array]
    mask: Array
    labels: Array | None
    affine: Array
    facts: Mapping[str, Any]

    def save(self, file: IO[bytes]) -> None:
        """Write the arrays; `facts` are left to whoever keeps the record."""
        labels = {} if self.labels is None else {LABEL: self.labels}
        images = {f"image {modality}": image for modality, image in self.images.items()}
        np.savez(file, allow_pickle=False, mask=self.mask, affine=self.affine, **labels, **images)


def load_corrected(path: Path, facts: Mapping[str, Any]) -> Corrected:
    """What `Corrected.save` wrote."""
    with np.load(path) as content:
        images = {name.removeprefix("image "): content[name] for name in content.files if name.startswith("image ")}
        return Corrected(images, content["mask"], content[LABEL] if LABEL in content.files else None, content["affine"], facts)


def correct(
    images: Mapping[str, Path],
    label: Path | None,
    settings: Settings,
    vocabulary: Vocabulary,
    *,
    number: int,
    channels: Mapping[str, Channel] | None = None,
) -> Corrected:
    """Read a subject, bring it onto one grid, crop it, correct its bias field, and resample it.

    The grid is the label map's, else that of the first modality by name; modalities on another one are resampled to it linearly. Label maps
    are resampled by the nearest voxel, and only where a voxel size is asked for.

    Args:
        images: modality -> file.
        label: the label map.
        settings: what to do.
        vocabulary: ids that the label map may hold.
        number: of the subject, for errors.
        channels: of the modalities that share a 4D file, which of its volumes they are.

    Raises:
        InputError: a file is missing, damaged or not finite, a label is unknown, there is no foreground, or N4 failed.
    """
    volumes = _images(dict(sorted(images.items())), channels or {}, number)
    labels = None if label is None else _labels(label, vocabulary, number)
    corrected = _on_one_grid(volumes, labels, settings, number)
    if settings.n4:
        corrected = _without_bias(corrected, settings.n4_shrink, number)
    if settings.spacing_mm is not None and not has_spacing(corrected.affine, settings.spacing_mm):
        corrected = _respaced(corrected, settings.spacing_mm)
    mask = corrected.mask
    result = {"shape": list(mask.shape), "spacing_mm": _rounded(spacing_of(corrected.affine)), "foreground_voxels": int(mask.sum())}
    return replace(corrected, facts={**corrected.facts, "result": result})


def _on_one_grid(volumes: Mapping[str, Volume], labels: Volume | None, settings: Settings, number: int) -> Corrected:
    """The images and the label map on its grid, cropped."""
    reference = labels if labels is not None else next(iter(volumes.values()))
    moved = [modality for modality, volume in volumes.items() if not _same_grid(volume, reference)]
    stack = np.stack([_on_grid_of(volume, reference) for volume in volumes.values()])
    mask = foreground_mask(stack)
    if not mask.any():
        raise InputError("the images are empty", where=f"subject {number}", wanted="foreground", found="one value everywhere")
    box = _box(mask, None if labels is None else labels.data, settings)
    images = {modality: np.array(image[box.slices], order="C") for modality, image in zip(volumes, stack, strict=True)}
    facts = {
        "grid": {"shape": list(mask.shape), "spacing_mm": _rounded(spacing_of(reference.affine)), "resampled_to_it": moved},
        "crop": {"start": list(box.start), "stop": list(box.stop)} if settings.crop else None,
        "n4": None,
    }
    cropped = None if labels is None else labels.data[box.slices]
    return Corrected(images, mask[box.slices], cropped, cropped_affine(reference.affine, box), facts)


def _without_bias(corrected: Corrected, shrink: int | None, number: int) -> Corrected:
    """The images divided by their bias fields; the facts tell the shrink factors, and how far each field goes from end to end."""
    spacing_mm = spacing_of(corrected.affine)
    factors = shrink_factors(spacing_mm, shrink)
    facts = {}
    for modality, image in corrected.images.items():
        with one_thread():
            field = log_bias_field(image, corrected.mask, spacing_mm, factors, called=f"subject {number}, {modality}")
        np.divide(image, np.exp(field), out=image)
        low, high = np.percentile(field[corrected.mask], FIELD_PERCENTILES)
        facts[modality] = {"shrink": list(factors), "field_ratio": round(float(np.exp(high - low)), 4)}
    return replace(corrected, facts={**corrected.facts, "n4": facts})


def _respaced(corrected: Corrected, spacing_mm: tuple[float, float, float]) -> Corrected:
    """The same field of view at another voxel size: images linearly, mask and labels by the nearest voxel."""
    x, y, z = corrected.mask.shape
    affine = corrected.affine
    shape, target = spaced_grid((x, y, z), affine, spacing_mm)
    images = {modality: within_view(image, affine, shape, target, order=1) for modality, image in corrected.images.items()}
    mask = within_view(corrected.mask.astype(np.uint8), affine, shape, target, order=0).astype(bool)
    labels = None if corrected.labels is None else within_view(corrected.labels, affine, shape, target, order=0)
    return replace(corrected, images=images, mask=mask, labels=labels, affine=target)


def _images(images: Mapping[str, Path], channels: Mapping[str, Channel], number: int) -> dict[str, Volume]:
    """The images by modality, each file read once."""
    return read_modalities(images, channels, lambda modality: f"subject {number}, {modality}")


def _labels(path: Path, vocabulary: Vocabulary, number: int) -> Volume:
    """The label map with its ids as they are, each checked against the widest vocabulary of the layout."""
    while vocabulary.wider is not None:
        vocabulary = vocabulary.wider
    volume = read_labels(path, called=f"subject {number}, label map")
    vocabulary.check(volume.data, f"subject {number}")
    return volume


def _same_grid(volume: Volume, reference: Volume) -> bool:
    return same_grid(volume.data.shape, volume.affine, reference.data.shape, reference.affine)


def _on_grid_of(volume: Volume, reference: Volume) -> Array:
    if _same_grid(volume, reference):
        return volume.data
    return onto_grid(volume.data, volume.affine, reference.data.shape, reference.affine, order=1)


def _box(mask: Array, labels: Array | None, settings: Settings) -> Box:
    if not settings.crop:
        x, y, z = mask.shape
        return Box((0, 0, 0), (x, y, z))
    return bounding_box(mask if labels is None else mask | (labels > 0), settings.margin)


def _rounded(spacing_mm: tuple[float, float, float]) -> list[float]:
    return [round(edge, 4) for edge in spacing_mm]
