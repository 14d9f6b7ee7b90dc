"""Intensity scales that are learned from images: Nyul's landmarks, and the histogram of a reference.

Both are values at given percentiles of the foreground; an image is mapped so that its own percentiles get them, linearly in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergekit3d.errors import InputError
from mergekit3d.preprocessing.settings import HISTOGRAM, NYUL
from mergekit3d.storage.seal import json_digest
from mergekit3d.textfiles import read_json_object
from mergekit3d.volumes.orientation import Array

SCALE_TOP = 100.0
PERCENTILES: Mapping[str, tuple[float, ...]] = {
    NYUL: (1, *range(10, 100, 10), 99),
    HISTOGRAM: tuple(100 * step / 256 for step in range(257)),
}


@dataclass(frozen=True)
class Landmarks:
    """A scale of intensities.

    Args:
        kind: nyul or histogram.
        values: modality -> the values at the percentiles of that kind, which do not fall.
    """

    kind: str
    values: Mapping[str, tuple[float, ...]]

    def as_json(self) -> dict[str, Any]:
        """Plain data for the record."""
        return {
            "kind": self.kind,
            "percentiles": list(PERCENTILES[self.kind]),
            "values": {modality: list(values) for modality, values in sorted(self.values.items())},
        }

    @property
    def digest(self) -> str:
        """sha256 of the scale."""
        return json_digest(self.as_json())


def percentiles_of(image: Array, inside: Array, kind: str) -> tuple[float, ...]:
    """The values of an image at the percentiles that a kind of scale needs.

    Args:
        image: (X, Y, Z).
        inside: bool, (X, Y, Z), with two different values of `image` at least.
        kind: nyul or histogram.
    """
    return tuple(float(value) for value in np.percentile(image[inside].astype(np.float64), PERCENTILES[kind]))


def learn(kind: str, measured: Sequence[Mapping[str, Sequence[float]]]) -> Landmarks:
    """A scale from what `percentiles_of` found: the mean of all images from 0 to 100, or the values of the one reference.

    Args:
        kind: nyul or histogram.
        measured: one mapping a subject: modality -> values.

    Source: Nyul, Udupa, Zhang, "New variants of a method of MRI scale standardization", IEEE Trans. Med. Imaging 19 (2000); percentiles
    1, 10, 20 ... 90, 99 as in Shah et al., Med. Image Anal. 15 (2011).
    """
    values = {}
    for modality in sorted({modality for images in measured for modality in images}):
        rows = np.array([images[modality] for images in measured if modality in images], dtype=np.float64)
        if kind == NYUL:
            first, last = rows[:, :1], rows[:, -1:]
            spread = np.where(last > first, last - first, 1)
            rows = SCALE_TOP * (rows - first) / spread
        values[modality] = tuple(float(value) for value in rows.mean(axis=0))
    return Landmarks(kind, values)


def on_scale(image: Array, inside: Array, kind: str, values: Sequence[float]) -> Array:
    """The image on a scale; beyond the outermost percentiles the outermost pieces go on.

    Args:
        image: (X, Y, Z) float32.
        inside: bool, (X, Y, Z); what lies outside becomes 0.
        kind: nyul or histogram.
        values: of the scale, at the percentiles of the kind.

    Returns:
        float32, (X, Y, Z).
    """
    inner = image[inside].astype(np.float64)
    # Percentiles of one value in the image are one step, which gets their mean on the scale.
    steps, place = np.unique(np.percentile(inner, PERCENTILES[kind]), return_inverse=True)
    heights = np.bincount(place, weights=np.asarray(values)) / np.bincount(place)
    mapped = np.interp(inner, steps, heights)
    if len(steps) > 1:
        slopes = np.diff(heights) / np.diff(steps)
        mapped += np.minimum(inner - steps[0], 0) * slopes[0] + np.maximum(inner - steps[-1], 0) * slopes[-1]
    result = np.zeros(image.shape, dtype=np.float32)
    result[inside] = mapped
    return result


def read_landmarks(path: Path, kind: str) -> Landmarks:
    """The scale in the record of an earlier run.

    Args:
        path: its preprocess.json.
        kind: that it must be of.

    Raises:
        InputError: there is none, of another kind, or it is damaged.
    """
    failed = "cannot read the landmarks"
    content = read_json_object(path, "the landmarks").get("landmarks")
    if not isinstance(content, dict) or content.get("kind") != kind:
        found = content.get("kind") if isinstance(content, dict) else "none"
        raise InputError(failed, where=path, wanted=f"landmarks of --intensity {kind}", found=found)
    values = content.get("values")
    if content.get("percentiles") != list(PERCENTILES[kind]) or not isinstance(values, dict) or not values:
        raise InputError(failed, where=path, wanted=f"values at {len(PERCENTILES[kind])} percentiles", found="other ones")
    for modality, row in values.items():
        if not _is_rising(row, len(PERCENTILES[kind])):
            raise InputError(failed, where=f"{path}, {modality}", wanted="finite values that do not fall", found="others")
    return Landmarks(kind, {modality: tuple(map(float, row)) for modality, row in values.items()})


def _is_rising(row: Any, length: int) -> bool:
    if not isinstance(row, list) or len(row) != length or not all(isinstance(value, int | float) for value in row):
        return False
    array = np.asarray(row, dtype=np.float64)
    return bool(np.isfinite(array).all() and (np.diff(array) >= 0).all() and array[-1] > array[0])
