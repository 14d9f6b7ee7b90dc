from pathlib import Path

import numpy as np
import pytest

from mergekit3d.datasets.vocabulary import BRATS, SMALL
from mergekit3d.errors import InputError
from mergekit3d.preprocessing.correction import correct
from mergekit3d.preprocessing.settings import Settings
from mergekit3d.volumes.nifti import Grid, read_image, write_volume

SHAPE = (24, 26, 22)
TODO = "correct the label map, or name another layout"
PLAIN = Settings(n4=False, intensity="none")


def ramp_in_a_block(affine):
    """The world coordinate x + 2 y + 4 z + 500 within a block, 0 around it: a value tells where a voxel lies."""
    indices = np.stack([*np.indices(SHAPE), np.ones(SHAPE)])
    x, y, z, _ = np.tensordot(affine, indices, axes=1)
    image = np.zeros(SHAPE, np.float32)
    block = np.s_[6:18, 7:19, 5:17]
    image[block] = (x + 2 * y + 4 * z + 500)[block]
    return image


@pytest.fixture
def subject(tmp_path):
    """T1 and a label map beyond the foreground on one oblique-free grid stored as LPS, with an origin of its own."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = [40, 30, -20]
    grid = Grid(SHAPE, affine)
    canonical = grid.canonical().affine
    labels = np.zeros(SHAPE, np.uint8)
    labels[9:12, 9:12, 8:11] = 4
    labels[3, 9, 8] = 1
    write_volume(tmp_path / "t1.nii.gz", ramp_in_a_block(canonical), native=grid)
    write_volume(tmp_path / "seg.nii.gz", labels, native=grid)
    return tmp_path


def corrected(folder: Path, settings, names=("t1",), label="seg", vocabulary=BRATS):
    images = {name: folder / f"{name}.nii.gz" for name in names}
    return correct(images, None if label is None else folder / f"{label}.nii.gz", settings, vocabulary, number=7)


def world(result):
    """x + 2 y + 4 z + 500 of every voxel of a result."""
    indices = np.stack([*np.indices(result.mask.shape), np.ones(result.mask.shape)])
    x, y, z, _ = np.tensordot(result.affine, indices, axes=1)
    return x + 2 * y + 4 * z + 500


def test_crop_holds_foreground_and_labels_and_keeps_the_world(subject):
    """The box covers both and the margin, and not more; every voxel keeps its place and its value."""
    result = corrected(subject, PLAIN)

    # The block begins at 6, the lone label voxel stands at 3.
    assert {"start": [1, 5, 3], "stop": [20, 21, 19]} == result.facts["crop"]
    assert (19, 16, 16) == result.labels.shape
    assert (1, 27) == ((result.labels == 1).sum(), (result.labels == 4).sum())
    np.testing.assert_allclose(world(result)[result.mask], result.images["t1"][result.mask], atol=1e-3)
    assert 12**3 == result.mask.sum()


def test_no_crop_keeps_the_field_of_view(subject):
    """--no-crop: the grid of the file."""
    result = corrected(subject, Settings(n4=False, crop=False, intensity="none"))

    assert SHAPE == result.mask.shape
    assert result.facts["crop"] is None
    np.testing.assert_array_equal(read_image(subject / "t1.nii.gz").affine, result.affine)


def test_resampling_keeps_the_world_and_the_labels(subject):
    """Half the resolution: a ramp stays the same function of the world inside; labels are those that were there, by nearest voxels."""
    result = corrected(subject, Settings(n4=False, spacing_mm=(2, 2, 2), intensity="none"))

    assert [2.0, 2.0, 2.0] == result.facts["result"]["spacing_mm"]
    inner = np.zeros(result.mask.shape, bool)
    inner[4:7, 3:6, 3:6] = True
    np.testing.assert_allclose(world(result)[inner], result.images["t1"][inner], atol=0.1)
    assert set(np.unique(result.labels)) <= {0, 1, 4}
    assert (result.labels == 4).any()


def test_modality_on_its_own_grid_is_brought_to_the_label_map(subject):
    """Grids may differ: that of the label map is kept, and the record says what moved."""
    fine = np.diag([0.5, 0.5, 0.5, 1.0])
    fine[:3, 3] = [10, 2, -22]
    shape = (80, 80, 80)
    indices = np.stack([*np.indices(shape), np.ones(shape)])
    x, y, z, _ = np.tensordot(fine, indices, axes=1)
    write_volume(subject / "t2.nii.gz", (x + 2 * y + 4 * z + 500).astype(np.float32), native=Grid(shape, fine))

    result = corrected(subject, PLAIN, names=("t1", "t2"))

    assert ["t2"] == result.facts["grid"]["resampled_to_it"]
    assert result.images["t1"].shape == result.images["t2"].shape == result.labels.shape
    both = (result.images["t1"] > 0) & (result.images["t2"] > 400)
    assert both.any()
    np.testing.assert_allclose(result.images["t1"][both], result.images["t2"][both], atol=1)


def test_n4_leaves_the_background_alone(subject):
    """Zeros stay zeros, and the record tells how strong the field was."""
    result = corrected(subject, Settings(n4_shrink=1, intensity="none"))

    assert not result.images["t1"][~result.mask].any()
    facts = result.facts["n4"]["t1"]
    assert [1, 1, 1] == facts["shrink"]
    assert facts["field_ratio"] > 1


def test_errors_call_a_subject_by_its_number(subject):
    """A path may hold a patient's name: missing, damaged, not finite, unknown label, empty."""
    said = []

    def note(**how):
        with pytest.raises(InputError) as raised:
            corrected(subject, PLAIN, **how)
        said.append(str(raised.value))

    note(names=("t1", "flair"))
    (subject / "t2.nii.gz").write_bytes((subject / "t1.nii.gz").read_bytes()[:-40])
    note(names=("t1", "t2"))
    image = np.full(SHAPE, np.nan, np.float32)
    write_volume(subject / "nan.nii.gz", image, native=Grid(SHAPE, np.eye(4)))
    note(names=("nan",), label=None)
    write_volume(subject / "bad.nii.gz", np.full(SHAPE, 3, np.uint8), native=read_image(subject / "t1.nii.gz").native)
    note(label="bad")
    write_volume(subject / "empty.nii.gz", np.zeros(SHAPE, np.float32), native=Grid(SHAPE, np.eye(4)))
    note(names=("empty",), label=None)

    assert [
        "no such file: subject 7, flair",
        "cannot read the volume: subject 7, t2: wanted a whole file, found one that ends early; copy or download it again",
        f"cannot read the volume: subject 7, nan: wanted finite voxels, found {image.size} of {image.size} are NaN, Inf or beyond float32",
        f"a label map holds unknown labels: subject 7: wanted ids of the BraTS labels (0, 1, 2, 4), found 3 in {image.size} voxels; {TODO}",
        "the images are empty: subject 7: wanted foreground, found one value everywhere",
    ] == said


def test_plain_folders_may_hold_freesurfer_labels(subject):
    """No task is named here: the widest vocabulary of the layout holds, and ids are kept as they are."""
    labels = np.zeros(SHAPE, np.int16)
    labels[8:10, 8:10, 8:10] = 2035
    write_volume(subject / "truth.nii.gz", labels, native=read_image(subject / "t1.nii.gz").native)

    assert 2035 == corrected(subject, PLAIN, label="truth", vocabulary=SMALL).labels.max()
