from __future__ import annotations

import json
import math

import pytest

from mergekit3d.comparison import MEAN, compare_rows, comparison_of
from mergekit3d.errors import InputError
from mergekit3d.metrics import SubjectMetrics

NAN = math.nan


def rows(**dice_by_subject):
    return [
        SubjectMetrics(subject, region, value, 1.0)
        for subject, values in dice_by_subject.items()
        for region, value in zip(("ET", "WT"), values, strict=False)
    ]


def eight(offset):
    return rows(**{f"s{index}": (0.5 + 0.01 * index * offset, 0.7 + 0.01 * index * offset) for index in range(1, 9)})


def test_differences_are_first_minus_other_subject_by_subject():
    """Means, wins and p follow from the per-subject differences 0.01 to 0.08."""
    result = compare_rows({"timm": eight(1), "imm": eight(0)})
    found = result.of_mean()[0]
    assert {f"s{index}": pytest.approx(0.01 * index) for index in range(1, 9)} == found.differences
    assert found.mean_difference == pytest.approx(0.045)
    assert (found.wins, found.losses, found.ties) == (8, 0, 0)
    assert found.p == pytest.approx(2 / 2**8)
    assert found.interval_95[0] < 0.045 < found.interval_95[1]
    assert result.mean_dice["imm"] == {MEAN: pytest.approx(0.6), "ET": pytest.approx(0.5), "WT": pytest.approx(0.7)}
    assert result.notes == ()


def test_holm_counts_the_means_and_the_regions_as_two_families():
    """Two comparisons of the mean: the smaller p doubles; four of regions: the smallest times four."""
    result = compare_rows({"timm": eight(1), "imm": eight(0), "none": eight(-1)})
    p = 2 / 2**8
    assert [pytest.approx(2 * p)] * 2 == [comparison.p_holm for comparison in result.of_mean()]
    assert [pytest.approx(4 * p)] * 4 == [comparison.p_holm for comparison in result.comparisons if comparison.region != MEAN]


def test_subjects_that_a_file_lacks_are_left_out_and_told():
    """Pairs are over the common subjects."""
    result = compare_rows({"timm": rows(a=(0.5, 0.5), b=(0.6, 0.6)), "imm": rows(b=(0.5, 0.5), c=(0.1, 0.1))})
    assert result.subjects == ("b",)
    assert "timm lacks 1 of 3 subjects: left out everywhere" in result.notes
    assert "imm lacks 1 of 3 subjects: left out everywhere" in result.notes


def test_undefined_values_are_left_out_of_every_file():
    """A region that is NaN in one file is no pair, and no part of that subject's mean in any file."""
    result = compare_rows({"timm": rows(a=(NAN, 0.8), b=(0.5, 0.7)), "imm": rows(a=(0.0, 0.6), b=(0.5, 0.5))})
    by_region = {comparison.region: comparison for comparison in result.comparisons}
    assert {"b": 0.0} == by_region["ET"].differences
    assert {"a": pytest.approx(0.2), "b": pytest.approx(0.1)} == by_region[MEAN].differences
    assert any(note.startswith("1 of 4 values") and "brats convention" in note for note in result.notes)


def test_few_pairs_are_told():
    """With five pairs p is given, with a note that it cannot reach 0.05."""
    five = {f"s{index}": (0.5 + 0.01 * index,) for index in range(5)}
    result = compare_rows({"timm": rows(**five), "imm": rows(**dict.fromkeys(five, (0.4,)))})
    assert result.of_mean()[0].p == pytest.approx(0.0625)
    assert result.notes == ("with 5 pairs that differ Wilcoxon's p cannot reach 0.05, whatever the differences: 6 are needed",)


def test_method_of_the_p_and_what_becomes_of_zeros_are_told():
    """In words, in compare.json, and in what is read from it again."""
    eight_and_a_tie = {f"s{index}": (0.5 + 0.01 * index,) for index in range(9)}
    result = compare_rows({"timm": rows(**eight_and_a_tie), "imm": rows(**dict.fromkeys(eight_and_a_tie, (0.5,)))})
    content = json.loads(json.dumps(result.as_json()))

    assert "Wilcoxon p = 0.008 (exact; Holm: p = 0.008); better on 8 of 9, worse on 0" in result.lines()[0]
    assert (
        "note: pairs without a difference (up to 1 in a comparison) are left out of Wilcoxon's ranks, and count as no win" in result.lines()
    )
    assert {"exact"} == {row["p_method"] for row in content["comparisons"]}
    assert "differences of 0 are left out of the ranks" in content["method"]["p"]
    assert result == comparison_of(content, "compare.json")


def test_nothing_in_common_is_an_error():
    """No common subject, or no common region, cannot be compared."""
    with pytest.raises(InputError, match="no subject is in every file: timm, imm"):
        compare_rows({"timm": rows(a=(0.5,)), "imm": rows(b=(0.5,))})
    with pytest.raises(InputError, match="no region is in every file"):
        compare_rows({"timm": [SubjectMetrics("a", "ET", 0.5, 1)], "imm": [SubjectMetrics("a", "WT", 0.5, 1)]})


def test_json_holds_no_nan_and_reads_back():
    """compare.json is strict JSON, and gives the same comparison again."""
    result = compare_rows({"timm": rows(a=(NAN, NAN), b=(0.5, 0.6)), "imm": rows(a=(0.1, 0.2), b=(0.5, 0.5))}, seed=4)
    assert result.as_json()["method"]["seed"] == 4
    text = json.dumps(result.as_json(), allow_nan=False)
    assert repr(result) == repr(comparison_of(json.loads(text), "compare.json"))


def test_foreign_json_is_refused():
    """What is no compare.json is named."""
    with pytest.raises(InputError, match="cannot read the comparison: x.json: wanted what compare writes"):
        comparison_of({"first": "a"}, "x.json")


def test_result_in_words():
    """One line an other file, then the notes."""
    lines = compare_rows({"timm": eight(1), "imm": eight(0)}).lines()
    assert lines[0].startswith("timm - imm: Dice +0.045, 95 % interval +0.0")
    assert lines[0].endswith("Wilcoxon p = 0.008 (exact; Holm: p = 0.008); better on 8 of 8, worse on 0")
