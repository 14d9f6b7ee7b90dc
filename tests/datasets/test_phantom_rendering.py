import numpy as np
import pytest

from mergekit3d.datasets.phantom import contrasts, rendering
from mergekit3d.datasets.phantom.contrasts import BRIGHTNESS, MODALITIES, draw_contrasts
from mergekit3d.datasets.phantom.fields import View, draw_field
from mergekit3d.datasets.phantom.rendering import _partial_volume, add_details, majority, render
from mergekit3d.datasets.phantom.tissues import TISSUES

VIEW = View((16, 16, 16), 3.0, 2)


def ball(radius=14):
    """White matter with cortex around it, on the fine voxels of VIEW."""
    at = np.arange(32) - 15.5
    distance = np.sqrt(at[:, None, None] ** 2 + at[None, :, None] ** 2 + at[None, None, :] ** 2)
    return np.where(distance < radius - 4, 2, np.where(distance < radius, 3, 0)).astype(np.int16)


def test_majority():
    """A voxel takes the label of most of its eight parts, the lowest where two are as many."""
    fine = np.zeros((4, 2, 2), dtype=np.int16)
    fine[:2] = np.array([2, 2, 2, 7, 7, 7, 7, 7]).reshape(2, 2, 2)
    fine[2:] = np.array([9, 9, 9, 9, 5, 5, 5, 5]).reshape(2, 2, 2)

    assert [7, 5] == majority(fine, View((2, 1, 1), 2.0, 2)).ravel().tolist()


def test_majority_of_single_parts_is_the_label():
    """With one fine voxel a voxel nothing changes."""
    fine = np.arange(8, dtype=np.int16).reshape(2, 2, 2)

    np.testing.assert_array_equal(fine, majority(fine, View((2, 2, 2), 2.0, 1)))


def test_partial_volume_is_the_mean_of_the_parts():
    """Three eighths at 1 and five at 0 are 3/8; half of edema of brightness 3 in one of the former adds (3 - 1) / 2 / 8."""
    fine = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=np.int16).reshape(2, 2, 2)
    share = np.zeros((2, 2, 2), dtype=np.float32)
    share[0, 0, 0] = 0.5
    brightness, view = np.array([0, 1], dtype=np.float32), View((1, 1, 1), 2.0, 2)

    assert 3 / 8 == pytest.approx(_partial_volume(fine, None, view, brightness, np.float32(3)).item())
    assert 4 / 8 == pytest.approx(_partial_volume(fine, share, view, brightness, np.float32(3)).item())


def test_background_is_exactly_zero_and_brain_never_is():
    """Skull-stripped: zero where most of a voxel lies outside, at least 1 elsewhere; whole numbers."""
    images = render(np.random.default_rng(0), ball(), VIEW, MODALITIES)
    inside = majority((ball() > 0).astype(np.uint8), VIEW) > 0

    for image in images.values():
        assert np.int16 == image.dtype
        assert (image[~inside] == 0).all()
        assert image[inside].min() >= 1


def test_white_matter_is_bright_in_t1_and_dark_in_t2():
    """As in clinical images."""
    images = render(np.random.default_rng(1), ball(), VIEW, ("t1", "t2"))
    labels = majority(ball(), VIEW)

    assert images["t1"][labels == 2].mean() > images["t1"][labels == 3].mean()
    assert images["t2"][labels == 2].mean() < images["t2"][labels == 3].mean()


def flat(spacing_mm, monkeypatch, **changes):
    """T1 of a ball of one tissue with nothing but what is left on, in its middle, where white matter is 20000 units."""
    for name, value in {"TEXTURE_SPREAD": 0.0, "BIAS_SPREAD": 0.0, "UNITS": (20000.0, 20000.0), **changes}.items():
        monkeypatch.setattr(rendering, name, value)
    tissues = np.where(ball(15) > 0, 2, 0).astype(np.int16)
    image = render(np.random.default_rng(4), tissues, View((16, 16, 16), spacing_mm, 2), ("t1",))["t1"]
    return image[5:11, 5:11, 5:11] / 20000


def test_noise_is_averaged_over_a_voxel(monkeypatch):
    """As of an image of 1 mm: a voxel of 4 mm holds 64 of those, and an eighth of their noise."""
    fine, coarse = (flat(spacing_mm, monkeypatch).std() for spacing_mm in (1.0, 4.0))

    assert 0.02 * 0.8 < fine < 0.04 * 1.2
    assert 8 == pytest.approx(fine / coarse, rel=0.05)


def test_gain_varies_smoothly_by_what_correction_leaves(monkeypatch):
    """Over many heads the gain at one place spreads by some 15 %; two voxels apart it is nearly the same."""
    monkeypatch.setattr(contrasts, "TISSUE_SPREAD", 0.0)
    monkeypatch.setattr(contrasts, "GAMMA_SPREAD", 0.0)
    gains = [draw_field(np.random.default_rng(seed), rendering.BIAS_MM).on(VIEW.axes()) for seed in range(40)]
    one = flat(3.0, monkeypatch, NOISE=(0.0, 0.0), BIAS_SPREAD=rendering.BIAS_SPREAD)

    assert 0.15 == pytest.approx(rendering.BIAS_SPREAD * np.std(gains), rel=0.25)
    assert 0 < np.ptp(np.log(one)) < 0.3
    assert np.abs(np.diff(np.log(one), axis=0)).max() < 0.03


def test_rendering_depends_on_the_generator_alone():
    """The same seed gives the same image, another seed another scale."""
    first, again, other = (render(np.random.default_rng(seed), ball(), VIEW, ("t1",))["t1"] for seed in (5, 5, 6))

    np.testing.assert_array_equal(first, again)
    assert abs(np.log(first[first > 0].mean() / other[other > 0].mean())) > 0.01


def test_details_stay_in_their_tissues():
    """Vessels and dura lie in fluid, lesions in white matter; nothing else changes, nothing leaves the brain."""
    labels = np.kron(ball(), np.ones((2, 2, 2), dtype=np.int16))
    labels[labels == 3] = 24
    view = View((32, 32, 32), 3.0, 2)

    tissues = add_details(np.random.default_rng(2), labels, view)

    changed = tissues != labels
    assert {"vessel", "dura", "lesion"} == {TISSUES[int(label)] for label in np.unique(tissues[changed])}
    assert {2, 24} == set(np.unique(labels[changed]).tolist())
    assert np.array_equal(labels > 0, tissues > 0)


def test_every_tissue_has_a_brightness_in_every_modality():
    """And background has none."""
    table, edema = draw_contrasts(np.random.default_rng(0), MODALITIES)

    assert set(TISSUES.values()) | {"edema"} == set(BRIGHTNESS)
    assert (table[:, list(TISSUES)] > 0).all()
    assert (table[:, 0] == 0).all()
    assert (4,) == edema.shape


def test_contrasts_do_not_depend_on_the_modalities_asked_for():
    """T2 of a subject is the same with and without FLAIR."""
    both, _ = draw_contrasts(np.random.default_rng(3), ("t1", "t2"))
    every, _ = draw_contrasts(np.random.default_rng(3), MODALITIES)

    np.testing.assert_array_equal(both, every[[0, 2]])


def test_tumour_contrasts_are_the_clinical_ones():
    """The rim is bright in T1ce and not in T1; edema in FLAIR and T2; fluid in T2 and dark in FLAIR."""
    t1, t1ce, t2, flair = range(4)
    rim, edema, fluid, white, dead = (BRIGHTNESS[name] for name in ("enhancing tumour", "edema", "csf", "white matter", "necrosis"))

    assert rim[t1ce] > white[t1ce]
    assert rim[t1] < white[t1]
    assert edema[flair] > max(white[flair], fluid[flair], dead[flair])
    assert edema[t2] > white[t2]
    assert fluid[t2] > edema[t2]
    assert fluid[flair] < white[flair]
    assert dead[t1ce] < white[t1ce]
