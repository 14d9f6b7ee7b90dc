import json

import numpy as np
import pytest

from mergekit3d.datasets import find_dataset, select
from mergekit3d.datasets.labels import output_set
from mergekit3d.errors import InputError, MergeKit3DError, RecipeError

CHANNELS = {"0": "T1", "1": "T1Gd", "2": "FLAIR"}


def describe(root, **more):
    root.mkdir(parents=True, exist_ok=True)
    content = {"channel_names": CHANNELS, "labels": {"background": 0, "liver": 1, "tumour": 2}, **more}
    (root / "dataset.json").write_text(json.dumps(content))


def tree(root, touch, folder="imagesTr", labels="labelsTr"):
    names = [f"{folder}/{case}_{channel:04}.nii.gz" for case in ("BRATS_001", "BRATS_002") for channel in range(3)]
    return touch(root, *names, *([f"{labels}/BRATS_001.nii.gz", f"{labels}/BRATS_002.nii.gz"] if labels else []))


def test_channels_go_by_their_names(tmp_path, touch):
    """Numbers of files are channels of dataset.json; a case may have underscores in its name."""
    describe(tmp_path)
    dataset = find_dataset(tree(tmp_path, touch))

    assert ("nnunet", ["BRATS_001", "BRATS_002"]) == (dataset.layout, [subject.name for subject in dataset.subjects])
    first = dataset.subjects[0]
    assert {"t1": "BRATS_001_0000.nii.gz", "t1ce": "BRATS_001_0001.nii.gz", "flair": "BRATS_001_0002.nii.gz"} == {
        name: path.name for name, path in first.images.items()
    }
    assert tmp_path / "labelsTr/BRATS_001.nii.gz" == first.label


def test_folder_of_test_images(tmp_path, touch):
    """dataset.json stands beside it; labels are in labelsTs, where there are any."""
    describe(tmp_path)
    tree(tmp_path, touch, "imagesTs", labels=None)
    assert [None, None] == [subject.label for subject in find_dataset(tmp_path / "imagesTs").subjects]
    tree(tmp_path, touch, "imagesTs", labels="labelsTs")
    assert tmp_path / "labelsTs/BRATS_001.nii.gz" == find_dataset(tmp_path / "imagesTs").subjects[0].label


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        ({"background": 0, "liver": 1, "tumour": 2}, {0, 1, 2}),
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}, {0, 1, 2, 3, 4}),
    ],
)
def test_ids_are_those_of_the_description(tmp_path, touch, labels, ids):
    """Of labels and of regions; the ignore label is read as background, any other id is an error."""
    describe(tmp_path, labels=labels)
    vocabulary = find_dataset(tree(tmp_path, touch)).vocabulary

    assert ids == vocabulary.ids
    assert [0, 1, 2, 0 if 4 in ids else 4] == vocabulary.merge(np.array([0, 1, 2, 4])).tolist()
    with pytest.raises(InputError, match="a label map holds unknown labels: subject a: .*found 9 in 1 voxels"):
        vocabulary.check(np.array([1, 9]), "subject a")


def test_decathlon_is_no_data_set_of_nnunet(tmp_path, touch):
    """Its files hold all modalities in one, and dataset.json has no channel names."""
    touch(tmp_path, "imagesTr/BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR"}}))
    with pytest.raises(InputError, match="no subjects in the data folder"):
        find_dataset(tmp_path, "nnunet")


def test_first_version(tmp_path, touch):
    """dataset.json is as in the Decathlon: modalities in place of channel names, labels by id; numbered files tell them apart."""
    content = {"modality": CHANNELS, "labels": {"0": "background", "1": "necrosis", "2": "edema", "4": "enhancing"}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = find_dataset(tree(tmp_path, touch))

    assert ("nnunet", {0, 1, 2, 4}) == (dataset.layout, dataset.vocabulary.ids)
    assert ["t1", "t1ce", "flair"] == list(dataset.subjects[0].images)


def test_cases_that_are_listed_by_their_files(tmp_path, touch, monkeypatch):
    """A data set may have its files elsewhere, below a variable of nnU-Net's."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    touch(tmp_path, *(f"raw/Dataset001/imagesTr/a_000{number}.nii.gz" for number in range(3)), "own/labelsTr/a.nii.gz")
    images = [f"$nnUNet_raw/Dataset001/imagesTr/a_000{number}.nii.gz" for number in range(3)]
    describe(tmp_path / "own", dataset={"a": {"images": images, "label": "labelsTr/a.nii.gz"}})
    (only,) = select(find_dataset(tmp_path / "own"), ["flair", "t1"], need_labels=True)

    assert {"flair": "a_0002.nii.gz", "t1": "a_0000.nii.gz"} == {modality: path.name for modality, path in only.images.items()}
    describe(tmp_path / "own", dataset={"a": {"images": images[:2]}})
    with pytest.raises(InputError, match=r"cannot read a case: .*dataset.json, dataset: a: wanted images: a list of 3, one a channel"):
        find_dataset(tmp_path / "own")


def test_images_of_another_format(tmp_path, touch):
    """nnU-Net reads more than NIfTI."""
    describe(tmp_path, file_ending=".nrrd")
    with pytest.raises(InputError, match=r"the images are of another format: .*wanted \.nii\.gz or \.nii, found \.nrrd; convert"):
        find_dataset(touch(tmp_path, "imagesTr/a_0000.nrrd"))


def test_cases_that_are_missing_are_told(tmp_path, touch):
    """Where dataset.json counts others than are there."""
    describe(tmp_path, numTraining=3)
    assert ("dataset.json tells of 3 training cases, 2 are there",) == find_dataset(tree(tmp_path, touch)).remarks
    describe(tmp_path, numTraining=2)
    assert () == find_dataset(tmp_path).remarks


def test_two_channels_of_one_name(tmp_path, touch):
    """They would be one modality."""
    describe(tmp_path, channel_names={"0": "T1", "1": "t1w", "2": "FLAIR"})
    with pytest.raises(InputError, match=r"two channels have the same name: .*found t1, t1, flair; name each after its modality"):
        find_dataset(tree(tmp_path, touch))


def test_regions_of_another_numbering_are_refused(tmp_path, touch):
    """What the whole tumour holds beside the core is edema, and in no other region."""
    describe(tmp_path, labels={"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]})
    vocabulary = find_dataset(tree(tmp_path, touch)).vocabulary

    assert vocabulary == vocabulary.for_outputs(output_set("brats-msd"))
    with pytest.raises(RecipeError, match="label 1 is something else in the nnU-Net labels: TC: found 1, 3; use the regions brats-msd"):
        vocabulary.for_outputs(output_set("brats-2023"))


def test_damaged_description_is_one_line(tmp_path, touch):
    """The file is named."""
    tree(tmp_path, touch)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(MergeKit3DError, match=r"dataset\.json"):
        find_dataset(tmp_path)
