import numpy as np
import pytest

from mergekit3d.datasets.labels import output_set
from mergekit3d.datasets.vocabulary import BRATS, BRATS2023, BRATS2024, FREESURFER, SMALL
from mergekit3d.errors import InputError, RecipeError


def test_unknown_ids_are_named_with_subject_and_count():
    """An id outside of a closed vocabulary is an error, never background."""
    with pytest.raises(InputError) as caught:
        BRATS.check(np.array([[0, 1, 3], [3, 4, 7]]), "subject Brats18_1")

    assert (
        "a label map holds unknown labels: subject Brats18_1: wanted ids of the BraTS labels (0, 1, 2, 4), found 3, 7 in 3 voxels; "
        "correct the label map, or name another layout"
    ) == str(caught.value)


def test_many_unknown_ids_are_cut_short():
    """Of many unknown ids the first few are shown."""
    with pytest.raises(InputError, match="found 5, 6, 7, 8, 9 and 11 more in 16 voxels"):
        SMALL.check(np.arange(21), "subject a")


def test_freesurfer_ids_end_at_14175():
    """FreeSurfer's table is open below its largest id and closed above."""
    FREESURFER.check(np.array([0, 530, 2035, 14175]), "subject a")
    with pytest.raises(InputError, match="0 to 14175"):
        FREESURFER.check(np.array([14176]), "subject a")


def test_plain_folders_hold_small_ids_or_freesurfers():
    """The task's ids decide: all up to 4 keeps the vocabulary closed, a larger one opens FreeSurfer's."""
    assert SMALL is SMALL.for_outputs({"core": (1, 4)})
    assert FREESURFER is SMALL.for_outputs(output_set("hcp-8-14"))
    assert FREESURFER is FREESURFER.for_outputs(output_set("brats"))


def test_outputs_that_cannot_occur():
    """A region with an id that the layout's files never hold is a recipe error."""
    with pytest.raises(RecipeError) as caught:
        BRATS.for_outputs({"ET": (3,), "TC": (1, 3)})

    assert (
        "an output asks for a label that these data cannot hold: ET: wanted ids of the BraTS labels (0, 1, 2, 4), found 3; "
        "correct the regions or labels of the target, or name another layout"
    ) == str(caught.value)


def test_white_matter_parcels_become_white_matter():
    """The parcels (wmparc) of the left and right cerebral white matter read as 2 and 41; all other ids stay."""
    labels = np.array([0, 2, 41, 1035, 3001, 3035, 4000, 5001, 5002, 251], dtype=np.int32)

    assert [0, 2, 41, 1035, 2, 2, 41, 2, 41, 251] == FREESURFER.merge(labels).tolist()
    assert BRATS.merge(labels) is labels


@pytest.mark.parametrize("regions", ["brats", "brats-2023", "brats-msd"])
def test_year_of_brats_is_asked_for_where_nothing_tells_it(regions):
    """Regions of BraTS on data of an unknown year: a label of another year is an error that shows the sets, not background."""
    outputs = output_set(regions)
    allowed = SMALL.for_outputs(outputs)
    other = 3 if regions == "brats" else 4

    assert {0, *(label for ids in outputs.values() for label in ids)} == allowed.ids
    assert allowed == allowed.for_outputs(outputs)
    with pytest.raises(
        InputError, match=f"found {other} in 1 voxels; correct the label map, or the regions: enhancing tumour is 4 until 2022"
    ):
        allowed.check(np.array([0, 1, other]), "subject a")


@pytest.mark.parametrize(
    ("vocabulary", "regions", "said"),
    [
        (BRATS2023, "brats-msd", "label 2 is something else in the BraTS 2023 labels: TC: found 2, 3; use the regions brats-2023,"),
        (BRATS2024, "brats-msd", "label 2 is something else in the BraTS 2024 labels: TC: found 2, 3; use the regions brats-2023,"),
        (BRATS2024, "brats", "label 4 is something else in the BraTS 2024 labels: ET: found 4; use the regions brats-2023,"),
    ],
)
def test_regions_of_another_year_are_refused(vocabulary, regions, said):
    """Ids that may occur, but mean another tissue; the error names the set that fits."""
    with pytest.raises(RecipeError) as caught:
        vocabulary.for_outputs(output_set(regions))
    assert str(caught.value).startswith(said)
