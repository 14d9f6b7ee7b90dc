import pytest

from mergekit3d.datasets import find_dataset


def test_plain_folders(tmp_path, touch):
    """One folder a subject, one file a modality; names without regard to case, packed or not, hidden files left out."""
    touch(
        tmp_path, "b/t1.nii.gz", "b/t1ce.nii", "b/flair.nii.gz", "b/adc.nii", "b/truth.nii.gz", "b/._t2.nii.gz", "a/T1.nii", "a/notes.txt"
    )
    touch(tmp_path, ".hidden/t1.nii", "empty/readme.txt", "split.json")

    dataset = find_dataset(tmp_path)

    assert "plain" == dataset.layout
    assert ["a", "b"] == [subject.name for subject in dataset.subjects]
    assert {"t1": tmp_path / "a/T1.nii"} == dict(dataset.subjects[0].images)
    assert {"t1", "t1ce", "flair", "adc"} == set(dataset.subjects[1].images)
    assert tmp_path / "b/truth.nii.gz" == dataset.subjects[1].label
    assert dataset.subjects[0].label is None


@pytest.mark.parametrize("name", ["truth", "seg", "label", "labels", "segmentation"])
def test_label_names(tmp_path, touch, name):
    """Each of the usual names is the label map."""
    touch(tmp_path, "a/t2.nii.gz", f"a/{name}.nii.gz")

    assert tmp_path / f"a/{name}.nii.gz" == find_dataset(tmp_path).subjects[0].label


@pytest.mark.parametrize(
    ("name", "modality"), [("T1w", "t1"), ("t1gd", "t1ce"), ("t1c", "t1ce"), ("T2w", "t2"), ("t2-flair", "flair"), ("t1n", "t1")]
)
def test_aliases(tmp_path, touch, name, modality):
    """Files under other names of a modality get its canonical one."""
    assert [modality] == list(find_dataset(touch(tmp_path, f"a/{name}.nii.gz")).subjects[0].images)
