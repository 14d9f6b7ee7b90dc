import numpy as np

from mergekit3d.volumes.resample import antialiased, has_spacing, onto_grid, same_grid, spaced_grid, within_view


def ramp(shape, affine):
    """The world coordinate x + 2 y + 4 z of every voxel centre."""
    indices = np.stack([*np.indices(shape), np.ones(shape)])
    x, y, z, _ = np.tensordot(affine, indices, axes=1)
    return (x + 2 * y + 4 * z).astype(np.float32)


def test_same_grid_ignores_rounding():
    """Grids are the same up to a tenth of a voxel at the corners, and differ by more, or by shape."""
    affine, nudged, moved = np.eye(4), np.eye(4), np.eye(4)
    nudged[0, 3], moved[0, 3] = 0.05, 0.2

    assert same_grid((4, 5, 6), affine, (4, 5, 6), nudged)
    assert not same_grid((4, 5, 6), affine, (4, 5, 6), moved)
    assert not same_grid((4, 5, 6), affine, (4, 6, 5), affine)


def test_linear_resampling_keeps_a_ramp():
    """A linear function of world coordinates is the same function on any grid inside of the first one."""
    fine, coarse = np.diag([1.0, 1.0, 1.0, 1.0]), np.diag([1.5, 2.0, 1.0, 1.0])
    coarse[:3, 3] = [3.25, 4, 2]

    result = onto_grid(ramp((24, 24, 12), fine), fine, (6, 5, 8), coarse, order=1)

    np.testing.assert_allclose(ramp((6, 5, 8), coarse), result, atol=1e-4)


def test_outside_of_the_first_grid_is_zero():
    """What no source voxel covers is 0; an identical grid gives the data back bit for bit."""
    data, moved = np.full((4, 4, 4), 7, dtype=np.int32), np.eye(4)
    moved[0, 3] = 2

    result = onto_grid(data, np.eye(4), (4, 4, 4), moved, order=0)

    assert [7, 7, 0, 0] == result[:, 0, 0].tolist()
    assert data.dtype == result.dtype
    assert data.tolist() == onto_grid(data, np.eye(4), (4, 4, 4), np.eye(4), order=1).tolist()


def test_spaced_grid_has_the_same_centre():
    """Another voxel size covers the same field of view around the same centre."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = [-5, 3, 8]

    shape, scaled = spaced_grid((12, 13, 10), affine, (3.0, 3.0, 1.0))

    assert (4, 4, 20) == shape
    assert [3.0, 3.0, 1.0] == np.diag(scaled)[:3].tolist()
    np.testing.assert_allclose(affine @ [5.5, 6, 4.5, 1], scaled @ [1.5, 1.5, 9.5, 1])
    assert has_spacing(affine, (1.0, 1.0, 2.0))
    assert not has_spacing(affine, (1.0, 1.0, 2.01))


def test_within_view_goes_on_at_the_edge():
    """Voxels whose centres lie beyond the outermost ones take their values, so that a constant stays one."""
    shape, scaled = spaced_grid((4, 4, 4), np.eye(4), (0.5, 0.5, 0.5))

    result = within_view(np.full((4, 4, 4), 3, dtype=np.float32), np.eye(4), shape, scaled, order=1)

    assert (8, 8, 8) == result.shape
    assert result.min() == result.max() == 3


def test_down_sampling_is_antialiased():
    """A checkerboard at the finest scale becomes grey when every third voxel is taken, not black and white."""
    board = (np.indices((24, 24, 24)).sum(axis=0) % 2).astype(np.float32)
    shape, scaled = spaced_grid(board.shape, np.eye(4), (3.0, 3.0, 3.0))

    result = within_view(board, np.eye(4), shape, scaled, order=1)

    assert 1 == board[::3, ::3, ::3].max() - board[::3, ::3, ::3].min()
    assert result[2:-2, 2:-2, 2:-2].max() - result[2:-2, 2:-2, 2:-2].min() < 0.01
    assert board is antialiased(board, np.array([1.0, 0.5, 1.0]))
