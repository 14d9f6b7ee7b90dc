import json

import numpy as np
import pytest

from mergekit3d.checkpoints import TaskSpec
from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.labels import output_set
from mergekit3d.datasets.prepare import prepare
from mergekit3d.errors import InputError, RecipeError
from mergekit3d.volumes.nifti import Channel, Grid, write_volume

BRATS = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
LABELS = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}


def describe(root, modality=BRATS, labels=LABELS, training=("BRATS_001", "BRATS_002"), test=("BRATS_485",)):
    """dataset.json as the archives have it."""
    content = {
        "name": "BRATS",
        "description": "Gliomas segmentation tumour and oedema in on brain images",
        "release": "2.0 04/05/2018",
        "tensorImageSize": "4D",
        "modality": modality,
        "labels": labels,
        "numTraining": len(training),
        "numTest": len(test),
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in training],
        "test": [f"./imagesTs/{name}.nii.gz" for name in test],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def brats(tmp_path, touch):
    """The brain tumours, with the litter that the real archives hold."""
    files = ["imagesTr/BRATS_001", "imagesTr/BRATS_002", "labelsTr/BRATS_001", "labelsTr/BRATS_002", "imagesTs/BRATS_485"]
    litter = ["imagesTr/._BRATS_001", "labelsTr/._BRATS_001", "imagesTs/._BRATS_485"]
    return describe(touch(tmp_path, *(f"{name}.nii.gz" for name in [*files, *litter]), "._dataset.json"))


def test_modalities_are_volumes_of_one_file(brats):
    """Named by dataset.json, in the words of this project; files that begin with a dot are none."""
    dataset = find_dataset(brats)
    first = dataset.subjects[0]

    assert ("decathlon", ["BRATS_001", "BRATS_002"], ()) == (
        dataset.layout,
        [subject.name for subject in dataset.subjects],
        dataset.remarks,
    )
    assert dict.fromkeys(("flair", "t1", "t1ce", "t2"), brats / "imagesTr/BRATS_001.nii.gz") == first.images
    assert {"flair": Channel(0, 4), "t1": Channel(1, 4), "t1ce": Channel(2, 4), "t2": Channel(3, 4)} == first.channels
    assert brats / "labelsTr/BRATS_001.nii.gz" == first.label


def test_folder_of_test_images(brats):
    """They have no labels."""
    (only,) = find_dataset(brats / "imagesTs").subjects
    assert ("BRATS_485", None, 4) == (only.name, only.label, len(only.channels))


def test_regions_are_those_of_its_own_numbers(brats):
    """Edema is 1 there: the regions of the challenges would take it for the core."""
    vocabulary = find_dataset(brats).vocabulary

    assert {0, 1, 2, 3} == vocabulary.ids
    assert vocabulary == vocabulary.for_outputs(output_set("brats-msd"))
    with pytest.raises(RecipeError, match="label 1 is something else in the Decathlon labels: TC: found 1, 3; use the regions brats-msd"):
        vocabulary.for_outputs(output_set("brats-2023"))
    with pytest.raises(RecipeError, match="label 1 is something else in the Decathlon labels: TC: found 1, 4; use the regions brats-msd"):
        vocabulary.for_outputs(output_set("brats"))
    with pytest.raises(RecipeError, match="an output asks for a label that these data cannot hold: active"):
        vocabulary.for_outputs({"active": (4,)})


@pytest.mark.parametrize(
    ("modality", "name", "found"),
    [({"0": "MRI"}, "la_003", ["mri"]), ({"0": "CT"}, "amos_0001", ["ct"]), ({"0": "T2", "1": "ADC"}, "prostate_16", ["t2", "adc"])],
)
def test_other_tasks(tmp_path, touch, modality, name, found):
    """One modality is a 3D file; four digits behind a name are a channel of nnU-Net's only if there are so many."""
    describe(touch(tmp_path, f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz"), modality, training=[name])
    dataset = find_dataset(tmp_path)
    (only,) = dataset.subjects

    assert ("decathlon", found, len(found) > 1) == (dataset.layout, list(only.images), bool(only.channels))
    assert only.label is not None


def test_names_like_channels_of_nnunet(tmp_path, touch):
    """Label maps that are called as the images are tell them apart, for the test images too."""
    names = ["case_0000", "case_0001"]
    touch(tmp_path, *(f"{folder}/{name}.nii.gz" for folder in ("imagesTr", "labelsTr", "imagesTs") for name in names))
    describe(tmp_path, {"0": "T1w", "1": "T2w"}, training=names)

    assert ("decathlon", names) == (find_dataset(tmp_path).layout, [subject.name for subject in find_dataset(tmp_path).subjects])
    assert "decathlon" == find_dataset(tmp_path / "imagesTs").layout


def test_label_maps_of_other_names(tmp_path, touch):
    """dataset.json says which belongs to which, as in data sets that took over the format."""
    touch(tmp_path, "imagesTr/img0035.nii.gz", "labelsTr/label0035.nii.gz")
    training = [{"image": "imagesTr/img0035.nii.gz", "label": "labelsTr/label0035.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "training": training}))

    assert tmp_path / "labelsTr/label0035.nii.gz" == find_dataset(tmp_path).subjects[0].label


def test_part_of_an_archive_is_told(brats):
    """Images that are listed and not there, and the other way round."""
    describe(brats, training=("BRATS_001", "BRATS_003", "BRATS_004"))
    assert (
        "2 of the 3 images that dataset.json lists under training are not there",
        "1 of the 2 images that are there are not listed in dataset.json",
    ) == find_dataset(brats).remarks


def test_subject_is_prepared_from_its_one_file(tmp_path):
    """Modalities come in the order of the task, whatever that of the file."""
    describe(tmp_path, training=["BRATS_001"])
    rng = np.random.default_rng(0)
    image = rng.normal(100, 10, (8, 9, 7, 4)).astype(np.float32)
    labels = rng.integers(0, 4, (8, 9, 7)).astype(np.uint8)
    grid = Grid((8, 9, 7), np.diag([1.0, 2.0, 3.0, 1.0]))
    write_volume(tmp_path / "imagesTr/BRATS_001.nii.gz", image, native=grid)
    write_volume(tmp_path / "labelsTr/BRATS_001.nii.gz", labels, native=grid)
    dataset = find_dataset(tmp_path)
    task = TaskSpec(("t2", "flair"), output_set("brats-msd"), normalisation="none")

    prepared = prepare(dataset.subjects[0].of(task.modalities), 1, task, vocabulary=dataset.vocabulary)

    assert np.array_equal(np.moveaxis(image[..., [3, 0]], -1, 0), prepared.image)
    assert np.array_equal(np.stack([labels == 3, labels > 1, labels > 0]), prepared.target)


def test_file_with_other_volumes_than_named(tmp_path):
    """Which is which would be a guess."""
    describe(tmp_path, training=["BRATS_001"])
    write_volume(tmp_path / "imagesTr/BRATS_001.nii.gz", np.ones((4, 4, 4, 3), np.float32), native=Grid((4, 4, 4), np.eye(4)))
    dataset = find_dataset(tmp_path)
    with pytest.raises(InputError, match="wanted 4 volumes, one a modality, found 4x4x4x3; correct the modalities of the data set"):
        prepare(dataset.subjects[0], 1, TaskSpec(("t1",), {"a": (1,)}), vocabulary=dataset.vocabulary, with_target=False)


@pytest.mark.parametrize("entries", [True, 3, [5, {"image": None}, {"image": [1], "label": {}}], "x"])
def test_damaged_lists_do_not_matter(brats, entries):
    """The images are what is there."""
    content = json.loads((brats / "dataset.json").read_text())
    (brats / "dataset.json").write_text(json.dumps({**content, "training": entries, "test": entries}))
    assert (2, ()) == (len(find_dataset(brats).subjects), find_dataset(brats).remarks)


def test_damaged_modalities(brats):
    """Something else in place of the names."""
    describe(brats, modality={"0": 1})
    with pytest.raises(InputError, match=r"cannot read the modalities: .*dataset.json: wanted"):
        find_dataset(brats)
