from __future__ import annotations

import json
import math

import pytest

from mergekit3d.errors import InputError
from mergekit3d.metrics import HD95_DEFINITION, NSD_DEFINITION, Counts, SubjectMeasures, SubjectMetrics
from mergekit3d.summaries import intervals_of, read_metrics_csv, summary, write_metrics_csv, write_summary_json

ROWS = [
    SubjectMetrics("Brats18_A", "ET", 1 / 3, 2.5, 0.75, 1.5, 2.0),
    SubjectMetrics("Brats18_A", "WT", math.nan, math.nan),
    SubjectMetrics('b, "c" ü', "ET", 0.0, 373.13),
]


def test_metrics_csv_begins_with_the_four_columns(tmp_path):
    """The header is subject,region,dice,hd95 and what else was measured; undefined is nan."""
    write_metrics_csv(tmp_path / "metrics.csv", ROWS)
    lines = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == [
        "subject,region,dice,hd95,nsd,volume_pred_ml,volume_ref_ml",
        f"Brats18_A,ET,{1 / 3!r},2.5,0.75,1.5,2.0",
        "Brats18_A,WT,nan,nan,nan,nan,nan",
    ]


def test_metrics_csv_survives_a_round_trip(tmp_path):
    """Dice and HD95 come back bit for bit, names with commas, quotes and umlauts too."""
    write_metrics_csv(tmp_path / "metrics.csv", ROWS)
    found = read_metrics_csv(tmp_path / "metrics.csv")
    assert repr([SubjectMetrics(row.subject, row.region, row.dice, row.hd95) for row in ROWS]) == repr(found)


def test_metrics_csv_of_other_tools_is_read(tmp_path):
    """A byte-order mark, further columns, another order and empty cells are fine."""
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbfregion,subject,hd95,dice,note\r\nET,a,,0.5,x\r\n\r\n")
    assert repr([SubjectMetrics("a", "ET", 0.5, math.nan)]) == repr(read_metrics_csv(tmp_path / "m.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "wanted columns subject,region,dice,hd95, found an empty file"),
        (b"subject,region,dice\na,ET,0.5\n", "found no column hd95"),
        (b"subject,region,dice,hd95\n", "wanted a row a subject and region, found a header alone"),
        (b"subject,region,dice,hd95\na,ET,0.5\n", "line 2: wanted 4 cells, found 3"),
        (b"subject,region,dice,hd95\na,ET,1.5,2\n", "line 2, column dice: wanted a number from 0 to 1, or nan, found '1.5'"),
        (b"subject,region,dice,hd95\na,ET,0.5,far\n", "line 2, column hd95: wanted mm, or nan, found 'far'"),
        (b"subject,region,dice,hd95\na,ET,0.5,1\na,ET,0.6,1\n", "line 3: found subject 'a', region 'ET' a second time"),
        (b"subject,region,dice,hd95\n,ET,0.5,1\n", "line 2: wanted a subject and a region, found an empty cell"),
        (b"\xff\xfe\x00", "wanted text in UTF-8, found other bytes"),
        (b'subject,region,dice,hd95\n"a,ET,0.5,1\n', "wanted a CSV table"),
    ],
)
def test_bad_metrics_csv_is_told_in_one_line(tmp_path, content, message):
    """Every kind of damage names the file and the place."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_metrics_csv(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"cannot read the metrics: {path}")
    assert "\n" not in str(caught.value)


def test_missing_metrics_csv_and_folders_are_told_apart(tmp_path):
    """Nothing under that name, or a folder."""
    with pytest.raises(InputError, match="wanted a file, found nothing under that name"):
        read_metrics_csv(tmp_path / "no.csv")
    with pytest.raises(InputError, match="wanted a file, found a folder"):
        read_metrics_csv(tmp_path)


def test_summary_json_has_nnunets_keys_and_states_its_convention(tmp_path):
    """Means over subjects by region, their mean, every case with file names, NaN as null."""
    subjects = [
        SubjectMeasures(
            "a",
            (SubjectMetrics("a", "ET", 0.5, 2.0, 0.25, 4.0, 6.0),),
            (Counts(2, 2, 2, 10),),
            "/data/CANARY/a.nii.gz",
            "/data/CANARY/a_seg.nii.gz",
        ),
        SubjectMeasures("b", (SubjectMetrics("b", "ET", math.nan, math.nan),), (Counts(0, 0, 0, 16),), "b.nii.gz", "b_seg.nii.gz"),
    ]
    write_summary_json(tmp_path / "summary.json", subjects, convention="nnunet")
    text = (tmp_path / "summary.json").read_text()
    content = json.loads(text)
    expected = {"Dice": 0.5, "HD95": 2.0, "IoU": 1 / 3, "TP": 1.0, "FP": 1.0, "FN": 1.0, "TN": 13.0, "n_pred": 2.0, "n_ref": 2.0}
    expected |= {"NSD": 0.25, "volume_pred_ml": 4.0, "volume_ref_ml": 6.0}
    assert content["mean"] == {"ET": expected}
    assert {"tolerance_mm": 1.0, "meaning": NSD_DEFINITION} == content["nsd"]
    assert [None, None] == content["interval_95"]["foreground_mean"]
    assert content["foreground_mean"] == expected
    first, second = content["metric_per_case"]
    assert (first["prediction_file"], first["reference_file"]) == ("a.nii.gz", "a_seg.nii.gz")
    assert first["metrics"]["ET"]["n_pred"] == 4
    assert second["metrics"]["ET"]["Dice"] is None
    assert content["empty_regions"]["convention"] == "nnunet"
    assert content["hd95"] == HD95_DEFINITION
    assert "CANARY" not in text


def test_interval_of_the_mean_is_over_subjects():
    """Each subject's regions move together; what is undefined is left out, and a constant has no width."""
    rows = [SubjectMetrics(f"s{index}", region, 0.1 * index, 1.0) for index in range(10) for region in ("ET", "WT")]
    rows += [SubjectMetrics("x", "ET", math.nan, math.nan), SubjectMetrics("x", "TC", 0.5, 1.0), SubjectMetrics("y", "TC", 0.5, 1.0)]
    found = intervals_of(rows)

    assert [0.5, 0.5] == found["mean"]["TC"]
    low, high = found["mean"]["ET"]
    assert 0.25 < low < 0.3
    assert 0.6 < high < 0.65
    assert found["mean"]["ET"] == found["mean"]["WT"]
    assert found == intervals_of(rows)


def test_intervals_are_of_every_measure(tmp_path):
    """Dice, HD95 and NSD, each over the subjects where it is defined; those of Dice stand outside too."""
    rows = [(SubjectMetrics(f"s{index}", "ET", 0.1 * index, math.nan if index == 0 else float(index), 0.5),) for index in range(4)]
    subjects = [SubjectMeasures(row[0].subject, row, (Counts(1, 0, 0, 1),)) for row in rows]
    found = summary(subjects, convention="nnunet", tolerance_mm={"ET": 2.0})

    assert found["interval_95"]["mean"] == found["interval_95"]["Dice"]["mean"]
    assert [0.5, 0.5] == found["interval_95"]["NSD"]["mean"]["ET"]
    low, high = found["interval_95"]["HD95"]["mean"]["ET"]
    assert 1 <= low < found["mean"]["ET"]["HD95"] < high <= 3
    assert {"ET": 2.0} == found["nsd"]["tolerance_mm"]


def test_region_that_is_defined_nowhere_has_an_empty_interval():
    """It is there, without numbers, as its mean is."""
    found = summary([SubjectMeasures("a", (SubjectMetrics("a", "ET", math.nan, math.nan),), (Counts(0, 0, 0, 8),))], convention="nnunet")

    assert [None, None] == found["interval_95"]["mean"]["ET"]
    assert found["mean"]["ET"]["Dice"] is None
