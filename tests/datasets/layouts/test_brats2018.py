import pytest

from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.vocabulary import BRATS
from mergekit3d.errors import InputError


def files(folder, *, suffix="nii.gz", kinds=("t1", "t1ce", "t2", "flair", "seg")):
    name = folder.rsplit("/", 1)[-1]
    return [f"{folder}/{name}_{kind}.{suffix}" for kind in kinds]


def test_graded_folders(tmp_path, touch):
    """Subjects of HGG and LGG are one data set, sorted by name."""
    touch(tmp_path, *files("LGG/Brats18_2013_0_1"), *files("HGG/Brats18_TCIA01_1_1"), "survival_data.csv")

    dataset = find_dataset(tmp_path)

    assert ("brats2018", BRATS) == (dataset.layout, dataset.vocabulary)
    assert ["Brats18_2013_0_1", "Brats18_TCIA01_1_1"] == [subject.name for subject in dataset.subjects]
    assert {"t1", "t1ce", "t2", "flair"} == set(dataset.subjects[0].images)
    assert tmp_path / "LGG/Brats18_2013_0_1/Brats18_2013_0_1_seg.nii.gz" == dataset.subjects[0].label


@pytest.mark.parametrize(
    ("name", "suffix"), [("Brats18_2013_0_1", "nii.gz"), ("BraTS20_Training_001", "nii"), ("BraTS2021_00000", "nii.gz")]
)
def test_flat_folders_of_every_year(tmp_path, touch, name, suffix):
    """The challenges of 2018 to 2021 differ in the subjects' names only."""
    subject = find_dataset(touch(tmp_path, *files(name, suffix=suffix))).subjects[0]

    assert name == subject.name
    assert tmp_path / f"{name}/{name}_t1ce.{suffix}" == subject.images["t1ce"]
    assert tmp_path / f"{name}/{name}_seg.{suffix}" == subject.label


def test_validation_subjects_have_no_label(tmp_path, touch):
    """Subjects of the challenge's validation set come without a segmentation."""
    assert find_dataset(touch(tmp_path, *files("Brats18_CBICA_AAM_1", kinds=("t1", "t2")))).subjects[0].label is None


def test_one_name_in_both_grades(tmp_path, touch):
    """Outputs are named after subjects, so a name in HGG and in LGG is an error."""
    touch(tmp_path, *files("LGG/Brats18_1"), *files("HGG/Brats18_1"))

    with pytest.raises(InputError, match=r"two subjects share a name: .*: found 1 names more than once; rename one of each"):
        find_dataset(tmp_path)
