import json

import numpy as np
import pytest

from mergekit3d.errors import InputError
from mergekit3d.preprocessing.scales import PERCENTILES, Landmarks, learn, on_scale, percentiles_of, read_landmarks
from mergekit3d.preprocessing.settings import HISTOGRAM, NYUL

SHAPE = (20, 21, 22)


def scan(gain, offset, seed=0):
    """An image of two tissues with the gain and offset of some scanner, and its foreground."""
    generator = np.random.default_rng(seed)
    inside = np.zeros(SHAPE, bool)
    inside[3:-3, 3:-3, 3:-3] = True
    image = np.where(generator.random(SHAPE) < 0.4, generator.normal(100, 6, SHAPE), generator.normal(160, 9, SHAPE))
    return np.where(inside, gain * image + offset, 0).astype(np.float32), inside


def test_nyul_brings_scanners_onto_one_scale():
    """Images that differ by gain and offset become the same image; 1 and 99 % of it are 0 and 100, the background is 0."""
    scans = [scan(1, 0), scan(7, 30), scan(0.01, 0.2)]
    landmarks = learn(NYUL, [{"t1": percentiles_of(*one, NYUL)} for one in scans])

    first, *others = [on_scale(*one, NYUL, landmarks.values["t1"]) for one in scans]

    for other in others:
        np.testing.assert_allclose(first, other, atol=1e-3)
    inside = scans[0][1]
    np.testing.assert_allclose([0, 100], np.percentile(first[inside], [1, 99]), atol=1e-3)
    assert not first[~inside].any()
    assert first[inside].min() < 0
    assert first[inside].max() > 100


def test_landmarks_are_means_over_the_images_that_have_the_modality():
    """Closed form: percentiles 0, 1 ... 10 and their squares, each brought to 0 to 100."""
    straight = [float(step) for step in range(11)]
    curved = [value**2 for value in straight]

    landmarks = learn(NYUL, [{"t1": straight, "t2": straight}, {"t1": curved}])

    assert pytest.approx([(10 * value + value**2) / 2 for value in straight]) == landmarks.values["t1"]
    assert pytest.approx([10 * value for value in straight]) == landmarks.values["t2"]


def test_histogram_becomes_that_of_the_reference():
    """Whatever the shape of the own histogram, its quantiles get those of the reference."""
    (image, inside), (reference, _) = scan(1, 0, seed=1), scan(3, 5, seed=2)
    image = np.where(inside, np.exp(image / 50), 0).astype(np.float32)
    landmarks = learn(HISTOGRAM, [{"t1": percentiles_of(reference, inside, HISTOGRAM)}])

    matched = on_scale(image, inside, HISTOGRAM, landmarks.values["t1"])

    levels = np.arange(0, 101, 2)
    np.testing.assert_allclose(
        np.percentile(reference[inside], levels), np.percentile(matched[inside], levels), atol=0.02 * np.ptp(reference[inside])
    )
    order = np.argsort(image[inside], kind="stable")
    assert (np.diff(matched[inside][order]) >= 0).all()


def test_image_of_few_values_is_mapped_without_a_jump():
    """Percentiles that fall on one value share one place on the scale, the mean of theirs."""
    image = np.repeat(np.array([1.0, 2.0, 3.0], np.float32), 10).reshape(1, 1, -1)

    mapped = on_scale(image, np.ones(image.shape, bool), NYUL, [float(step) for step in range(11)])

    assert np.isfinite(mapped).all()
    assert 3 == len(np.unique(mapped))
    assert mapped[0, 0, 0] < mapped[0, 0, 10] < mapped[0, 0, 20]


def written(path, **changes):
    content = Landmarks(NYUL, {"t1": tuple(float(step) for step in range(11))}).as_json()
    path.write_text(json.dumps({"landmarks": {**content, **changes}}))
    return path


def test_landmarks_are_read_back(tmp_path):
    """What the record holds is the scale, to the bit."""
    assert tuple(float(step) for step in range(11)) == read_landmarks(written(tmp_path / "r.json"), NYUL).values["t1"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": HISTOGRAM}, "wanted landmarks of --intensity nyul, found histogram"),
        ({"percentiles": [1, 2]}, "wanted values at 11 percentiles, found other ones"),
        ({"values": {"t1": [3, 2, *range(9)]}}, "r.json, t1: wanted finite values that do not fall, found others"),
        ({"values": {"t1": [0, None, *range(9)]}}, "r.json, t1: wanted finite values that do not fall, found others"),
        ({"values": {}}, "wanted values at 11 percentiles, found other ones"),
    ],
)
def test_damaged_landmarks_are_refused(tmp_path, changes, said):
    """One line about the file, not a strange image."""
    with pytest.raises(InputError, match=said):
        read_landmarks(written(tmp_path / "r.json", **changes), NYUL)


def test_record_without_landmarks_is_refused(tmp_path):
    """A record of another intensity normalisation holds none."""
    path = tmp_path / "r.json"
    path.write_text('{"landmarks": null}')

    with pytest.raises(InputError, match="wanted landmarks of --intensity nyul, found none"):
        read_landmarks(path, NYUL)
    assert 257 == len(PERCENTILES[HISTOGRAM])
