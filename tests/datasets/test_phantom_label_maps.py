import gzip

import numpy as np
import pytest

from mergekit3d.datasets.phantom.anatomy import draw_anatomy
from mergekit3d.datasets.phantom.fields import view_of
from mergekit3d.datasets.phantom.label_maps import LabelMaps
from mergekit3d.datasets.phantom.tissues import LEFT_TO_RIGHT, SWAPPED_SIDES
from mergekit3d.errors import InputError, Problems
from mergekit3d.volumes.nifti import Grid, write_volume

LIA = np.array([[-3.0, 0, 0, 95], [0, 0, 3, -120], [0, -3, 0, 88], [0, 0, 0, 1]])


def head(seed):
    """A brain of 3 mm voxels in a skull (507) with fluid in the neck."""
    labels = draw_anatomy(np.random.default_rng(seed), view_of(3.0, finest_mm=3.0))
    low = np.flatnonzero((labels > 0).any(axis=(0, 1)))[0]
    labels[28:36, 28:36, : low - 1] = 24
    labels[:, 2, :] = 507
    return labels


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Two heads, one stored as RAS, one as LIA, beside a file that is none."""
    folder = tmp_path_factory.mktemp("maps")
    write_volume(folder / "b.nii.gz", head(1), native=Grid((64, 64, 64), np.diag([3.0, 3, 3, 1])))
    write_volume(folder / "a.nii", head(2), native=Grid((64, 64, 64), LIA))
    (folder / "README.md").write_text("not a map")
    return folder


def test_brain_is_kept_and_the_rest_is_background(maps):
    """Skull and neck go; volumes stay within some percent; the field of view is the usual one."""
    labels, view = LabelMaps(maps).draw(np.random.default_rng(0), 1, 6.0)

    assert (32, 32, 32) == view.shape
    assert 507 not in labels
    for ids in ((2, 41), (3, 42), (10, 49), (16,)):
        real_ml = np.isin(head(1), ids).sum() * 0.027
        assert real_ml == pytest.approx(np.isin(labels, ids).sum() * view.fine_mm**3 / 1000, rel=0.35)
    lowest = np.flatnonzero((labels > 0).any(axis=(0, 1)))[0] * view.fine_mm
    lowest_tissue = np.flatnonzero(np.isin(labels, (7, 8, 16, 46, 47)).any(axis=(0, 1)))[0] * view.fine_mm
    assert lowest_tissue - lowest < 20


@pytest.mark.parametrize("pick", [0, 1])
def test_left_stays_left(maps, pick):
    """Whatever the file's axes, and in mirrored subjects too, ids of the left lie left."""
    for seed in range(4):
        labels, _ = LabelMaps(maps).draw(np.random.default_rng(seed), pick, 6.0)
        for left in (2, 3, 8, 10, 12):
            right = int(LEFT_TO_RIGHT[left])
            assert np.nonzero(labels == left)[0].mean() < np.nonzero(labels == right)[0].mean()


def test_subjects_of_one_map_differ(maps):
    """Deformation and position are each subject's own."""
    first, second = (LabelMaps(maps).draw(np.random.default_rng(seed), 0, 6.0)[0] for seed in (0, 1))
    deep = [np.isin(labels, (10, 49, 11, 50, 12, 51)) for labels in (first, second)]

    assert 0.2 < 2 * (deep[0] & deep[1]).sum() / (deep[0].sum() + deep[1].sum()) < 0.95


def test_long_heads_are_made_to_fit(tmp_path):
    """A head of 4 mm voxels, a third too long, still lies within the field of view."""
    write_volume(tmp_path / "long.nii.gz", head(1), native=Grid((64, 64, 64), np.diag([4.0, 4, 4, 1])))

    labels, view = LabelMaps(tmp_path).draw(np.random.default_rng(0), 0, 6.0)

    assert (32, 32, 32) == view.shape
    assert not labels[:, [0, -1]].any()
    assert 140 < np.flatnonzero((labels > 0).any(axis=(0, 2))).size * view.fine_mm <= 192


def test_each_run_of_subjects_takes_each_map_once(maps):
    """As many subjects as there are maps use all of them; maps are told by their place in the order of names."""
    source = LabelMaps(maps)

    assert 2 == len(source)
    assert [0, 1] == sorted(source.pick(np.random.default_rng(9), index) for index in (0, 1))


def test_swapped_sides_are_their_own_inverse():
    """Exchanging left and right twice changes nothing, and nothing changes on the midline."""
    ids = np.arange(len(SWAPPED_SIDES))

    np.testing.assert_array_equal(ids, SWAPPED_SIDES[SWAPPED_SIDES])
    assert [41, 3, 2035, 16, 24] == SWAPPED_SIDES[[2, 42, 1035, 16, 24]].tolist()


def test_missing_or_empty_folder(tmp_path):
    """One line that names the folder and what was wanted."""
    with pytest.raises(InputError, match="no such folder: .*nowhere"):
        LabelMaps(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no label maps in the folder: .*: wanted files that end in .nii or .nii.gz"):
        LabelMaps(tmp_path)


def test_all_bad_maps_are_told_at_once(tmp_path):
    """A map without brain and a truncated one, both before any work."""
    write_volume(tmp_path / "skull.nii.gz", np.full((4, 4, 4), 507), native=Grid((4, 4, 4), np.eye(4)))
    whole = gzip.compress(b"x" * 1000)
    (tmp_path / "torn.nii.gz").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(Problems) as raised:
        LabelMaps(tmp_path).check([0, 1])

    assert 65 == raised.value.exit_code
    first, second = str(raised.value).splitlines()
    assert "no brain in the label map: " in first
    assert "skull.nii.gz: wanted FreeSurfer ids such as 2, 3, 41, 42, found only 507" in first
    assert "torn.nii.gz" in second
