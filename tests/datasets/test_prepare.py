import numpy as np
import pytest

from mergekit3d.checkpoints.metadata import TaskSpec
from mergekit3d.datasets.labels import decode, encode, output_set
from mergekit3d.datasets.prepare import Box, native_crop, pasted, prepare, restore, subject_labels
from mergekit3d.datasets.subject import Subject
from mergekit3d.datasets.vocabulary import BRATS, FREESURFER
from mergekit3d.errors import InputError, RecipeError
from mergekit3d.volumes.nifti import read_labels, write_volume

SHAPE = (12, 13, 14)
BLOCK = (slice(4, 8), slice(3, 9), slice(5, 10))
TASK = TaskSpec(modalities=("t1", "t2"), outputs={"WT": (1, 2, 4), "ET": (4,)})


class Recorder:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def info(self, message):
        self.lines.append(message)


def intensities(seed):
    image = np.zeros(SHAPE, dtype=np.float32)
    image[BLOCK] = np.random.default_rng(seed).uniform(100, 200, image[BLOCK].shape)
    return image


def label_map():
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[5:7, 4:8, 6:9] = 1
    labels[5, 5, 7] = 4
    return labels


@pytest.fixture
def subject(tmp_path, write):
    images = {"t2": write(tmp_path / "t2.nii.gz", intensities(2)), "t1": write(tmp_path / "t1.nii.gz", intensities(1))}
    return Subject("a", images, write(tmp_path / "seg.nii.gz", label_map()))


def test_crop_and_channels(subject):
    """The crop is the foreground with two voxels around it; channels are in the task's order; the target is encoded."""
    prepared = prepare(subject, 7, TASK, vocabulary=BRATS)

    assert Box((2, 1, 3), (10, 11, 12)) == prepared.box
    assert (7, (2, 8, 10, 9), np.float32) == (prepared.number, prepared.image.shape, prepared.image.dtype.type)
    assert encode(label_map()[prepared.box.slices], TASK).tolist() == prepared.target.tolist()
    assert [2.0, 1.0, 3.0] == prepared.affine[:3, 3].tolist()
    for channel, seed in ((0, 1), (1, 2)):
        values = intensities(seed)[BLOCK]
        np.testing.assert_allclose((values - values.mean()) / values.std(), prepared.image[channel, 2:-2, 2:-2, 2:-2], atol=1e-4)
        assert values.size == np.count_nonzero(prepared.image[channel])


def test_crop_stops_at_the_edge(tmp_path, write):
    """A foreground that reaches the edge has less around it."""
    image = np.zeros(SHAPE, dtype=np.float32)
    image[:3, 1:12, 2:] = intensities(0)[4, 3, 5] + np.arange(3 * 11 * 12).reshape(3, 11, 12)

    prepared = prepare(
        Subject("a", {"t1": write(tmp_path / "t1.nii", image)}, None),
        1,
        TaskSpec(("t1",), {"a": (1,)}),
        vocabulary=BRATS,
        with_target=False,
    )

    assert Box((0, 0, 0), (5, 13, 14)) == prepared.box
    assert prepared.target is None


def test_exclusive_target(subject):
    """Exclusive classes make one map of class indices."""
    task = TaskSpec(modalities=("t1",), outputs={"necrosis": (1,), "enhancing": (4,)}, exclusive=True)

    target = prepare(subject, 1, task, vocabulary=BRATS).target

    assert (8, 10, 9) == target.shape
    assert [0, 1, 2] == np.unique(target).tolist()


@pytest.mark.parametrize(("normalisation", "low", "high"), [("rank", 0, 1), ("none", 100, 200)])
def test_other_normalisations(subject, normalisation, low, high):
    """Ranks lie in 0 to 1; none keeps the intensities."""
    task = TaskSpec(modalities=("t1",), outputs={"WT": (1, 2, 4)}, normalisation=normalisation)

    inside = prepare(subject, 1, task, vocabulary=BRATS).image[0, 2:-2, 2:-2, 2:-2]

    assert low <= inside.min() < low + 0.05 * (high - low)
    assert high >= inside.max() > high - 0.05 * (high - low)


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [("zscore-image", lambda values: (values - values.mean()) / values.std()), ("rescale", lambda values: values / values.max())],
)
def test_normalisation_over_the_whole_image(tmp_path, write, normalisation, expected):
    """Of the box of all that is not 0, as nnU-Net crops: without a margin, zeros inside of it count."""
    image = intensities(1)
    image[5, 4:6, 6] = 0
    task = TaskSpec(modalities=("t1",), outputs={"WT": (1, 2, 4)}, normalisation=normalisation)

    prepared = prepare(Subject("a", {"t1": write(tmp_path / "t1.nii", image)}, None), 1, task, vocabulary=BRATS, with_target=False)

    assert BLOCK == prepared.box.slices
    np.testing.assert_allclose(expected(image[BLOCK].astype(np.float64)), prepared.image[0], atol=1e-5)


def test_restore_inverts_the_crop(subject):
    """What a network says about the crop comes back in its place on the native grid, 0 outside."""
    prepared = prepare(subject, 1, TASK, vocabulary=BRATS)

    restored = restore(prepared.target.astype(np.float32), prepared)

    assert encode(label_map(), TASK).tolist() == restored.tolist()
    assert label_map().tolist() == restore(decode(prepared.target.astype(np.float32), TASK), prepared, order=0).tolist()


def test_decoding_before_pasting(subject):
    """Labels decoded on the crop and then pasted are those decoded on the whole grid, with a spacing too."""
    for spacing_mm in (None, (0.7, 0.8, 0.9)):
        task = TaskSpec(TASK.modalities, TASK.outputs, spacing_mm=spacing_mm)
        prepared = prepare(subject, 1, task, vocabulary=BRATS)
        probabilities = np.random.default_rng(0).uniform(size=prepared.target.shape).astype(np.float32)

        assert (
            decode(restore(probabilities, prepared), task).tolist()
            == pasted(decode(native_crop(probabilities, prepared), task), prepared).tolist()
        )
    with pytest.raises(ValueError, match="do not lie on the grid"):
        restore(probabilities[:, 1:], prepared)


def test_flipped_storage_gives_the_same_sample(tmp_path, write, subject):
    """Files stored left to right and right to left prepare alike, and predictions are written in each file's own order."""
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = SHAPE[0] - 1
    images = {"t1": tmp_path / "f/t1.nii", "t2": tmp_path / "f/t2.nii"}
    flipped = Subject("b", images, tmp_path / "f/seg.nii")
    for name, data in (("t1", intensities(1)), ("t2", intensities(2)), ("seg", label_map())):
        write(tmp_path / f"f/{name}.nii", data, affine)

    straight, turned = (prepare(one, 1, TASK, vocabulary=BRATS) for one in (subject, flipped))
    write_volume(tmp_path / "out.nii", restore(turned.target[0], turned, order=0), native=turned.native)

    assert straight.image.tolist() == turned.image.tolist()
    assert straight.target.tolist() == turned.target.tolist()
    assert affine.tolist() == read_labels(tmp_path / "out.nii").native.affine.tolist()
    assert (label_map() > 0).astype(int).tolist() == read_labels(tmp_path / "out.nii").data.tolist()


def test_resampled_to_a_spacing_and_back(subject):
    """With a spacing, images and target come on that grid; probabilities return to the native one."""
    task = TaskSpec(modalities=("t1",), outputs={"WT": (1, 2, 4)}, spacing_mm=(0.5, 0.5, 0.5))

    prepared = prepare(subject, 1, task, vocabulary=BRATS)
    restored = restore(prepared.target.astype(np.float32), prepared)

    assert (1, 16, 20, 18) == prepared.image.shape == prepared.target.shape
    assert SHAPE == restored.shape[1:]
    assert ((label_map() > 0) == (restored[0] > 0.5)).all()
    np.testing.assert_allclose([1.75, 0.75, 2.75], prepared.affine[:3, 3])


def test_modality_on_another_grid_is_resampled(tmp_path, write, subject):
    """A modality with other voxels is brought onto the label map's grid, and the user is told, without a path."""
    coarse, affine = np.zeros((6, 7, 7), dtype=np.float32), np.diag([2.0, 2, 2, 1])
    coarse[2:4, 2:4, 3:5] = np.arange(1, 9).reshape(2, 2, 2)
    mixed = Subject("a", {"t1": subject.images["t1"], "t2": write(tmp_path / "coarse.nii", coarse, affine)}, subject.label)
    reporter = Recorder()

    prepared = prepare(mixed, 3, TaskSpec(("t2", "t1"), TASK.outputs, normalisation="none"), vocabulary=BRATS, reporter=reporter)

    assert [
        "subject 3: t2 resampled from 6 x 7 x 7 voxels of 2 x 2 x 2 mm from (0, 0, 0) to 12 x 13 x 14 voxels of 1 x 1 x 1 mm from (0, 0, 0)"
    ] == (reporter.lines)
    assert SHAPE == prepared.native.shape
    x, y, z = (at - start for at, start in zip((6, 6, 8), prepared.box.start, strict=True))
    assert 8 == prepared.image[0, x, y, z]
    assert 7.5 == prepared.image[0, x, y, z - 1]


def test_without_labels_the_first_modality_is_the_grid(tmp_path, write, subject):
    """For prediction, results lie on the grid of the first modality."""
    affine = np.diag([2.0, 2, 2, 1])
    coarse = write(tmp_path / "coarse.nii", np.random.default_rng(0).uniform(1, 2, (6, 7, 7)), affine)
    mixed = Subject("a", {"t1": coarse, "t2": subject.images["t2"]}, None)

    assert (6, 7, 7) == prepare(mixed, 1, TASK, vocabulary=BRATS, with_target=False).native.shape


def test_label_map_on_another_grid_is_refused(tmp_path, write, subject):
    """A label map that no image shares the grid with is an error, not resampled."""
    moved = np.eye(4)
    moved[0, 3] = 3
    shifted = Subject("a", subject.images, write(tmp_path / "moved.nii", label_map(), moved))

    with pytest.raises(InputError) as caught:
        prepare(shifted, 1, TASK, vocabulary=BRATS)

    assert (
        "label map and images lie on different grids: subject 1: wanted 12 x 13 x 14 voxels of 1 x 1 x 1 mm from (0, 0, 0), "
        "found 12 x 13 x 14 voxels of 1 x 1 x 1 mm from (3, 0, 0); resample the label map onto an image's grid"
    ) == str(caught.value)


def test_constant_and_empty_images_are_refused(tmp_path, write, subject):
    """An image without contrast teaches nothing: the file is named; where no modality has a foreground, the subject is."""
    flat = write(tmp_path / "flat.nii", (intensities(1) > 0).astype(np.float32) * 5)
    empty = write(tmp_path / "empty.nii", np.zeros(SHAPE, dtype=np.float32))
    one = TaskSpec(("t1",), TASK.outputs)

    for path in (flat, empty):
        with pytest.raises(InputError, match="is constant over the foreground: subject 1, t1: wanted t1 intensities, found one value"):
            prepare(Subject("a", {"t1": path, "t2": subject.images["t2"]}, subject.label), 1, TASK, vocabulary=BRATS)
    with pytest.raises(InputError, match="the images are empty: subject 1: wanted foreground, found one value everywhere"):
        prepare(Subject("a", {"t1": empty}, subject.label), 1, one, vocabulary=BRATS)


def test_labels_are_checked_and_merged(tmp_path, write, subject):
    """Unknown ids are refused before anything is cropped, impossible outputs too; white-matter parcels are merged."""
    strange = np.zeros(SHAPE, dtype=np.int16)
    strange[0, 0, 0] = 3
    parcels = Subject("b", subject.images, write(tmp_path / "wmparc.nii", (label_map() > 0) * 3005))

    with pytest.raises(InputError, match=r"a label map holds unknown labels: subject 1: .* found 3 in 1 voxels"):
        prepare(Subject("b", subject.images, write(tmp_path / "odd.nii", strange)), 1, TASK, vocabulary=BRATS)
    with pytest.raises(RecipeError, match="cannot hold: cerebellum-gm"):
        subject_labels(subject, output_set("hcp-1-7"), BRATS)
    with pytest.raises(InputError, match="a subject has no label map: subject 0"):
        subject_labels(Subject("a", subject.images, None), TASK.outputs, BRATS)
    assert [0, 2] == np.unique(subject_labels(parcels, output_set("hcp-8-14"), FREESURFER).data).tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("spoiled", "told"), [("t2.nii.gz", "subject 7, t2"), ("seg.nii.gz", "subject 7, labels")])
def test_voxels_that_are_not_finite_are_told_by_the_subject_s_number(tmp_path, write, subject, spoiled, told, value):
    """With modality and count; neither name nor path, which may identify a patient, stands in the error."""
    values = (label_map() if spoiled.startswith("seg") else intensities(2)).astype(np.float32)
    values[5, 5, 5:7] = value
    write(tmp_path / spoiled, values)
    with pytest.raises(InputError) as caught:
        prepare(subject, 7, TASK, vocabulary=BRATS)

    found = f"2 of {values.size} are NaN, Inf or beyond float32"
    assert f"cannot read the volume: {told}: wanted finite voxels, found {found}" == str(caught.value)
