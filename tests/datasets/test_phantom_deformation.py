import numpy as np
import pytest

from mergekit3d.datasets.phantom.deformation import draw_deformation

AXIS = np.arange(-90, 91, 4, dtype=np.float32)


def test_deformation_of_nothing_is_the_identity():
    """No rotation, no scaling, no displacement: every point comes from itself."""
    deformation, mirrored = draw_deformation(np.random.default_rng(0), rotation_deg=0, scale=0, displacements_mm=())

    x, y, z = deformation.sources((AXIS, AXIS[:3], AXIS[:2]))

    assert not mirrored
    np.testing.assert_allclose(x[:, 0, 0], AXIS, atol=1e-4)
    np.testing.assert_allclose(y[0, :, 0], AXIS[:3], atol=1e-4)
    np.testing.assert_allclose(z[0, 0, :], AXIS[:2], atol=1e-4)


def test_half_of_the_deformations_exchange_left_and_right():
    """Then the determinant is negative, and the second value says so."""
    drawn = [draw_deformation(np.random.default_rng(i), rotation_deg=3, scale=0.05, displacements_mm=(), flip=True) for i in range(60)]

    assert all((np.linalg.det(deformation.linear) < 0) == mirrored for deformation, mirrored in drawn)
    assert 15 < sum(mirrored for _, mirrored in drawn) < 45


@pytest.mark.parametrize("displacements_mm", [((2.6, 55.0), (1.3, 22.0), (0.5, 9.0)), ((2.0, 45.0), (1.0, 18.0))])
def test_deformations_do_not_fold(displacements_mm):
    """The Jacobian determinant of the displacements in use stays positive."""
    for seed in range(3):
        generator = np.random.default_rng(seed)
        deformation, _ = draw_deformation(generator, rotation_deg=4, scale=0.03, displacements_mm=displacements_mm)
        gradients = np.array([np.gradient(source, 4.0) for source in deformation.sources((AXIS, AXIS, AXIS))])

        assert np.linalg.det(np.moveaxis(gradients, (0, 1), (-2, -1))).min() > 0.2
