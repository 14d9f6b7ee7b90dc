import numpy as np
import pytest

from mergekit3d.datasets.phantom.anatomy import draw_anatomy
from mergekit3d.datasets.phantom.fields import view_of
from mergekit3d.datasets.phantom.tissues import LEFT_TO_RIGHT

# Mean volumes in ml over twelve real FreeSurfer-style label maps of adults (CSF: what lies within 12 mm of the brain).
REAL_ML = {
    "cerebellar cortex": ((8, 47), 110),
    "cortex": ((3, 42, 26, 58), 451),
    "thalamus": ((10, 49), 14.1),
    "amygdala": ((18, 54, 31, 63), 2.9),
    "caudate": ((11, 50), 7.4),
    "pallidum": ((13, 52), 2.8),
    "csf": ((24,), 350),
    "cerebellar white matter": ((7, 46), 29),
    "white matter": ((2, 41), 422),
    "hippocampus": ((17, 53), 7.1),
    "ventricles": ((4, 5, 14, 15, 43, 44), 41),
    "putamen": ((12, 51), 10.4),
    "ventral DC": ((28, 60), 8.0),
    "brainstem": ((16,), 21.8),
}


@pytest.fixture(scope="module")
def brains():
    """Two brains, 2 mm voxels."""
    view = view_of(2.0, finest_mm=2.0)
    return [draw_anatomy(np.random.default_rng(seed), view) for seed in (3, 4)]


@pytest.mark.parametrize(("ids", "real_ml"), REAL_ML.values(), ids=REAL_ML)
def test_volumes_are_those_of_real_brains(brains, ids, real_ml):
    """Every structure of every brain is within a factor of 2 of the mean real one, of 3 for the ventricles, which vary so in reality."""
    factor = 3 if 4 in ids else 2
    for labels in brains:
        volume_ml = np.isin(labels, ids).sum() * 0.008

        assert real_ml / factor < volume_ml < real_ml * factor


def test_ids_outside_the_14_classes_occur(brains):
    """Optic chiasm and vessels, which have to become background."""
    for labels in brains:
        assert {85, 30, 62} <= set(np.unique(labels).tolist())


def test_hemispheres_are_apart(brains):
    """Ids of the left lie left of those of the right, and both sides are of a size."""
    for labels in brains:
        for left in (2, 3, 8, 10, 11, 12, 17, 18):
            right = int(LEFT_TO_RIGHT[left])
            on_left, on_right = np.nonzero(labels == left)[0], np.nonzero(labels == right)[0]

            assert on_left.mean() < on_right.mean()
            assert 0.5 < len(on_left) / len(on_right) < 2


def test_arrangement(brains):
    """RAS+: cerebellum behind and below, brainstem below the thalamus, caudate before it, fluid all around."""
    for labels in brains:
        places = {label: np.array(np.nonzero(labels == label)).mean(axis=1) for label in (3, 8, 10, 11, 16)}

        assert places[8][1] < places[10][1] < places[11][1]
        assert places[8][2] < places[3][2]
        assert places[16][2] < places[10][2]
        outermost = labels[(np.cumsum(labels > 0, axis=2) == 1) & (labels > 0)]
        assert np.mean(outermost == 24) > 0.9


def test_brains_differ(brains):
    """Hardly half of the deep structures' voxels are in the same place in two brains."""
    first, second = (np.isin(labels, (11, 50, 12, 51, 17, 53)) for labels in brains)

    assert 2 * (first & second).sum() / (first.sum() + second.sum()) < 0.75


def test_a_brain_is_the_same_at_every_spacing(brains):
    """The view takes nothing from the generator: volumes agree within a few percent."""
    view = view_of(3.0, finest_mm=3.0)
    coarse = draw_anatomy(np.random.default_rng(3), view)

    for ids in ((2, 41), (3, 42), (10, 49), (16,)):
        assert np.isin(brains[0], ids).sum() * 8 == pytest.approx(np.isin(coarse, ids).sum() * 27, rel=0.05)
