"""Rotation, scaling and deformation in one resampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from mergekit3d.datasets.prepare import Box, Prepared
from mergekit3d.datasets.presets import OFF
from mergekit3d.datasets.spatial import Chance, Spatial, cut, smooth_field
from mergekit3d.volumes.nifti import Grid

WHOLE = (slice(None),) * 3


def subject(image, target=None, spacing=(1.0, 1.0, 1.0)):
    affine = np.diag([*spacing, 1.0])
    shape = image.shape[1:]
    return Prepared(1, image.astype(np.float32), target, affine, Box((0, 0, 0), shape), Grid(shape, affine))


def always(value):
    return Chance(1.0, value, value)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_where_nothing_is_drawn_the_block_is_cut_as_it_is():
    """Without a copy."""
    prepared = subject(np.arange(60.0).reshape(1, 3, 4, 5), np.zeros((2, 3, 4, 5), np.uint8))
    block = (slice(0, 2), slice(1, 3), slice(2, 9))
    for image, target in (cut(prepared, block), Spatial(OFF, OFF, OFF).cut(prepared, block, rng())):
        assert np.shares_memory(image, prepared.image)
        assert prepared.image[:, 0:2, 1:3, 2:5].tolist() == image.tolist()
        assert (2, 2, 2, 3) == target.shape


def test_a_change_by_nothing_gives_the_same_block():
    """A rotation by 0 degrees and a scaling by 1 still resample: voxel centres fall on voxel centres, also beside a margin."""
    image = rng().standard_normal((2, 9, 8, 7))
    target = rng(1).integers(0, 5, (9, 8, 7)).astype(np.uint8)
    block = (slice(2, 7), slice(0, 4), slice(3, 7))
    found, labels = Spatial(always(0), always(1), OFF).cut(subject(image, target), block, rng())
    assert image[:, 2:7, 0:4, 3:7] == pytest.approx(found, abs=1e-5)
    assert target[2:7, 0:4, 3:7].tolist() == labels.tolist()
    assert (np.float32, np.uint8) == (found.dtype, labels.dtype)


def test_a_scale_of_two_takes_every_second_voxel_and_zeros_beyond():
    """Along each axis about the centre; a volume of one value tells where it ends."""
    ramp = np.indices((9, 9, 9))[0][None].astype(float)
    found, _ = Spatial(OFF, always(2), OFF).cut(subject(ramp + 1), WHOLE, rng())
    assert [0, 0, 1, 3, 5, 7, 9, 0, 0] == pytest.approx(found[0, :, 4, 4].tolist(), abs=1e-4)


def test_rotation_is_in_millimetres():
    """A quarter turn about X of voxels of 1 x 1 x 2 mm: what lay 2 voxels along Y lies 1 voxel along Z."""
    image = np.zeros((1, 5, 9, 9))
    image[0, 2, 6, 4] = 1.0
    prepared = subject(image, (image > 0).astype(np.uint8), spacing=(1.0, 1.0, 2.0))

    class Quarter(Chance):
        def draw(self, rng, count=1):
            return np.array([90.0, 0.0, 0.0])

    found, labels = Spatial(Quarter(1, 0, 0), OFF, OFF).cut(prepared, WHOLE, rng())
    assert (2, 4, 3) == np.unravel_index(found[0].argmax(), found[0].shape)
    assert 1.0 == pytest.approx(float(found.max()), abs=1e-5)
    assert 1 == labels[0, 2, 4, 3]


def test_all_three_are_what_one_interpolation_gives():
    """scipy's at the same places: of a block in the middle, with its surroundings."""
    image, shape = rng().standard_normal((1, 20, 22, 24)), (6, 8, 10)
    block = (slice(7, 13), slice(7, 15), slice(7, 17))
    spatial = Spatial(Chance(1, -30, 30), Chance(1, 0.7, 1.4), always(0.5))
    found, labels = spatial.cut(subject(image, (image > 0).astype(np.uint8)), block, rng(3))

    draws = rng(3)
    draws.random()
    degrees = np.deg2rad(draws.uniform(-30, 30, 3))
    draws.random()
    factor = draws.uniform(0.7, 1.4, 1)[0]
    draws.random()
    draws.uniform(0.5, 0.5, 1)
    field = 0.5 * smooth_field(shape, draws)
    turns = []
    for axis, angle in enumerate(degrees):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        turns.append(turn)
    matrix = factor * turns[0] @ turns[1] @ turns[2]
    offsets = np.indices(shape).reshape(3, -1) - (np.array(shape)[:, None] - 1) / 2
    places = matrix @ offsets + np.array([9.5, 10.5, 11.5])[:, None] + field.reshape(3, -1)
    wanted = map_coordinates(image[0], places, order=1, mode="grid-constant").reshape(shape)
    assert wanted == pytest.approx(found[0], abs=2e-4)
    nearest = map_coordinates((image[0] > 0).astype(np.uint8), places, order=0, mode="grid-constant").reshape(shape)
    assert (nearest == labels[0]).mean() > 0.99


def test_regions_stay_inside_of_one_another():
    """Labels are taken from the nearest voxel, all of a voxel from one place."""
    inner = rng().random((12, 12, 12)) > 0.7
    target = np.stack([inner, inner | (rng(1).random(inner.shape) > 0.5)]).astype(np.uint8)
    spatial = Spatial(Chance(1, -30, 30), Chance(1, 0.7, 1.4), Chance(1, 0, 2))
    _, labels = spatial.cut(subject(rng().random((1, 12, 12, 12)), target), WHOLE, rng(5))
    assert {0, 1} == set(np.unique(labels))
    assert (labels[0] <= labels[1]).all()


def test_a_deformation_is_smooth_and_of_unit_deviation():
    """Over many draws; neighbours differ by a small part of it."""
    fields = np.stack([smooth_field((24, 20, 16), rng(seed)) for seed in range(40)])
    assert 1.0 == pytest.approx(float(fields.std()), abs=0.1)
    assert float(np.abs(np.diff(fields, axis=2)).mean()) < 0.12


def test_the_same_generator_gives_the_same_sample():
    """And another one another."""
    prepared = subject(rng().standard_normal((1, 10, 10, 10)), np.ones((1, 10, 10, 10), np.uint8))
    spatial = Spatial(Chance(1, -30, 30), Chance(1, 0.7, 1.4), Chance(1, 0, 2))
    first, second, third = (spatial.cut(prepared, WHOLE, rng(seed)) for seed in (1, 1, 2))
    assert first[0].tolist() == second[0].tolist()
    assert first[1].tolist() == second[1].tolist()
    assert first[0].tolist() != third[0].tolist()
    assert Spatial(always(5), OFF, OFF).cut(subject(prepared.image), WHOLE, rng())[1] is None
