import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit3d.datasets.split import Split, read_split, shuffled, split_by_file, split_subjects, write_split
from mergekit3d.errors import InputError, Problems, RecipeError

NAMES = [f"s{index:02}" for index in range(20)]


@given(train=st.integers(0, 8), validation=st.integers(0, 6), test=st.integers(0, 6), seed=st.integers(0, 9), order=st.permutations(NAMES))
def test_numbers(train, validation, test, seed, order):
    """Parts have the sizes asked for, share no subject, are sorted, and depend on the names' order in no way."""
    split = split_subjects(order, train=train, validation=validation, test=test, seed=seed)
    chosen = [*split.train, *split.validation, *split.test]

    assert (train, validation, test) == (len(split.train), len(split.validation), len(split.test))
    assert len(chosen) == len(set(chosen))
    assert list(split.train) == sorted(split.train)
    assert split == split_subjects(NAMES, train=train, validation=validation, test=test, seed=seed)


def test_golden_shuffle():
    """The shuffle of a seed never changes: a recipe gives the same split for ever."""
    assert ["d", "a", "c", "b", "e"] == shuffled(["a", "b", "c", "d", "e"], 0)
    assert shuffled(NAMES, 0) != shuffled(NAMES, 1)


def test_a_subject_more_moves_no_other():
    """With a subject added, the others keep their order."""
    assert shuffled(NAMES, 3) == [name for name in shuffled([*NAMES, "new"], 3) if name != "new"]


def test_larger_training_sets_hold_smaller_ones():
    """As in the paper's 4, 8 and 100 %: training sets nest and the test set stays."""
    small = split_subjects(NAMES, train=4, validation=1, test=6)
    large = split_subjects(NAMES, train=8, validation=2, test=6)

    assert set(small.train) < set(large.train)
    assert small.test == large.test


def test_skipped_subjects_belong_to_another_model():
    """Skipping the training and validation subjects of a first model leaves a second one disjoint from it, on the same test set."""
    first = split_subjects(NAMES, train=5, validation=2, test=4)
    second = split_subjects(NAMES, train=5, validation=2, test=4, skip=7)

    assert not {*first.train, *first.validation} & {*second.train, *second.validation}
    assert first.test == second.test


def test_training_takes_the_rest():
    """With its number left out, training takes what the others leave; with all left out, everything."""
    assert 14 == len(split_subjects(NAMES, validation=2, test=4).train)
    assert Split(tuple(NAMES), (), ()) == split_subjects(NAMES)
    assert Split((), (), tuple(NAMES)) == split_subjects(NAMES, test=20)


def test_too_few_subjects():
    """The counts are told."""
    with pytest.raises(RecipeError) as caught:
        split_subjects(NAMES, train=18, validation=5)

    assert "too few subjects for the split: wanted 18 train + 5 validation = 23, found 20" == str(caught.value)
    with pytest.raises(RecipeError, match=r"wanted 19 skipped \+ 2 test = 21, found 20"):
        split_subjects(NAMES, skip=19, test=2)


def test_files_of_names(tmp_path):
    """One name a line, comments and blank lines left out; numbers deal out the subjects that no file names."""
    (tmp_path / "test.txt").write_text("# hold-out\ns03\n\n  s01  \n")

    split = split_subjects(NAMES, train=10, validation=["s02"], test=tmp_path / "test.txt")

    assert ("s01", "s03") == split.test
    assert ("s02",) == split.validation
    assert 10 == len(split.train)
    assert not {"s01", "s02", "s03"} & set(split.train)


def test_unknown_and_shared_names(tmp_path):
    """All unknown names and all overlaps are told at once, by their places: names may be patients'."""
    (tmp_path / "train.txt").write_text("s00\nS07\ns01\n")

    with pytest.raises(Problems) as caught:
        split_subjects(NAMES, train=tmp_path / "train.txt", validation=["s00"], test=["patient"])

    assert [
        "unknown subject in the split: train, name 2; the data set has 20 others",
        "a subject stands twice in the split: validation, name 1: found in train too",
        "unknown subject in the split: test, name 1; the data set has 20 others",
    ] == str(caught.value).splitlines()


def test_written_split_reads_back(tmp_path):
    """What is written beside the results is a split to use again."""
    split = split_subjects(NAMES, train=4, validation=2, test=3)
    write_split(tmp_path / "split.json", split)

    assert split == read_split(tmp_path / "split.json") == split_by_file(NAMES, tmp_path / "split.json")
    assert ["train", "validation", "test"] == list(json.loads((tmp_path / "split.json").read_text()))


def test_yaml_split_keeps_names_of_digits(tmp_path):
    """HCP's subjects are numbers, which stay names; flow and block lists both work, and a part may be left out."""
    (tmp_path / "split.yaml").write_text("train: [100307, 0100]\ntest:\n  - 1e5\n")

    assert Split(("0100", "100307"), (), ("1e5",)) == read_split(tmp_path / "split.yaml")


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.json", "{", "cannot read the split: FILE: found damaged JSON"),
        ("a.json", "[1]", "cannot read the split: FILE: wanted the keys train, validation and test, found something else"),
        ("a.json", '{"train": ["a"], "train": ["b"]}', "a key stands twice in the split: FILE: train"),
        ("a.json", '{"train": "a"}', "cannot read the split: FILE: train: wanted a list of names"),
        ("a.yaml", "train: [a", "cannot read the split: FILE: found damaged YAML"),
        ("a.yaml", "- a", "cannot read the split: FILE: wanted the keys train, validation and test, found something else"),
        ("a.yaml", "train: [a]\ntrain: [b]", "a key stands twice in the split: FILE: train"),
        ("a.yaml", "train: [[a]]", "cannot read the split: FILE: train: wanted a list of names"),
        ("a.yaml", "trian: [a]", "unknown key in the split: FILE: trian; did you mean 'train'?"),
        ("a.yaml", "", "cannot read the split: FILE: wanted the keys train, validation and test, found something else"),
        ("a.yaml", "#" * 2**21, "cannot read the split: FILE: wanted at most 1 MiB, found 2097152 bytes"),
    ],
)
def test_bad_split_files(tmp_path, name, text, error):
    """Each fault of a split file is one line."""
    (tmp_path / name).write_text(text)

    with pytest.raises(InputError) as caught:
        read_split(tmp_path / name)

    assert error == str(caught.value).replace(str(tmp_path / name), "FILE")


def test_missing_names_file(tmp_path):
    """A file that is not there, holds no names, or is no text."""
    (tmp_path / "empty.txt").write_text("# nobody\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(InputError, match=r"^no such file: "):
        split_subjects(NAMES, train=tmp_path / "missing.txt")
    with pytest.raises(InputError, match=r"^no names in the file: "):
        split_subjects(NAMES, train=tmp_path / "empty.txt")
    with pytest.raises(InputError, match="wanted UTF-8 text"):
        split_subjects(NAMES, train=tmp_path / "bytes.txt")
