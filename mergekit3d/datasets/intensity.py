"""Random changes of intensities, those of nnU-Net; the target stays as it is, and so does what is 0 in every modality (no patient).

Written with numpy, scipy and torch's interpolation: MONAI's take up to three times as long (``benchmarks/results/train_step.md``) and
keep random states of their own, where here all numbers come from the sample's generator.

Source: the training transforms of nnU-Net v2 (Isensee et al., Nature Methods 2021, supplementary note 2), in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mergekit3d.datasets.augmentation import Transform
from mergekit3d.datasets.spatial import Chance

Array = np.ndarray[Any, Any]
Change = Callable[[Array, Chance, np.random.Generator], Array]
"""(one modality (X, Y, Z) float32, its range, generator) -> the modality, changed; the argument stays as it is."""

CHANNEL_SHARE = 0.5
"""Of the modalities, where a change is drawn for each of them."""


def noise(image: Array, chance: Chance, rng: np.random.Generator) -> Array:
    """Add Gaussian noise of a standard deviation in the range."""
    deviation = np.float32(rng.uniform(chance.low, chance.high))
    return np.asarray(image + deviation * rng.standard_normal(image.shape, dtype=np.float32))


def blur(image: Array, chance: Chance, rng: np.random.Generator) -> Array:
    """Smooth by a Gaussian of a width, in voxels, in the range."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(image, rng.uniform(chance.low, chance.high)))


def brightness(image: Array, chance: Chance, rng: np.random.Generator) -> Array:
    """Multiply by a factor in the range."""
    return np.asarray(image * np.float32(rng.uniform(chance.low, chance.high)))


def contrast(image: Array, chance: Chance, rng: np.random.Generator) -> Array:
    """Multiply distances from the mean by a factor in the range, within the values that there were."""
    mean, factor = image.mean(dtype=np.float64), _around_one(chance, rng)
    stretched = (image - np.float32(mean)) * np.float32(factor) + np.float32(mean)
    return np.asarray(np.clip(stretched, image.min(), image.max()))


def low_resolution(image: Array, chance: Chance, rng: np.random.Generator) -> Array:
    """Sample down by a factor in the range (nearest), and up again (trilinear)."""
    import torch
    from torch.nn import functional

    factor = rng.uniform(chance.low, chance.high)
    size = [max(1, round(edge * factor)) for edge in image.shape]
    with torch.no_grad():
        small = functional.interpolate(torch.from_numpy(np.array(image))[None, None], size=size, mode="nearest-exact")
        return np.asarray(functional.interpolate(small, size=list(image.shape), mode="trilinear")[0, 0].numpy())


def gamma(image: Array, chance: Chance, rng: np.random.Generator) -> Array:
    """Raise to a power in the range, between the smallest and the largest value; mean and standard deviation stay."""
    power = np.float32(_around_one(chance, rng))
    low, span = image.min(), np.ptp(image)
    mean, deviation = image.mean(dtype=np.float64), image.std(dtype=np.float64)
    if span == 0:
        return image
    changed = ((image - low) / span) ** power
    return np.asarray((changed - changed.mean(dtype=np.float64)) * (deviation / changed.std(dtype=np.float64)) + mean, dtype=np.float32)


def gamma_inverted(image: Array, chance: Chance, rng: np.random.Generator) -> Array:
    """`gamma` of the negative: bright structures spread in place of dark ones."""
    return np.asarray(-gamma(-image, chance, rng))


CHANGES: Mapping[str, tuple[Change, float]] = {
    "noise": (noise, 1.0),
    "blur": (blur, CHANNEL_SHARE),
    "brightness": (brightness, 1.0),
    "contrast": (contrast, 1.0),
    "low_resolution": (low_resolution, CHANNEL_SHARE),
    "gamma_inverted": (gamma_inverted, 1.0),
    "gamma": (gamma, 1.0),
}
"""By the recipe's key, in order, with the share of modalities that a change is drawn for."""


def intensities(chances: Mapping[str, Chance]) -> Transform:
    """All changes whose chance is given, each on the modalities that are drawn for it.

    Args:
        chances: by the names of `CHANGES`.
    """

    def change(image: Array, target: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        modalities, changed = list(image), False
        for name, (function, share) in CHANGES.items():
            chance = chances.get(name)
            if chance is None or rng.random() >= chance.probability:
                continue
            chosen, changed = rng.random(len(modalities)) < share, True
            modalities = [function(one, chance, rng) if drawn else one for one, drawn in zip(modalities, chosen, strict=True)]
        return (np.stack(modalities) * (image != 0).any(axis=0), target) if changed else (image, target)

    return change


def _around_one(chance: Chance, rng: np.random.Generator) -> float:
    """A value of the range that is as often below 1 as above, as nnU-Net draws it."""
    if chance.low < 1 < chance.high:
        return float(rng.uniform(chance.low, 1) if rng.random() < 0.5 else rng.uniform(1, chance.high))
    return float(rng.uniform(chance.low, chance.high))
