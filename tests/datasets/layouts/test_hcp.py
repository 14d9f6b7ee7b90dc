from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.vocabulary import FREESURFER

T1, T2 = "T1w/T1w_acpc_dc_restore", "T1w/T2w_acpc_dc_restore"


def test_hcp_folders(tmp_path, touch):
    """T1, T2 and FreeSurfer's segmentation in the T1w folder of every subject; other files and folders are left out."""
    touch(tmp_path, f"100307/{T1}.nii.gz", f"100307/{T2}.nii.gz", "100307/T1w/aparc+aseg.nii.gz", "100307/T1w/ribbon.nii.gz")
    touch(tmp_path, f"100206/{T1}.nii.gz", f"100206/{T2}.nii.gz", "100206/MNINonLinear/T1w.nii.gz", "release-notes/a.txt")

    dataset = find_dataset(tmp_path)

    assert ("hcp", FREESURFER) == (dataset.layout, dataset.vocabulary)
    assert ["100206", "100307"] == [subject.name for subject in dataset.subjects]
    assert {"t1": tmp_path / f"100307/{T1}.nii.gz", "t2": tmp_path / f"100307/{T2}.nii.gz"} == dict(dataset.subjects[1].images)
    assert tmp_path / "100307/T1w/aparc+aseg.nii.gz" == dataset.subjects[1].label
    assert dataset.subjects[0].label is None


def test_brain_images_are_preferred_together(tmp_path, touch):
    """Skull-stripped images are taken where all modalities have them, never one of them beside a whole head."""
    touch(tmp_path, f"1/{T1}.nii.gz", f"1/{T2}.nii.gz", f"1/{T1}_brain.nii.gz", f"1/{T2}_brain.nii.gz")
    touch(tmp_path, f"2/{T1}.nii.gz", f"2/{T2}.nii.gz", f"2/{T1}_brain.nii.gz", f"3/{T1}_brain.nii.gz")

    first, second, third = find_dataset(tmp_path).subjects

    assert {tmp_path / f"1/{T1}_brain.nii.gz", tmp_path / f"1/{T2}_brain.nii.gz"} == set(first.images.values())
    assert {tmp_path / f"2/{T1}.nii.gz", tmp_path / f"2/{T2}.nii.gz"} == set(second.images.values())
    assert {"t1": tmp_path / f"3/{T1}_brain.nii.gz"} == dict(third.images)


def test_wmparc_stands_in(tmp_path, touch):
    """The white-matter parcellation is the label map only where aparc+aseg is missing."""
    touch(tmp_path, f"1/{T1}.nii.gz", "1/T1w/wmparc.nii.gz", "1/T1w/aparc+aseg.nii.gz", f"2/{T1}.nii.gz", "2/T1w/wmparc.nii.gz")

    assert ["aparc+aseg.nii.gz", "wmparc.nii.gz"] == [subject.label.name for subject in find_dataset(tmp_path).subjects]
