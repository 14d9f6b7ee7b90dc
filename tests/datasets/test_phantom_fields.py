import numpy as np
import pytest

from mergekit3d.datasets.phantom.fields import SmoothField, bounding_box, draw_field, largest_part, view_of


@pytest.mark.parametrize(
    ("spacing_mm", "size", "fineness"), [(3.0, 64, 2), (6.0, 32, 3), (2.0, 96, 2), (1.0, 192, 1), (2.5, 80, 2), (0.7, 288, 1)]
)
def test_field_of_view_is_192_mm_in_multiples_of_16_voxels(spacing_mm, size, fineness):
    """64 voxels at 3 mm; never fewer millimetres than 192; networks of depth 5 fit."""
    view = view_of(spacing_mm, finest_mm=1.25)

    assert (size, size, size) == view.shape
    assert fineness == view.fineness


def test_fine_axes_divide_the_voxels():
    """The mean of the fine centres of a voxel is the centre of the voxel, and the field is centred on 0."""
    view = view_of(3.0, finest_mm=1.5)
    coarse, fine = view.axes()[0], view.fine_axes()[0]

    np.testing.assert_allclose(fine.reshape(-1, 2).mean(axis=1), coarse, atol=1e-5)
    assert 0 == pytest.approx(float(coarse.sum()), abs=1e-3)


def test_field_is_the_same_on_every_grid():
    """A point has its value whatever other points are asked for with it."""
    field = draw_field(np.random.default_rng(1), 20.0)
    axis = np.linspace(-90, 90, 37, dtype=np.float32)

    whole = field.on((axis, axis, axis))
    part = field.on((axis[5:7], axis[::6], axis[30:]))

    np.testing.assert_allclose(whole[5:7, ::6, 30:], part, atol=1e-5)


def test_field_of_equal_controls_is_flat():
    """Cubic B-splines sum to one: equal controls of 1 give 1 over the standard deviation of random ones."""
    field = SmoothField(np.ones((20, 20, 20), dtype=np.float32), 20.0)
    axis = np.linspace(-100, 100, 9, dtype=np.float32)

    np.testing.assert_allclose(field.on((axis, axis, axis)), 0.479**-1.5, rtol=1e-5)


def test_field_has_mean_0_and_standard_deviation_1():
    """Amplitudes in millimetres and shares mean what they say."""
    axis = np.arange(-96, 96, 2, dtype=np.float32)

    values = draw_field(np.random.default_rng(0), 6.0).on((axis, axis, axis))

    assert 0 == pytest.approx(float(values.mean()), abs=0.05)
    assert 1 == pytest.approx(float(values.std()), abs=0.05)


def test_bounding_box():
    """The smallest slices around what is true; everything where nothing is."""
    mask = np.zeros((5, 6, 7), dtype=bool)
    assert (slice(0, 5), slice(0, 6), slice(0, 7)) == bounding_box(mask)

    mask[1, 2, 3] = mask[3, 2, 6] = True
    assert (slice(1, 4), slice(2, 3), slice(3, 7)) == bounding_box(mask)


def test_largest_part():
    """Specks apart from the largest part go."""
    mask = np.zeros((6, 6, 6), dtype=bool)
    mask[0, 0, 0] = True
    mask[3:5, 3:5, 3:5] = True

    assert 8 == largest_part(mask).sum()
    assert not largest_part(mask)[0, 0, 0]
