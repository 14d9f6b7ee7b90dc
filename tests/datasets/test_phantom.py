import json
from pathlib import Path

import numpy as np
import pytest

from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.phantom import phantom
from mergekit3d.errors import InputError, UsageError
from mergekit3d.progress import Silent
from mergekit3d.volumes.nifti import read_image, read_labels

CLASSES = (
    (8, 47), (3, 42, 26, 58), (10, 49), (18, 54, 31, 63), (11, 50), (13, 52), (24,), (7, 46), (2, 41), (17, 53), (4, 5, 14, 15, 43, 44),
    (12, 51), (28, 60), (16,),
)  # fmt: skip
REGIONS = ((4,), (1, 4), (1, 2, 4))


@pytest.fixture(scope="module")
def hcp(tmp_path_factory):
    """Two subjects of 3 mm."""
    out = tmp_path_factory.mktemp("phantom") / "hcp"
    return out, phantom(out, layout="hcp", subjects=2, spacing_mm=3.0, seed=0)


@pytest.fixture(scope="module")
def brats(tmp_path_factory):
    """Two subjects of 3 mm."""
    out = tmp_path_factory.mktemp("phantom") / "brats"
    return out, phantom(out, layout="brats", subjects=2, spacing_mm=3.0, seed=1)


def files(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in Path(out).rglob("*.nii.gz")}


def test_hcp_layout(hcp):
    """Six-digit folders as the pipeline of the HCP leaves them, found as such."""
    out, result = hcp

    found = find_dataset(out)

    assert "hcp" == found.layout
    assert ["100001", "100002"] == [subject.name for subject in found.subjects] == [subject.name for subject in result.subjects]
    assert {"t1", "t2"} == set(found.subjects[0].images)
    assert (out / "100002" / "T1w" / "aparc+aseg.nii.gz").is_file()


def test_brats_layout(brats):
    """HGG and LGG folders of BraTS 2018, found as such, each subject under its grade."""
    out, result = brats

    found = find_dataset(out)

    assert "brats2018" == found.layout
    assert ["Brats18_S1_0001_1", "Brats18_S1_0002_1"] == [subject.name for subject in found.subjects]
    assert {"t1", "t1ce", "t2", "flair"} == set(found.subjects[0].images)
    for subject in result.subjects:
        assert (out / subject.grade / subject.name / f"{subject.name}_seg.nii.gz").is_file()


def test_labels(hcp, brats):
    """All 14 classes and ids outside them in every brain; 1, 2 and 4 in every tumour, and nothing else."""
    for subject in find_dataset(hcp[0]).subjects:
        ids = set(np.unique(read_labels(subject.label).data).tolist())
        assert all(ids & set(members) for members in CLASSES)
        assert ids & {30, 62, 85}
    for subject in find_dataset(brats[0]).subjects:
        assert [0, 1, 2, 4] == np.unique(read_labels(subject.label).data).tolist()


def test_one_grid_a_subject(hcp, brats):
    """Images and labels of a subject share shape and affine; 64^3 voxels of 3 mm; zero where, and only where, no image has brain."""
    for out, _ in (hcp, brats):
        for subject in find_dataset(out).subjects:
            labels = read_labels(subject.label)
            images = [read_image(path) for path in subject.images.values()]
            for image in images:
                assert (64, 64, 64) == image.data.shape
                assert (3.0, 3.0, 3.0) == image.spacing_mm
                np.testing.assert_array_equal(labels.affine, image.affine)
                np.testing.assert_array_equal(labels.native.affine, image.native.affine)
                np.testing.assert_array_equal(images[0].data == 0, image.data == 0)
            assert not labels.data[images[0].data == 0].any()


def test_left_is_left_in_space(hcp):
    """Through the file's affine, ids of the left lie at smaller x, whatever the stored axes."""
    for subject in find_dataset(hcp[0]).subjects:
        labels = read_labels(subject.label)
        left, right = (labels.affine[0] @ [*np.array(np.nonzero(labels.data == label)).mean(axis=1), 1] for label in (2, 41))
        assert left < right - 30


def test_a_subject_does_not_depend_on_how_many_are_asked_for(tmp_path, brats):
    """The second of two is, byte for byte, the one that is asked for alone."""
    alone = phantom(f"{tmp_path}/alone", layout="brats", subjects=1, spacing_mm=3.0, seed=1, first=1)

    assert brats[1].subjects[1] == alone.subjects[0]
    everything = files(brats[0])
    assert 5 == len(files(tmp_path / "alone"))
    assert all(everything[name] == content for name, content in files(tmp_path / "alone").items())


def test_seeds_differ(tmp_path):
    """Another seed gives other brains."""
    for seed in (0, 1):
        phantom(tmp_path / str(seed), subjects=1, spacing_mm=6.0, seed=seed)
    first, second = (read_labels(tmp_path / seed / "100001" / "T1w" / "aparc+aseg.nii.gz").data for seed in "01")

    assert np.mean(first != second) > 0.02


@pytest.mark.parametrize(("layout", "groups"), [("hcp", CLASSES), ("brats", REGIONS)])
def test_no_threshold_separates_the_classes(request, layout, groups):
    """The best interval of any one modality, chosen with the truth at hand for every subject, leaves a network much to learn.

    Measured over 12 subjects at 3 mm: mean Dice 0.85 for CSF, 0.84 for cerebral white matter, 0.74 for the cortex, at most 0.35
    for every other class; 0.56 for WT, 0.46 for ET, 0.35 for TC.
    """
    best = []
    for subject in find_dataset(request.getfixturevalue(layout)[0]).subjects:
        labels = read_labels(subject.label).data
        images = [read_image(path).data for path in subject.images.values()]
        brain = images[0] > 0
        best.append([[best_interval_dice(image[brain], np.isin(labels, ids)[brain]) for image in images] for ids in groups])
    dice = np.mean(best, axis=0).max(axis=1)

    assert dice.max() < (0.85 if layout == "hcp" else 0.7)
    assert sum(dice < 0.5) >= len(groups) - 3


def best_interval_dice(values, member, bins=64):
    """Dice of the best range of brightness, single thresholds included, over quantiles."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    chosen, hits = (np.concatenate([[0], np.histogram(v, edges)[0].cumsum()]) for v in (values, values[member]))
    return (2 * (hits[None] - hits[:, None]) / np.maximum(chosen[None] - chosen[:, None] + member.sum(), 1)).max()


def test_labels_folder(tmp_path, hcp):
    """Rendered from real maps: the number of the map is told, spacing is 1 mm unless given, ids stay FreeSurfer's."""
    maps = tmp_path / "maps"
    maps.mkdir()
    for name in ("100001", "100002"):
        (maps / f"{name}.nii.gz").write_bytes((hcp[0] / name / "T1w" / "aparc+aseg.nii.gz").read_bytes())

    result = phantom(tmp_path / "out", layout="hcp", subjects=3, labels=maps, spacing_mm=6.0)

    assert [1, 2] == sorted(subject.label_map for subject in result.subjects[:2])
    assert {(32, 32, 32)} == {subject.shape for subject in result.subjects}
    for subject in find_dataset(tmp_path / "out").subjects:
        ids = set(np.unique(read_labels(subject.label).data).tolist())
        assert all(ids & set(members) for members in CLASSES)


def test_result_as_json(hcp):
    """Plain JSON with the grid, the orientation and no path in it."""
    content = json.loads(json.dumps(hcp[1].as_json()))

    assert ("hcp", "hcp", 0, 3.0, ["t1", "t2"]) == tuple(content[key] for key in ("folder", "layout", "seed", "spacing_mm", "modalities"))
    assert {"number": 1, "name": "100001", "shape": [64, 64, 64], "grade": None, "label_map": None} == {
        key: value for key, value in content["subjects"][0].items() if key != "orientation"
    }
    assert str(hcp[0].parent) not in json.dumps(content)
    assert ["hcp: 2 subjects in the layout hcp with t1, t2, 64 x 64 x 64 voxels of 3 mm: 100001 to 100002"] == hcp[1].lines()


def test_an_output_that_holds_something_is_refused(tmp_path):
    """Nothing is touched without force; with it, what stays there is told."""
    (tmp_path / "notes").mkdir()
    with pytest.raises(UsageError, match="the output exists already: .*pass --force"):
        phantom(tmp_path, subjects=1, spacing_mm=6.0)
    assert ["notes"] == [path.name for path in tmp_path.iterdir()]

    warnings = []

    class Listening(Silent):
        def warn(self, message):
            warnings.append(message)

    phantom(tmp_path, subjects=1, spacing_mm=6.0, force=True, reporter=Listening())
    assert [f"{tmp_path.name} holds 1 other entry, which stays: notes"] == warnings
    assert (tmp_path / "100001").is_dir()


def test_a_file_in_place_of_the_output_is_refused(tmp_path):
    """Even with force."""
    (tmp_path / "out").write_text("keep")

    with pytest.raises(UsageError, match="cannot write a data set: .*out: wanted a folder, found a file"):
        phantom(tmp_path / "out", force=True)
    assert "keep" == (tmp_path / "out").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "hpc"}, "unknown phantom layout 'hpc'; did you mean 'hcp'?"),
        ({"subjects": 0}, "cannot make a phantom: wanted at least 1 subject, found 0"),
        ({"spacing_mm": 0.1}, "cannot make a phantom: wanted a spacing of 0.7 to 6 mm, found 0.1"),
        ({"spacing_mm": float("nan")}, "cannot make a phantom: wanted a spacing of 0.7 to 6 mm, found nan"),
        ({"seed": -1}, "cannot make a phantom: wanted a seed of at least 0, found -1"),
        ({"first": -2}, "cannot make a phantom: wanted a first subject of at least 0, found -2"),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments, message):
    """One line, exit code 2, and no output folder."""
    with pytest.raises(UsageError) as raised:
        phantom(tmp_path / "out", **arguments)

    assert message == str(raised.value)
    assert 2 == raised.value.exit_code
    assert not (tmp_path / "out").exists()


def test_bad_label_maps_leave_no_output(tmp_path):
    """A missing folder is told before anything is written."""
    with pytest.raises(InputError) as raised:
        phantom(tmp_path / "out", labels=tmp_path / "maps")

    assert 65 == raised.value.exit_code
    assert not (tmp_path / "out").exists()
