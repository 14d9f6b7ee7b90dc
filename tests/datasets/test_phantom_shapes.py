import numpy as np
import pytest

from mergekit3d.datasets.phantom.shapes import Ball, Points, Tube, inside, smooth_union


def points(*rows):
    x, y, z = np.array(rows, dtype=np.float32).T
    return Points(x, y, z)


def test_distance_to_a_sphere_is_exact():
    """A ball of equal radii: radius less distance from the centre, positive inside."""
    ball = Ball((1, 2, 3), (5, 5, 5))

    np.testing.assert_allclose(ball.distance(points((1, 2, 6), (1, 2, 8), (1, -6, 3))), [2, 0, -3], atol=1e-4)


def test_distance_to_an_ellipsoid_is_zero_on_its_surface():
    """At the ends of its axes; a leaning ball's surface moves backwards outwards."""
    ball = Ball((0, 0, 0), (2, 4, 8))
    np.testing.assert_allclose(ball.distance(points((2, 0, 0), (0, 4, 0), (0, 0, -8))), 0, atol=1e-4)

    leaning = Ball((0, 0, 0), (2, 4, 8), lean=0.5)
    np.testing.assert_allclose(leaning.distance(points((2, -1, 0), (-2, 1, 0), (0, 4, 0))), 0, atol=1e-4)


def test_distance_to_a_tube_is_exact_on_straight_parts():
    """The radius goes linearly from bend to bend."""
    tube = Tube(((0, 0, 0, 2), (10, 0, 0, 4)))

    np.testing.assert_allclose(tube.distance(points((5, 0, 0), (5, 3, 0), (0, 0, 5), (14, 0, 0))), [3, 0, -3, 0], atol=1e-5)


@pytest.mark.parametrize("shape", [Ball((3, -2, 1), (4, 6, 8), lean=0.4), Tube(((0, 0, 0, 2), (5, 5, 0, 3), (5, 5, 9, 1)))])
def test_inside_finds_what_the_distance_finds(shape):
    """The box around a shape leaves no point of it out."""
    cloud = np.random.default_rng(0).uniform(-12, 12, (4000, 3)).astype(np.float32)
    at = points(*cloud)

    np.testing.assert_array_equal(np.flatnonzero(shape.distance(at) > 0), inside(shape, at))


def test_varied_shapes_move_and_grow():
    """A ball's radii and a tube's radii scale; the offset is added to every place."""
    assert Ball((1, 2, 4), (4, 6, 8)) == Ball((0, 0, 0), (2, 3, 4)).varied((1, 2, 4), 2.0)
    assert Tube(((1, 0, 0, 3), (2, 0, 0, 6))) == Tube(((0, 0, 0, 1.5), (1, 0, 0, 3))).varied((1, 0, 0), 2.0)


def test_smooth_union_is_the_larger_away_from_the_seam():
    """Beyond the width of the seam nothing changes; on it the union is fuller by a quarter of the width."""
    first, second = np.array([5.0, 1.0], dtype=np.float32), np.array([0.0, 1.0], dtype=np.float32)

    np.testing.assert_allclose(smooth_union(first, second, 4.0), [5, 2])
