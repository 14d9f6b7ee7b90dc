from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.vocabulary import FREESURFER


def test_derivatives_with_freesurfers_segmentation(tmp_path, touch):
    """Preprocessed images on the subject's own grid, not those in a template's space; aparc+aseg before aseg."""
    names = ["desc-preproc_T1w", "space-MNI152_desc-preproc_T1w", "desc-preproc_T2w", "desc-brain_mask", "dseg"]
    labels = ["desc-aseg_dseg", "desc-aparcaseg_dseg"]
    touch(tmp_path, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in [*names, *labels]), "sub-01.html", "dataset_description.json")
    dataset = find_dataset(tmp_path)
    (subject,) = dataset.subjects

    assert ("bids", FREESURFER, "sub-01") == (dataset.layout, dataset.vocabulary, subject.name)
    assert {"t1": "sub-01_desc-preproc_T1w.nii.gz", "t2": "sub-01_desc-preproc_T2w.nii.gz"} == {
        name: path.name for name, path in subject.images.items()
    }
    assert "sub-01_desc-aparcaseg_dseg.nii.gz" == subject.label.name


def test_sessions_are_subjects_of_their_own(tmp_path, touch):
    """Raw images, contrast told by its entity; tissue classes are no labels of FreeSurfer."""
    touch(
        tmp_path,
        *(
            f"sub-01/ses-{session}/anat/sub-01_ses-{session}_{name}.nii.gz"
            for session in "ab"
            for name in ("T1w", "ce-gadolinium_T1w", "FLAIR", "dseg")
        ),
    )
    subjects = find_dataset(tmp_path).subjects

    assert ["sub-01_ses-a", "sub-01_ses-b"] == [subject.name for subject in subjects]
    assert {"t1", "t1ce", "flair"} == set(subjects[0].images)
    assert [None, None] == [subject.label for subject in subjects]
