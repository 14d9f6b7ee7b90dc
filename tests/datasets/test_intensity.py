"""Random changes of intensities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mergekit3d.datasets.intensity import CHANGES, intensities
from mergekit3d.datasets.presets import PRESETS
from mergekit3d.datasets.spatial import Chance

TARGET = np.zeros((1, 8, 8, 8), np.uint8)


def image(modalities=1):
    return np.random.default_rng(0).standard_normal((modalities, 8, 8, 8)).astype(np.float32)


def changed(name, low, high=None, given=None, seed=0):
    given = image() if given is None else given
    return intensities({name: Chance(1.0, low, low if high is None else high)})(given, TARGET, np.random.default_rng(seed))[0]


def drawn(function, *arguments):
    """What one modality becomes, whether or not it is drawn."""
    for seed in range(20):
        result = changed(*arguments, seed=seed)
        if not np.array_equal(result, image()):
            return result
    raise AssertionError(function)


def test_brightness_is_a_factor():
    """Of every voxel."""
    assert 1.2 * image() == pytest.approx(changed("brightness", 1.2), rel=1e-6)


def test_contrast_stretches_about_the_mean_within_the_range():
    """Below 1 the values come closer to the mean; above, none leaves the range that there was."""
    one = image()[0]
    assert (0.5 * (one - one.mean()) + one.mean()) == pytest.approx(changed("contrast", 0.5)[0], abs=1e-5)
    more = changed("contrast", 3.0)[0]
    assert (one.min(), one.max()) == (more.min(), more.max())
    assert more.std() > 1.5 * one.std()


def test_noise_has_the_deviation_drawn():
    """And no mean."""
    big = np.ones((1, 32, 32, 32), np.float32)
    found = changed("noise", 0.1, given=big) - big
    assert 0.1 == pytest.approx(float(found.std()), rel=0.02)
    assert abs(float(found.mean())) < 0.002


def test_blur_is_a_gaussian():
    """Of the width drawn, in voxels."""
    assert gaussian_filter(image()[0], 0.8) == pytest.approx(drawn("blur", "blur", 0.8)[0], abs=1e-6)


def test_low_resolution_loses_what_lies_between():
    """By a factor of 1/2, every second voxel is seen, and the rest is linear between them."""
    found = drawn("low_resolution", "low_resolution", 0.5)[0]
    assert image()[0, 1, 1, 1] == pytest.approx(found[0, 0, 0], abs=1e-6)
    assert np.abs(np.diff(found, axis=0)).mean() < np.abs(np.diff(image()[0], axis=0)).mean()
    assert image() == pytest.approx(changed("low_resolution", 1.0), abs=1e-6)


def test_gamma_keeps_mean_and_deviation_and_bends_what_is_between():
    """The order of the values stays; inverted, the other end is stretched."""
    one = image()[0].ravel()
    plain, inverted = (changed(name, 1.5)[0].ravel() for name in ("gamma", "gamma_inverted"))
    order = np.argsort(one)
    for found in (plain, inverted):
        assert (one.mean(), one.std()) == pytest.approx((found.mean(), found.std()), abs=1e-5)
        assert (np.diff(found[order]) > -1e-6).all()
    ends = [order[0], order[-1]]
    assert plain[ends[1]] > one[ends[1]]
    assert inverted[ends[0]] < one[ends[0]]
    flat = np.ones((1, 8, 8, 8), np.float32)
    assert flat.tolist() == changed("gamma", 1.5, given=flat).tolist()


def test_what_is_empty_in_every_modality_stays_empty():
    """Whatever is added; the target is the one that came."""
    given = image(2)
    given[:, :3] = 0
    given[0, 3] = 0
    changes = intensities({name: Chance(1.0, chance.low, chance.high) for name, chance in PRESETS["nnunet"].items() if name in CHANGES})
    found, target = changes(given, TARGET, np.random.default_rng(4))
    assert not found[:, :3].any()
    assert found[:, 3].all()
    assert target is TARGET
    assert np.float32 == found.dtype
    assert np.isfinite(found).all()


def test_what_is_not_drawn_is_not_touched():
    """A chance of 0 leaves the sample as it is, without a copy; the argument is never written to."""
    given = image(2)
    given.setflags(write=False)
    assert intensities({"noise": Chance(0.0, 1, 1)})(given, TARGET, np.random.default_rng(0))[0] is given
    for name in CHANGES:
        assert changed(name, 0.9, given=given).shape == given.shape


def test_factors_are_as_often_below_one_as_above():
    """Whatever the range."""
    flat = np.ones((1, 2, 2, 2), np.float32)
    flat[0, 0] = 3
    spreads = [float(np.ptp(changed("contrast", 0.75, 3.0, given=flat, seed=seed))) for seed in range(200)]
    assert 0.5 == pytest.approx(np.mean([spread < 2 for spread in spreads]), abs=0.1)
