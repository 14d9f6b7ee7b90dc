from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergekit3d.errors import UsageError
from mergekit3d.metrics import SubjectMetrics
from mergekit3d.summaries import write_metrics_csv
from mergekit3d.verbs.compare import compare, names_of


@pytest.fixture
def two_files(tmp_path):
    """metrics.csv of two methods in folders of their names."""
    for name, offset in (("timm", 0.05), ("imm", 0.0)):
        rows = [SubjectMetrics(f"s{index}", "ET", 0.5 + 0.02 * index + offset, 1.0) for index in range(6)]
        write_metrics_csv(tmp_path / name / "metrics.csv", rows)
    return [tmp_path / "timm" / "metrics.csv", tmp_path / "imm" / "metrics.csv"]


def test_compare_writes_table_and_picture(tmp_path, two_files):
    """compare.json holds what is returned, which tells where they are besides; compare.png is a PNG; neither holds a path."""
    result = compare(two_files, out=str(tmp_path / "out"))
    assert (result.first, result.others) == ("timm", ("imm",))
    text = (tmp_path / "out" / "compare.json").read_text()
    out = tmp_path / "out"
    places = {"out": str(out), "table": str(out / "compare.json"), "picture": str(out / "compare.png")}
    assert {**places, **json.loads(text)} == result.as_json()
    assert str(tmp_path) not in text
    picture = (tmp_path / "out" / "compare.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert str(tmp_path).encode() not in picture


def test_compare_refuses_existing_outputs_unless_forced(tmp_path, two_files):
    """An earlier comparison is not lost by accident."""
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(UsageError, match="the output exists already"):
        compare(two_files, out=tmp_path)
    assert (tmp_path / "compare.json").read_text() == "{}"


def test_compare_needs_two_files_and_names_that_fit(tmp_path, two_files):
    """One file has nothing to be compared with; names must differ."""
    with pytest.raises(UsageError, match=r"wanted two or more metrics\.csv files, found 1"):
        compare(two_files[:1], out=tmp_path)
    with pytest.raises(UsageError, match="the names do not fit the files: wanted 2 different names, found a, a"):
        compare(two_files, names=["a", "a"], out=tmp_path)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("none.csv", "timm.csv"), ["none", "timm"]),
        (("none/metrics.csv", "timm/metrics.csv"), ["none", "timm"]),
        (("none/evaluate/metrics.csv", "timm/evaluate/metrics.csv"), ["none", "timm"]),
        (("runs/a/best/metrics.csv", "runs/b/best/metrics.csv"), ["a", "b"]),
        (("a/x/metrics.csv", "b/x/metrics.csv", "b/y/metrics.csv"), ["a/x", "b/x", "b/y"]),
        (("runs/timm/metrics.csv", "imm.csv"), ["timm", "imm"]),
        (("predictions/a.b.nii.gz",), ["a.b"]),
    ],
)
def test_files_are_named_by_what_tells_them_apart(files, names):
    """The stem, or the folder where the paths differ."""
    assert names == names_of([Path("/data") / file for file in files])


def test_a_file_given_twice_is_refused():
    """A comparison with itself is a slip of the hand."""
    with pytest.raises(UsageError, match="a file is given twice: a/metrics.csv"):
        names_of([Path("a/metrics.csv"), Path("a/../a/metrics.csv")])


def test_subjects_are_numbers(tmp_path):
    """Of all names in all files, sorted: a comparison goes to others, and names no one."""
    for name, subjects in (("a", ("DOE^JOHN", "ROE^JANE", "ZOE")), ("b", ("ROE^JANE", "ZOE"))):
        write_metrics_csv(tmp_path / f"{name}.csv", [SubjectMetrics(subject, "WT", 0.5, 1.0) for subject in subjects])

    result = compare([tmp_path / "a.csv", tmp_path / "b.csv"], out=tmp_path)

    assert ("2", "3") == result.subjects
    assert ("b lacks 1 of 3 subjects: left out everywhere",) == result.notes[:1]
    assert not [name for name in (b"DOE", b"ROE", b"ZOE") if name in (tmp_path / "compare.json").read_bytes()]
