import json

import pytest

from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.layouts.datalist import write
from mergekit3d.datasets.vocabulary import BRATS, BRATS2023, SMALL
from mergekit3d.errors import InputError, Problems
from mergekit3d.volumes.nifti import Channel


@pytest.fixture
def listed(tmp_path, touch):
    """A function that writes a list and makes the files in it."""

    def listed(content, name="list.json"):
        def texts(value):
            if isinstance(value, dict):
                value = [part for key, part in value.items() if key != "subject"]
            return (
                [value] if isinstance(value, str) else [text for part in value for text in texts(part)] if isinstance(value, list) else []
            )

        touch(tmp_path, *(text for text in texts(content) if text.endswith((".nii", ".nii.gz"))))
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return listed


def brats21(name, fold, year="BraTS2021"):
    """An entry of the list that MONAI's tutorial of Swin UNETR trains by."""
    stem = f"TrainingData/{year}_{name}/{year}_{name}"
    images = [f"{stem}_{modality}.nii.gz" for modality in ("flair", "t1ce", "t1", "t2")]
    return {"fold": fold, "image": images, "label": f"{stem}_seg.nii.gz"}


def seen(dataset):
    return {subject.name: [*subject.images] for subject in dataset.subjects}


def test_lists_of_images(listed):
    """Modalities are told by the files' names, subjects by what their names share; folds are kept."""
    path = listed({"training": [brats21("01146", 0), brats21("00483", 3)]})
    dataset = find_dataset(path)
    first, second = dataset.subjects

    assert ("monai", BRATS, (path,)) == (dataset.layout, dataset.vocabulary, dataset.descriptions)
    assert {"BraTS2021_00483": ["flair", "t1ce", "t1", "t2"], "BraTS2021_01146": ["flair", "t1ce", "t1", "t2"]} == seen(dataset)
    assert ("train", 3, "train", 0) == (first.part, first.fold, second.part, second.fold)
    assert path.parent / "TrainingData/BraTS2021_00483/BraTS2021_00483_seg.nii.gz" == first.label


def test_4d_images(listed):
    """Named by the list's own modalities; test images are paths alone, as in the Decathlon's dataset.json."""
    content = {
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
        "numTraining": 1,
        "training": [{"image": "./imagesTr/BRATS_457.nii.gz", "label": "./labelsTr/BRATS_457.nii.gz"}],
        "test": ["./imagesTs/BRATS_557.nii.gz"],
    }
    dataset = find_dataset(listed(content, "dataset.json"))
    first, second = dataset.subjects

    assert {"flair": Channel(0, 4), "t1": Channel(1, 4), "t1ce": Channel(2, 4), "t2": Channel(3, 4)} == first.channels
    assert ("BRATS_457", "train", "BRATS_557", "test", None) == (first.name, first.part, second.name, second.part, second.label)
    assert {0, 1, 2, 3} == dataset.vocabulary.ids


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"training": [{"image": "hecktor_nii/CHUM001_ct.nii.gz"}], "validation": [{"image": "hecktor_nii/CHUS038_ct.nii.gz"}]}, ["ct"]),
        ({"testing": [], "training": [{"image": "f/sub-003/anat/sub-003_rec-mial_T2w.nii.gz", "fold": 0}]}, ["t2"]),
        ({"training": [{"image": "img0035.nii.gz", "label": "label0035.nii.gz"}], "modality": {"0": "CT"}}, ["ct"]),
        ({"training": [{"image": "img0035.nii.gz"}], "modality": "MRI"}, ["mri"]),
        ({"training": [{"image": ["a_0000.nii", "a_0001.nii"]}], "modality": ["t1", "FLAIR"]}, ["t1", "flair"]),
        ({"training": [{"image": ["a-T2-FLAIR.nii", "a_t1_ce.nii"]}], "modality": {"0": "MRI"}}, ["flair", "t1ce"]),
        ({"training": [{"image": ["100307/T1w/T1w_acpc_dc_restore.nii.gz", "100307/T1w/T2w_acpc_dc_restore.nii.gz"]}]}, ["t1", "t2"]),
        ({"train": [{"t1": "a/x.nii", "FLAIR": "a/y.nii", "seg": "a/z.nii", "age": "5"}]}, ["t1", "flair"]),
        ({"validation": [{"image": ["s1/t1.nii"], "label": ["s1/truth.nii"]}]}, ["t1"]),
    ],
)
def test_shapes_of_entries(listed, content, found):
    """Those that lists in public use have."""
    assert found == list(find_dataset(listed(content)).subjects[0].images)


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (["a/t1.nii.gz", "b/t1.nii.gz"], ["a", "b"]),
        (["x/a/t1.nii.gz", "y/a/t1.nii.gz", "y/b/t1.nii.gz"], ["b", "x_a", "y_a"]),
        (["1/T1w/T1w_acpc.nii", "2/T1w/T1w_acpc.nii"], ["1_T1w_acpc", "2_T1w_acpc"]),
        (["../t1.nii.gz"], ["t1"]),
    ],
)
def test_names_of_subjects(listed, images, names):
    """The shortest ends of their paths that tell them apart."""
    assert names == list(seen(find_dataset(listed({"training": [{"image": image} for image in images]}))))


def test_names_that_a_list_gives(listed):
    """Under one of the usual keys; those that several subjects have do not name them."""
    isles = {
        "modality": {"0": "DWI", "1": "ADC", "2": "FLAIR"},
        "training": [
            {
                "id": "sub-strokecase0001",
                "fold": 0,
                "image": [
                    "./sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_DWI.nii.gz",
                    "./sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_ADC.nii.gz",
                    "./sub-strokecase0001/ses-0001/anat/sub-strokecase0001_ses-0001_FLAIR_registered.nii.gz",
                ],
                "label": "./derivatives/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_msk.nii.gz",
            }
        ],
    }
    assert {"sub-strokecase0001": ["dwi", "adc", "flair"]} == seen(find_dataset(listed(isles)))
    visits = [{"subject_id": "p1", "image": f"visit{number}_t1.nii"} for number in (1, 2)]
    assert ["visit1", "visit2"] == list(seen(find_dataset(listed({"training": visits}))))
    assert ["a"] == list(seen(find_dataset(listed({"training": [{"subject": "../x", "image": "a_t1.nii"}]}))))


def test_year_of_brats(listed):
    """Told by the subjects' names where it can be, and asked for otherwise."""
    assert SMALL == find_dataset(listed({"training": [{"image": "a_t1.nii"}]})).vocabulary
    assert BRATS2023 == find_dataset(listed({"training": [{"image": "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz"}]})).vocabulary


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"training": [{"image": ["a_0000.nii", "a_0001.nii"]}]},
            r"the modalities of the images are not told: .*, training\[0\]: wanted 2, found no name that tells it; set .modality",
        ),
        ({"modality": {"0": "MRI"}, "training": [{"image": ["a.nii", "b.nii"]}]}, "wanted 2, found 1 names; set"),
        (
            {"modality": {"0": "t1", "1": "t2"}, "training": [{"image": ["a_t2.nii", "a_t1.nii"]}]},
            "the files have other modalities than the list says: .*: wanted t1, t2, found t2, t1",
        ),
        ({"training": [5]}, r"training\[0\]: wanted a subject as an object or a path, found a int"),
        ({"training": [{"label": "a.nii"}]}, "a subject without images in the list: .*found label"),
        ({"training": [{"image": {"a": 1}}]}, "wanted a path or a list of paths as image"),
        ({"training": [{"image": "a_t1.nii", "label": 3}]}, "wanted the path of one label map as label, found a int"),
        ({"folds": []}, "no subjects in the data list: .*: wanted a list under training, validation or test, found folds$"),
    ],
)
def test_lists_that_cannot_be_read(listed, content, said):
    """Where, and what to set."""
    with pytest.raises(InputError, match=said):
        find_dataset(listed(content))


def test_description_without_a_list(listed):
    """nnU-Net's dataset.json belongs to its folder."""
    with pytest.raises(InputError, match="found channel_names; pass its folder"):
        find_dataset(listed({"channel_names": {"0": "t1"}}, "dataset.json"))


def test_subject_in_two_parts(listed):
    """A subject that trains must not test."""
    entry = {"image": "a_t1.nii"}
    path = listed({"training": [entry], "validation": [{"image": "b_t1.nii"}, entry]})
    with pytest.raises(InputError, match=r"a subject stands twice in the list: .*, validation\[1\]: found the same in training\[0\]"):
        find_dataset(path)


def test_missing_files_are_told_by_their_entries(listed):
    """All of them at once."""
    path = listed({"training": [{"image": "a_t1.nii", "label": "a_seg.nii"}, {"image": "b_t1.nii"}]})
    for name in ("a_seg.nii", "b_t1.nii"):
        (path.parent / name).unlink()
    with pytest.raises(Problems) as caught:
        find_dataset(path)
    assert [f"no such file: {path}, training[0]: found a_seg.nii", f"no such file: {path}, training[1]: found b_t1.nii"] == str(
        caught.value
    ).splitlines()


def test_written_list_keeps_what_describes_the_data(listed):
    """Not notes on subjects, or where their files once were."""
    path = listed({"name": "BRATS", "root": "/home/someone", "training": [{"image": "a_t1.nii", "report": "text"}]})
    content = json.loads(write(find_dataset(path), path))
    assert {"name": "BRATS", "modality": {"0": "t1"}, "training": [{"subject": "a", "image": "a_t1.nii"}]} == content


@pytest.mark.parametrize(
    "content",
    [
        {"training": [brats21("01146", 0), brats21("00483", 3)], "testing": [{"image": brats21("00001", 0)["image"]}]},
        {"modality": {"0": "t1", "1": "t2"}, "labels": {"0": "background"}, "training": ["a.nii"], "test": ["b.nii"]},
        {"validation": [{"t1": "a/x.nii", "t2": "a/y.nii"}, {"t1": "b/x.nii"}]},
    ],
)
def test_written_list_is_the_same(listed, content):
    """With names of subjects, and the modalities of the images in so many words."""
    path = listed(content)
    before = find_dataset(path)
    path.write_text(write(before, path))

    assert before == find_dataset(path)
