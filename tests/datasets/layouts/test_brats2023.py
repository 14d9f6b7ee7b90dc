import pytest

from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.labels import output_set
from mergekit3d.datasets.vocabulary import BRATS2023, BRATS2024
from mergekit3d.errors import RecipeError

NAME = "BraTS-GLI-00000-000"


def tree(root, touch):
    return touch(root, *(f"{NAME}/{NAME}-{kind}.nii.gz" for kind in ("t1n", "t1c", "t2w", "t2f", "seg")))


def test_modalities_get_their_usual_names(tmp_path, touch):
    """t1n, t1c, t2w and t2f are t1, t1ce, t2 and flair."""
    dataset = find_dataset(tree(tmp_path, touch))
    (subject,) = dataset.subjects

    assert ("brats2023", BRATS2023, NAME) == (dataset.layout, dataset.vocabulary, subject.name)
    assert {name: f"{NAME}-{kind}.nii.gz" for name, kind in [("t1", "t1n"), ("t1ce", "t1c"), ("t2", "t2w"), ("flair", "t2f")]} == {
        name: path.name for name, path in subject.images.items()
    }
    assert tmp_path / NAME / f"{NAME}-seg.nii.gz" == subject.label


def test_enhancing_tumour_is_label_3(tmp_path, touch):
    """The regions of earlier years ask for a 4, which these data cannot hold."""
    vocabulary = find_dataset(tree(tmp_path, touch)).vocabulary

    assert vocabulary == vocabulary.for_outputs(output_set("brats-2023"))
    with pytest.raises(RecipeError, match=r"a label that these data cannot hold: ET: wanted ids of the BraTS 2023 .*0, 1, 2, 3.*found 4"):
        vocabulary.for_outputs(output_set("brats"))


def test_label_4_of_2024_is_asked_for(tmp_path, touch):
    """The same files, named by the user; 4 is the resection cavity, never enhancing tumour."""
    vocabulary = find_dataset(tree(tmp_path, touch), "brats2024").vocabulary

    assert BRATS2024 == vocabulary == vocabulary.for_outputs({**output_set("brats-2023"), "RC": (4,)})
    said = "label 4 is something else in the BraTS 2024 labels: ET: found 4; use the regions brats-2023, or another name for this region"
    with pytest.raises(RecipeError, match=said):
        vocabulary.for_outputs(output_set("brats"))
