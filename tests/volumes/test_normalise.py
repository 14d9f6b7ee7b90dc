import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit3d.volumes.normalise import NORMALISATIONS, foreground_mask, rank, zscore

IMAGE = np.array([0, 2, 4, 6, 8, 0], dtype=np.float32).reshape(1, 2, 3)


def test_foreground_is_where_any_modality_is_not_zero():
    """One non-zero modality is enough, negative values too."""
    images = np.zeros((2, 2, 2, 2), dtype=np.float32)
    images[0, 0, 0, 0], images[1, 1, 1, 1] = 5, -5

    assert [[0, 0, 0], [1, 1, 1]] == np.argwhere(foreground_mask(images)).tolist()


def test_full_image_is_thresholded_at_the_mean():
    """Where no background was cut out, the foreground is what is brighter than the mean."""
    images = np.ones((1, 10, 10, 10), dtype=np.float32)
    images[0, 2:5, 3:6, 4:7] = 100

    mask = foreground_mask(images)

    assert 27 == mask.sum()
    assert mask[2:5, 3:6, 4:7].all()


def test_zscore():
    """2, 4, 6, 8 have mean 5 and standard deviation sqrt(5); outside of the mask stays 0."""
    expected = np.array([0, -3, -1, 1, 3, 0]) / np.sqrt(5)

    np.testing.assert_allclose(expected, zscore(IMAGE, IMAGE != 0).ravel(), rtol=1e-6)


def test_rank():
    """Ranks run evenly from 0 to 1; equal values share the mean of their ranks."""
    tied = np.array([0, 5, 5, 7, 9, 9], dtype=np.float32).reshape(1, 2, 3)

    np.testing.assert_allclose([0, 0, 1 / 3, 2 / 3, 1, 0], rank(IMAGE, IMAGE != 0).ravel(), rtol=1e-6)
    np.testing.assert_allclose([0, 0.125, 0.125, 0.5, 0.875, 0.875], rank(tied, tied != 0).ravel(), rtol=1e-6)


def test_none_changes_nothing():
    """Without normalisation intensities stay as they are."""
    assert IMAGE.tolist() == NORMALISATIONS["none"](IMAGE, IMAGE != 0).tolist()


@pytest.mark.parametrize("name", ["zscore", "rank"])
@settings(max_examples=15)
@given(scale=st.floats(0.01, 1000), seed=st.integers(0, 100))
def test_scale_of_the_scanner_does_not_matter(name, scale, seed):
    """A factor on the intensities leaves both normalisations as they were."""
    image = np.random.default_rng(seed).uniform(1, 2, (3, 3, 3)).astype(np.float32)
    mask = np.ones(image.shape, dtype=bool)
    scaled = image * np.float32(scale)

    np.testing.assert_allclose(NORMALISATIONS[name](image, mask), NORMALISATIONS[name](scaled, mask), atol=2e-2 if name == "rank" else 1e-3)
