import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from mergekit3d.errors import InputError
from mergekit3d.preprocessing import bias
from mergekit3d.preprocessing.bias import log_bias_field, shrink_factors

SHAPE = (48, 56, 50)


def tissues_in_a_field(shape=SHAPE):
    """Three tissues with noise in a ball, times a smooth field of known logarithm; the image, the ball, the logarithm."""
    generator = np.random.default_rng(0)
    x, y, z = (axis / size - 0.5 for axis, size in zip(np.indices(shape).astype(np.float32), shape, strict=True))
    ball = x**2 + y**2 + z**2 < 0.2
    pattern = ndimage.gaussian_filter(generator.normal(size=shape), 3)
    image = np.choose(np.digitize(pattern, np.percentile(pattern, [30, 65])), [60.0, 100.0, 150.0]) + generator.normal(0, 2, shape)
    log_field = 0.5 * x - 0.4 * y * z + 0.3 * np.cos(4 * z) - 0.2 * x * y
    return (np.where(ball, image, 0) * np.exp(log_field)).astype(np.float32), ball, log_field


def test_known_field_is_removed():
    """Of a smooth field that spreads intensities by a tenth and more, less than a tenth is left, at the full resolution."""
    image, ball, log_field = tissues_in_a_field()

    left = log_field[ball] - log_bias_field(image, ball, (2, 2, 2), called="subject 1, t1")[ball]

    assert log_field[ball].std() > 0.1
    assert left.std() < 0.1 * log_field[ball].std()


def itk_field(image, inside, *, iterations=50, converged=1e-3, shrink=1):
    """ITK's own field."""
    corrector = SimpleITK.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([iterations] * 4)
    corrector.SetConvergenceThreshold(converged)
    whole, mask = (SimpleITK.GetImageFromArray(array) for array in (image, inside.astype(np.uint8)))
    corrector.Execute(SimpleITK.Shrink(whole, [shrink] * 3), SimpleITK.Shrink(mask, [shrink] * 3))
    return SimpleITK.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(whole))


@pytest.mark.parametrize("shape", [(24, 28, 25), (31, 24, 40), (24, 20, 9)])
def test_iterations_are_those_of_itk(shape, monkeypatch):
    """Five a level, whatever they change: equal up to the rounding of ITK, which has float32, on grids of any shape."""
    monkeypatch.setattr(bias, "ITERATIONS", 5)
    monkeypatch.setattr(bias, "CONVERGED", -1)
    image, ball, _ = tissues_in_a_field(shape)

    ours = log_bias_field(image, ball, (1, 1, 1), called="subject 1, t1")

    theirs = itk_field(image, ball, iterations=5, converged=-1)
    assert theirs[ball].std() > 0.05
    np.testing.assert_allclose(theirs[ball], ours[ball], atol=1e-4)


def test_shrunken_voxels_are_those_of_itk(monkeypatch):
    """Stretched over the whole grid as there, the field of a shrunken one is that of ITK, for any remainder of the sizes."""
    monkeypatch.setattr(bias, "ITERATIONS", 5)
    monkeypatch.setattr(bias, "CONVERGED", -1)
    monkeypatch.setattr(bias._Axis, "weights", lambda axis, points: bias._spline_weights(np.linspace(0, 1, axis.size), points))
    image, ball, _ = tissues_in_a_field((48, 57, 50))

    ours = log_bias_field(image, ball, (4, 4, 4), called="subject 1, t1")

    np.testing.assert_allclose(itk_field(image, ball, iterations=5, converged=-1, shrink=4)[ball], ours[ball], atol=1e-4)


def test_field_is_that_of_itk():
    """Where the iterations end by themselves, they may differ by one near the threshold: up to a constant the same field to 0.2 %."""
    image, ball, _ = tissues_in_a_field((24, 28, 25))

    difference = (itk_field(image, ball) - log_bias_field(image, ball, (1, 1, 1), called="subject 1, t1"))[ball]

    assert np.abs(difference - difference.mean()).max() < 0.002


def test_field_does_not_depend_on_the_unit_of_intensities():
    """A thousand times the intensities: the same field up to a constant, which is their logarithm's only for ITK as well."""
    image, ball, _ = tissues_in_a_field()

    first, second = (log_bias_field(gain * image, ball, (4, 4, 4), called="subject 1, t1")[ball] for gain in (1, 1000))

    np.testing.assert_allclose(first - first.mean(), second - second.mean(), atol=1e-4)


def test_image_without_contrast_has_no_field():
    """One value everywhere: nothing to sharpen, no division by 0."""
    image, ball, _ = tissues_in_a_field()
    image[ball] = 7

    assert not log_bias_field(image, ball, (2, 2, 2), called="subject 1, t1").any()


@pytest.mark.parametrize("factors", [(2, 2, 2), (3, 4, 5)])
def test_shrunken_field_lies_in_its_place(factors):
    """Estimated on every third voxel and the like, the field is that of the whole grid, without a shift."""
    image, ball, _ = tissues_in_a_field()
    whole = log_bias_field(image, ball, (1, 1, 1), called="subject 1, t1")[ball]

    shrunken = log_bias_field(image, ball, factors, called="subject 1, t1")[ball]

    assert (shrunken - whole).std() < 0.1 * whole.std()


@pytest.mark.parametrize(
    ("spacing_mm", "shrink", "factors"),
    [((1.0, 1.0, 1.0), None, (4, 4, 4)), ((0.7, 0.7, 0.7), None, (6, 6, 6)), ((1, 1, 5), None, (4, 4, 1)), ((1, 1, 5), 2, (2, 2, 2))],
)
def test_field_is_estimated_on_voxels_of_about_4_mm(spacing_mm, shrink, factors):
    """Whatever the voxel size, also where axes differ; unless a factor is asked for."""
    assert factors == shrink_factors(spacing_mm, shrink)


def test_intensities_around_zero_are_refused():
    """N4 takes logarithms: an image that was normalised before is an error that says so."""
    image, ball, _ = tissues_in_a_field()
    image[ball] -= image[ball].mean() + 20

    with pytest.raises(InputError, match=r"N4 needs positive intensities: subject 3, t1: found \d+ of \d+ foreground voxels; pass --no-n4"):
        log_bias_field(image, ball, (2, 2, 2), called="subject 3, t1")


def test_foreground_of_a_few_voxels_is_refused():
    """A grid with hardly a voxel in it holds no field."""
    image, ball = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, bool)
    image[20:24, 20:24, 20:24], ball[20:24, 20:24, 20:24] = 5, True

    with pytest.raises(InputError, match="too little foreground for N4: subject 1, t1: wanted 64 foreground voxels on the shrunken grid"):
        log_bias_field(image, ball, (4, 4, 4), called="subject 1, t1")
