import sys

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from mergekit3d.errors import InputError, UsageError
from mergekit3d.preprocessing.bias import log_bias_field, one_thread, require_simpleitk, shrink_factors

SHAPE = (48, 56, 50)
SPACING_MM = (2.0, 2.0, 2.0)


def tissues_in_a_field():
    """Three tissues with noise in a ball, times a smooth field of known logarithm; the image, the ball, the logarithm."""
    generator = np.random.default_rng(0)
    x, y, z = (axis / size - 0.5 for axis, size in zip(np.indices(SHAPE).astype(np.float32), SHAPE, strict=True))
    ball = x**2 + y**2 + z**2 < 0.2
    pattern = ndimage.gaussian_filter(generator.normal(size=SHAPE), 3)
    image = np.choose(np.digitize(pattern, np.percentile(pattern, [30, 65])), [60.0, 100.0, 150.0]) + generator.normal(0, 2, SHAPE)
    log_field = 0.5 * x - 0.4 * y * z + 0.3 * np.cos(4 * z) - 0.2 * x * y
    return (np.where(ball, image, 0) * np.exp(log_field)).astype(np.float32), ball, log_field


def test_known_field_is_removed():
    """Of a smooth field that spreads intensities by a tenth and more, less than a tenth is left, at the full resolution."""
    image, ball, log_field = tissues_in_a_field()

    left = log_field[ball] - log_bias_field(image, ball, SPACING_MM, (2, 2, 2), called="subject 1, t1")[ball]

    assert log_field[ball].std() > 0.1
    assert left.std() < 0.1 * log_field[ball].std()


@pytest.mark.parametrize(("spacing_mm", "factors"), [((1, 1, 1), (4, 4, 4)), ((1.0, 2.0, 3.0), (4, 2, 1)), ((0.7, 0.7, 0.7), (5, 5, 5))])
def test_field_is_that_of_simpleitk(spacing_mm, factors):
    """Shrinking, and the field on the whole grid: as SimpleITK does it with the axes in its own order, for any remainder of the sizes."""
    image, ball, _ = tissues_in_a_field()
    whole, mask = (SimpleITK.GetImageFromArray(array.T) for array in (image, ball.astype(np.uint8)))
    whole.SetSpacing(spacing_mm)
    mask.SetSpacing(spacing_mm)
    with one_thread():
        corrector = SimpleITK.N4BiasFieldCorrectionImageFilter()
        corrector.Execute(SimpleITK.Shrink(whole, factors), SimpleITK.Shrink(mask, factors))
        theirs = SimpleITK.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(whole)).T

        ours = log_bias_field(image, ball, spacing_mm, factors, called="subject 1, t1")

    assert theirs[ball].std() > 0.05
    np.testing.assert_allclose(theirs[ball], ours[ball], atol=1e-3)


def test_field_is_the_same_to_the_bit():
    """One thread does it, whatever the machine has; the caller's own number of threads comes back."""
    image, ball, _ = tissues_in_a_field()
    before = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    fields = []
    for threads in (1, 3):
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        with one_thread():
            fields.append(log_bias_field(image, ball, SPACING_MM, (4, 4, 4), called="subject 1, t1").tobytes())
        assert threads == SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(before)

    assert fields[0] == fields[1]


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
        log_bias_field(image, ball, SPACING_MM, (2, 2, 2), called="subject 3, t1")


def test_foreground_of_a_few_voxels_is_refused():
    """A grid with hardly a voxel in it holds no field."""
    image, ball = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, bool)
    image[20:24, 20:24, 20:24], ball[20:24, 20:24, 20:24] = 5, True

    with pytest.raises(InputError, match="too little foreground for N4: subject 1, t1: wanted 64 foreground voxels on the shrunken grid"):
        log_bias_field(image, ball, SPACING_MM, (4, 4, 4), called="subject 1, t1")


def test_missing_library_is_one_line_with_the_extra(monkeypatch):
    """The one clear error, with what to install."""
    monkeypatch.setitem(sys.modules, "SimpleITK", None)

    with pytest.raises(UsageError) as raised:
        require_simpleitk()

    assert "N4 needs SimpleITK; pip install 'mergekit3d[preprocess]', or pass --no-n4" == str(raised.value)
