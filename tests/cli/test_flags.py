"""Values of flags are read strictly, and what cannot be read is shown beside what was wanted."""

from __future__ import annotations

import pytest

from mergekit3d.errors import UsageError
from mergekit3d_cli.flags import by_name, names_of, overrides_of, regions_of, size_of, spacing_of, tolerances_of


@pytest.mark.parametrize(("expected", "text"), [(None, None), ((64, 64, 64), "64"), ((64, 64, 48), "64, 64,48")])
def test_size_is_three_numbers_or_a_cube(expected, text):
    """One number stands for three."""
    assert expected == size_of(text, "--patch-size")


@pytest.mark.parametrize("text", ["", "64,64", "0,1,2", "a", "-1", "1.5", "1,2,3,4", "²"])
def test_other_sizes_are_refused(text):
    """Two numbers, zero, fractions and words."""
    with pytest.raises(UsageError, match="cannot read the size: --patch-size: wanted one or three whole numbers"):
        size_of(text, "--patch-size")


@pytest.mark.parametrize(
    ("expected", "texts"),
    [
        (None, None),
        (None, []),
        ("hcp-1-7", ["hcp-1-7"]),
        ({"ET": (4,)}, ["ET=4"]),
        ({"ET": (4,), "TC": (1, 4)}, ["ET=4", "TC= 1, 4"]),
    ],
)
def test_regions_are_a_set_or_names_with_ids(expected, texts):
    """A name alone is a shipped set."""
    assert expected == regions_of(texts)


@pytest.mark.parametrize("texts", [["brats", "ET=4"], ["ET="], ["=4"], ["ET=a"], ["ET=1;2"], ["ET=-1"]])
def test_other_regions_are_refused(texts):
    """A set beside a region, no ids, no name, ids that are no numbers."""
    with pytest.raises(UsageError, match="cannot read the region"):
        regions_of(texts)


@pytest.mark.parametrize(("expected", "text"), [(None, None), ((1.0, 1.0, 1.0), "1"), ((0.7, 0.7, 2.5), "0.7, 0.7,2.5")])
def test_voxel_size_is_one_number_or_three(expected, text):
    """One stands for a cube."""
    assert expected == spacing_of(text, "--spacing-mm")


@pytest.mark.parametrize("text", ["", "1,2", "a", "-1", "1,1,1,1", "nan", "1e3"])
def test_other_voxel_sizes_are_refused(text):
    """In one line that names the flag."""
    with pytest.raises(UsageError, match="cannot read the voxel size: --spacing-mm: wanted one or three numbers of mm"):
        spacing_of(text, "--spacing-mm")


@pytest.mark.parametrize(
    ("expected", "texts"),
    [(1.0, None), ({"*": 2.0}, ["2"]), ({"ET": 1.0, "WT": 2.5}, ["ET=1, WT=2.5"]), ({"ET": 1.0, "*": 3.0}, ["ET=1", "3"])],
)
def test_tolerances_are_one_number_or_one_a_region(expected, texts):
    """In one text or several; a number alone is for all others."""
    assert expected == tolerances_of(texts)


@pytest.mark.parametrize("texts", [[""], ["ET="], ["ET=a"], ["-1"], ["ET=1,ET=2"], ["1", "2"], ["nan"]])
def test_other_tolerances_are_refused(texts):
    """No number, a number below 0, a region twice."""
    with pytest.raises(UsageError, match="cannot read the tolerance: --tolerance-mm"):
        tolerances_of(texts)


@pytest.mark.parametrize("texts", [["m1"], ["=a.pt"], ["m1="], ["m1=a", "m1=b"]])
def test_values_by_name_have_a_name_of_their_own(texts):
    """And a value, which may hold further signs."""
    assert {"m1": "a=b"} == by_name(["m1=a=b"], "--source")
    with pytest.raises(UsageError, match="cannot read the flag: --source: wanted NAME=VALUE"):
        by_name(texts, "--source")


def test_overrides_need_a_key_and_an_equals_sign():
    """The value may be empty or hold further signs, and names that a recipe gives may hold spaces."""
    good = ("a.b=1", "c=", "d=x=y", "study.sizes.100 %.train=205")
    assert good == overrides_of(good)
    for text in ("a.b", "=1", "a b=1"):
        with pytest.raises(UsageError, match=r"wanted KEY\.PATH=VALUE"):
            overrides_of([text])


def test_names_are_separated_by_commas():
    """Spaces around a name do not belong to it."""
    assert ("t1", "t1ce") == names_of("t1, t1ce,")
    assert names_of(None) is None
