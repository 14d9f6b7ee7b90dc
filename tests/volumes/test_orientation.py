from itertools import permutations, product

import numpy as np
import pytest

from mergekit3d.volumes.nifti import Grid, read_labels, write_volume
from mergekit3d.volumes.orientation import canonical_grid, from_canonical, spacing_of, to_canonical

CANONICAL_SHAPE = (2, 3, 4)
CANONICAL_AFFINE = np.array([[1.5, 0, 0, -10], [0, 2, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]])
ORIENTATIONS = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def stored(axes, signs):
    """The canonical array of the numbers 0 to 23, stored with another axis order, and its affine."""
    data = np.arange(24, dtype=np.int32).reshape(CANONICAL_SHAPE)
    affine = CANONICAL_AFFINE.copy()
    for axis, sign in enumerate(signs):
        if sign < 0:
            data = np.flip(data, axis)
            affine[:, 3] += affine[:, axis] * (CANONICAL_SHAPE[axis] - 1)
            affine[:, axis] *= -1
    return data.transpose(axes), affine[:, [*axes, 3]]


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_all_48_orientations_give_one_array(axes, signs):
    """However the axes are stored, the array in RAS+ order and its affine are the same, and going back gives the stored array."""
    data, affine = stored(axes, signs)

    turned, turned_affine = to_canonical(data, affine)

    assert np.arange(24).reshape(CANONICAL_SHAPE).tolist() == turned.tolist()
    np.testing.assert_allclose(CANONICAL_AFFINE, turned_affine)
    assert data.tolist() == from_canonical(turned, affine).tolist()
    assert CANONICAL_SHAPE == canonical_grid(data.shape, affine)[0]
    np.testing.assert_allclose(CANONICAL_AFFINE, canonical_grid(data.shape, affine)[1])


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_files_of_all_48_orientations_round_trip(tmp_path, axes, signs):
    """A file written on a native grid reads back with that grid, bit for bit, and with the same array in RAS+ order."""
    data, affine = stored(axes, signs)

    write_volume(tmp_path / "a.nii", np.arange(24).reshape(CANONICAL_SHAPE), native=Grid(data.shape, affine))
    volume = read_labels(tmp_path / "a.nii")

    assert np.arange(24).reshape(CANONICAL_SHAPE).tolist() == volume.data.tolist()
    assert data.shape == volume.native.shape
    assert affine.tolist() == volume.native.affine.tolist()
    np.testing.assert_allclose(CANONICAL_AFFINE, volume.affine)


def test_oblique_axes_go_to_the_nearest_one():
    """Axes tilted by 30 degrees are permuted and flipped, not interpolated, and the affine keeps the tilt."""
    tilt = np.deg2rad(30)
    affine = np.eye(4)
    affine[:3, :3] = [[-np.cos(tilt), np.sin(tilt), 0], [-np.sin(tilt), -np.cos(tilt), 0], [0, 0, 1]]
    data = np.arange(24).reshape(2, 3, 4)

    turned, turned_affine = to_canonical(data, affine)

    assert data[::-1, ::-1].tolist() == turned.tolist()
    np.testing.assert_allclose((affine @ [1, 2, 0, 1]), (turned_affine @ [0, 0, 0, 1]))


def test_spacing_is_the_length_of_the_columns():
    """Voxel sizes come from the affine, whatever its rotation."""
    assert spacing_of(CANONICAL_AFFINE) == (1.5, 2.0, 2.5)
    assert spacing_of(CANONICAL_AFFINE[:, [2, 0, 1, 3]]) == (2.5, 1.5, 2.0)
