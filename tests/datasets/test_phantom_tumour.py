import numpy as np
import pytest
from scipy import ndimage

from mergekit3d.datasets.phantom.anatomy import draw_anatomy
from mergekit3d.datasets.phantom.fields import View
from mergekit3d.datasets.phantom.tissues import ENHANCING, NECROSIS
from mergekit3d.datasets.phantom.tumour import draw_tumour

VIEW = View((48, 48, 48), 4.0, 2)
VOXEL_ML = VIEW.fine_mm**3 / 1000


@pytest.fixture(scope="module")
def brain():
    return draw_anatomy(np.random.default_rng(7), VIEW)


@pytest.fixture(scope="module")
def tumours(brain):
    """Three of high and three of low grade in one brain."""
    return [(seed < 3, draw_tumour(np.random.default_rng(seed), brain, VIEW, high_grade=seed < 3)) for seed in range(6)]


def test_every_region_is_there(tumours):
    """Labels 1, 2 and 4 of BraTS, each of at least half a millilitre; the whole tumour is of a realistic size."""
    for _, tumour in tumours:
        for label in (1, 2, 4):
            assert (tumour.regions == label).sum() * VOXEL_ML > 0.5
        assert 10 < (tumour.regions > 0).sum() * VOXEL_ML < 250


def test_core_is_of_its_planned_size_whatever_lies_at_its_centre(brain):
    """The side is that of most tissue around the centre: lesions, which belong to no side, may lie right there."""
    spotted = brain.copy()
    spotted[np.isin(brain, (2, 41)) & (np.random.default_rng(0).random(brain.shape) < 0.6)] = 77

    for seed in range(4):
        tumour = draw_tumour(np.random.default_rng(seed), spotted, VIEW, high_grade=True)
        assert np.isin(tumour.regions, (1, 4)).sum() * VOXEL_ML > 6


def test_regions_are_nested(tumours):
    """In high grades hardly any necrosis touches edema or healthy tissue: the rim lies between."""
    for high_grade, tumour in tumours:
        if high_grade:
            dead = tumour.regions == 1
            beyond = ndimage.binary_dilation(~np.isin(tumour.regions, (1, 4)))

            assert (dead & beyond).sum() < 0.15 * dead.sum()


def test_grades_differ(tumours):
    """High grades have more edema and a larger share of enhancing tumour."""
    edema = {high: np.mean([(t.regions == 2).sum() for grade, t in tumours if grade == high]) for high in (True, False)}
    rim = {
        high: np.mean([(t.regions == 4).sum() / np.isin(t.regions, (1, 4)).sum() for g, t in tumours if g == high])
        for high in (True, False)
    }

    assert edema[True] > edema[False]
    assert rim[True] > rim[False]


def test_tumour_takes_up_tissue(brain, tumours):
    """Core and rim replace what was there; edema lies in white matter; nothing lies outside the brain."""
    for _, tumour in tumours:
        assert np.array_equal(tumour.regions == 1, tumour.tissues == NECROSIS)
        assert np.array_equal(tumour.regions == 4, tumour.tissues == ENHANCING)
        assert np.isin(tumour.tissues[tumour.regions == 2], (2, 41)).all()
        assert np.array_equal(brain > 0, tumour.tissues > 0)
        assert not tumour.regions[brain == 0].any()


def test_edema_fades_out(tumours):
    """Its share is above one half where it is labelled, from 0 to 1, and there is some beyond the label."""
    for _, tumour in tumours:
        assert tumour.infiltration[tumour.regions == 2].min() > 0.5
        assert 0 <= tumour.infiltration.min() <= tumour.infiltration.max() <= 1
        assert (tumour.infiltration[tumour.regions == 0] > 0).any()


def test_mass_pushes_tissue_aside(brain, tumours):
    """Around the tumour tissue has moved, far from it none has."""
    for _, tumour in tumours[::3]:
        moved = (tumour.tissues != brain) & (tumour.regions == 0)
        distance = ndimage.distance_transform_edt(tumour.regions == 0) * VIEW.fine_mm

        assert moved.any()
        assert distance[moved].max() < 60


def test_tumours_sit_in_different_places(tumours):
    """Six tumours have six centres, on both sides."""
    centres = np.array([np.array(np.nonzero(tumour.regions)).mean(axis=1) for _, tumour in tumours])

    assert np.linalg.norm(centres[:, None] - centres[None], axis=-1)[~np.eye(6, dtype=bool)].min() > 2
    assert 0 < (centres[:, 0] > VIEW.shape[0] * VIEW.fineness / 2).sum() < 8


def test_a_brain_with_little_white_matter_gets_a_tumour_too():
    """Where no point is deep enough the deepest serves."""
    labels = np.zeros((96, 96, 96), dtype=np.int16)
    labels[30:70, 30:70, 30:70] = 3
    labels[50:54, 50:54, 50:54] = 2

    tumour = draw_tumour(np.random.default_rng(0), labels, VIEW, high_grade=True)

    assert (tumour.regions == 4).any()
