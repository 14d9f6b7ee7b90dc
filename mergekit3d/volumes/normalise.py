"""Foreground and intensity normalisation."""

from __future__ import annotations

import numpy as np

from mergekit3d.volumes.orientation import Array

FULL_FRACTION = 0.95  # an image with more non-zero voxels than this has no cut-out background


def foreground_mask(images: Array) -> Array:
    """Voxels where any modality is not zero; where nearly all are, those above the mean of a modality.

    Args:
        images: (M, X, Y, Z).

    Returns:
        bool, (X, Y, Z).
    """
    mask = np.asarray((images != 0).any(axis=0))
    if mask.mean() > FULL_FRACTION:
        means = images.mean(axis=(1, 2, 3), dtype=np.float64)
        mask = np.asarray(np.stack([image > mean for image, mean in zip(images, means, strict=True)]).any(axis=0))
    return mask


def zscore(image: Array, mask: Array) -> Array:
    """Mean 0 and standard deviation 1 over the mask, 0 outside.

    Args:
        image: (X, Y, Z) float32.
        mask: bool, (X, Y, Z), not constant in `image`.

    Returns:
        float32, (X, Y, Z).
    """
    inside = image[mask].astype(np.float64)
    result = np.zeros(image.shape, dtype=np.float32)
    result[mask] = (inside - inside.mean()) / inside.std()
    return result


def rank(image: Array, mask: Array) -> Array:
    """Ranks over the mask, uniform from 0 to 1 (equal values share their mean rank), 0 outside.

    Source: the histogram normalisation of the T-IMM paper's code.

    Args and returns as `zscore`.
    """
    _, inverse, counts = np.unique(image[mask], return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    ranks = (below + (counts - 1) / 2) / (mask.sum() - 1)
    result = np.zeros(image.shape, dtype=np.float32)
    result[mask] = ranks[inverse]
    return result


def unchanged(image: Array, _mask: Array) -> Array:
    """The image as it is.

    Args and returns as `zscore`.
    """
    return image.astype(np.float32, copy=False)


def zscore_image(image: Array) -> Array:
    """Mean 0 and standard deviation 1 over all voxels, those of the background too.

    Args:
        image: (X, Y, Z) float32, not constant; cropped to what is not 0.

    Returns:
        float32, (X, Y, Z).

    Source: nnU-Net's ZScoreNormalization without a mask.
    """
    values = image.astype(np.float64)
    return np.asarray((values - values.mean()) / values.std(), np.float32)


def rescale(image: Array) -> Array:
    """From the lowest to the highest value, 0 to 1.

    Args and returns as `zscore_image`.

    Source: nnU-Net's RescaleTo01Normalization.
    """
    values = image.astype(np.float64)
    return np.asarray((values - values.min()) / np.ptp(values), np.float32)


NORMALISATIONS = {"zscore": zscore, "rank": rank, "none": unchanged}
WHOLE_IMAGE = {"zscore-image": zscore_image, "rescale": rescale}
"""Those that look at all voxels of an image which is cropped to what is not 0."""
