import os

import pytest

from mergekit3d.datasets import find_dataset, select
from mergekit3d.datasets.layouts import LAYOUTS
from mergekit3d.errors import InputError, Problems, UsageError


def test_unknown_folder_says_what_was_seen(tmp_path, touch):
    """A folder of no layout is an error that shows the layouts, the kinds of what stands there, and what to pass."""
    touch(tmp_path, "images/BRATS_001.nii.gz", "data.json")

    with pytest.raises(InputError) as caught:
        find_dataset(tmp_path)

    asked = {name: layout for name, layout in LAYOUTS.items() if layout.automatic and not layout.suffixes}
    wanted = " or ".join(f"{layout.files} ({name})" for name, layout in asked.items())
    assert {"bids", "brats2018", "brats2023", "decathlon", "hcp", "nnunet", "plain"} == set(asked)
    assert (
        f"no subjects in the data folder: {tmp_path}: wanted {wanted}, "
        "found .json files: 1, folders: 1; pass the folder that holds the subjects' folders, or the list of them (data.json)"
    ) == str(caught.value)


def test_missing_and_empty_folders(tmp_path, touch):
    """No folder, a file in its place, and an empty folder are told apart."""
    touch(tmp_path, "file")
    (tmp_path / "empty").mkdir()

    with pytest.raises(InputError, match=r"^no such folder: "):
        find_dataset(tmp_path / "missing")
    with pytest.raises(InputError, match=r"^not a folder: "):
        find_dataset(tmp_path / "file")
    with pytest.raises(InputError, match="found an empty folder"):
        find_dataset(tmp_path / "empty")


def test_two_layouts_in_one_folder(tmp_path, touch):
    """A folder that two layouts find subjects in is an error under auto, and not where the layout is named."""
    touch(tmp_path, "a/t1.nii.gz", "b/t1.nii.gz", "Brats18_1/Brats18_1_t1.nii.gz")

    with pytest.raises(InputError, match="found 1 subjects in the layout brats2018 and 2 subjects in the layout plain; name the layout"):
        find_dataset(tmp_path)
    assert ["a", "b"] == [subject.name for subject in find_dataset(tmp_path, "plain").subjects]


def test_unknown_layout(tmp_path):
    """A misspelt layout is a usage error with the nearest name."""
    with pytest.raises(UsageError, match=r"unknown layout 'brats2081'; did you mean 'brats2018'\?"):
        find_dataset(tmp_path, "brats2081")


def test_select_orders_modalities_and_understands_aliases(tmp_path, touch):
    """Every subject comes with the modalities asked for, in that order, and no others."""
    dataset = find_dataset(touch(tmp_path, "a/t1.nii", "a/t2.nii", "a/flair.nii", "a/seg.nii", "b/t1.nii", "b/flair.nii", "b/seg.nii"))

    subjects = select(dataset, ["FLAIR", "T1w"], need_labels=True)

    assert [["flair", "t1"], ["flair", "t1"]] == [list(subject.images) for subject in subjects]
    assert tmp_path / "a/seg.nii" == subjects[0].label


def test_select_reports_every_problem(tmp_path, touch):
    """Missing modalities, label maps and files of all subjects are one error of several lines."""
    touch(tmp_path, "a/t1.nii", "a/t2.nii", "b/t1.nii", "b/seg.nii", "c/t1.nii", "c/seg.nii")
    (tmp_path / "c/t2.nii").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "a/seg.nii.gz")

    with pytest.raises(Problems) as caught:
        select(find_dataset(tmp_path), ["t1", "t2"], need_labels=True)

    assert 65 == caught.value.exit_code
    assert [
        "not a regular file: subject 1, labels: found a broken link, a folder, a pipe or a device",
        "a subject lacks a modality: subject 2: wanted t1, t2, found t1; add t2, or leave the subject out of the folder",
        "not a regular file: subject 3, t2: found a broken link, a folder, a pipe or a device",
    ] == str(caught.value).splitlines()


def test_select_without_labels(tmp_path, touch):
    """A subject without a label map is a problem only where labels are needed."""
    dataset = find_dataset(touch(tmp_path, "a/t1.nii"))

    assert 1 == len(select(dataset, ["t1"], need_labels=False))
    with pytest.raises(InputError, match=r"^a subject has no label map: subject 1; add it"):
        select(dataset, ["t1"], need_labels=True)


def test_modality_that_no_subject_has(tmp_path, touch):
    """A misspelt modality is one line with the nearest name, not one a subject."""
    dataset = find_dataset(touch(tmp_path, "a/t1.nii", "a/flair.nii", "b/t1.nii", "b/flair.nii"))

    with pytest.raises(InputError) as caught:
        select(dataset, ["t1", "flare"], need_labels=False)

    assert "no subject has the modality: flare; did you mean 'flair'?" == str(caught.value)


def test_many_subjects_without_labels_are_one_line(tmp_path, touch):
    """Test images where labels are needed: not a line a subject."""
    dataset = find_dataset(touch(tmp_path, *(f"s{number}/t1.nii" for number in range(9))))

    with pytest.raises(InputError) as caught:
        select(dataset, ["t1"], need_labels=True)
    assert f"label maps are needed here: {tmp_path}: found 9 of 9 subjects have none; pass a folder with label maps" == str(caught.value)


@pytest.fixture
def table(tmp_path, touch):
    """A list of three subjects, one for each part; that of the test has no label map."""
    touch(tmp_path, *(f"{name}/t1.nii" for name in "abc"), "a/seg.nii", "b/seg.nii")
    rows = ["subject,t1,label,split", "a,a/t1.nii,a/seg.nii,train", "b,b/t1.nii,b/seg.nii,val", "c,c/t1.nii,,testing"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    return tmp_path / "list.csv"


@pytest.mark.parametrize(("part", "names"), [("train", ["a"]), ("validation", ["b"]), ("test", ["c"]), ("testing", ["c"])])
def test_part_of_a_list(table, part, names):
    """Behind a colon, as lists or as recipes call it."""
    dataset = find_dataset(f"{table}:{part}")

    assert ("csv", table.parent, names) == (dataset.layout, dataset.root, [subject.name for subject in dataset.subjects])


def test_part_that_is_not_there(table):
    """The parts that are there are shown; a colon before any other word belongs to the name."""
    table.write_text(table.read_text().replace(",val", ",train"))
    with pytest.raises(InputError, match=r"no subjects in this part of the list: .*list.csv: wanted validation, found train, test"):
        find_dataset(f"{table}:validation")
    with pytest.raises(InputError, match=r"no such folder: .*list.csv:other"):
        find_dataset(f"{table}:other")
    with pytest.raises(InputError, match=r"no such list: .*gone.csv$"):
        find_dataset(table.with_name("gone.csv:test"))


def test_list_whose_name_ends_like_a_part(table):
    """A file that is there is taken by its name."""
    with pytest.raises(InputError, match="not a folder"):
        find_dataset(table.rename(table.with_name("list.csv:test")))


def test_layout_of_a_list_for_a_folder(table):
    """And the other way round: what the layout takes is shown."""
    with pytest.raises(InputError, match=r"not in the layout csv: .*: wanted <list>\.csv or \.tsv.*, found a folder"):
        find_dataset(table.parent, "csv")
    with pytest.raises(InputError, match=r"not in the layout plain: .*: wanted .*, found a file"):
        find_dataset(table, "plain")


def test_folders_of_parts(tmp_path, touch):
    """Where a folder holds train, test or unlabelled folders, each subject is of one part; any of them may be passed alone."""
    touch(tmp_path, "train/a/t1.nii", "train/a/seg.nii", "Validation/b/t1.nii", "test/c/t1.nii", "unlabeled/d/t1.nii", "other/e/t1.nii")
    dataset = find_dataset(tmp_path)

    assert "plain" == dataset.layout
    assert {"a": "train", "b": "validation", "c": "test", "d": "unlabelled"} == {subject.name: subject.part for subject in dataset.subjects}
    assert ["d"] == [subject.name for subject in find_dataset(tmp_path / "unlabeled").subjects]


def test_subject_of_two_parts(tmp_path, touch):
    """It must not train and test."""
    with pytest.raises(InputError, match="two subjects share a name: .*: found 1 names more than once; rename one of each"):
        find_dataset(touch(tmp_path, "train/a/t1.nii", "test/a/t1.nii"))
