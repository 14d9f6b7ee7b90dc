"""The paper's tables: numbers and intervals, in both kinds of file."""

from __future__ import annotations

import csv
import json
import math
from types import SimpleNamespace

import pytest

from mergekit3d.metrics import SubjectMetrics
from mergekit3d.reporting.results import Adaptation, Arm, StudyResults
from mergekit3d.study_tables import PaperTable, _dice, _forgetting, _lengths


def arm(name, seed, dice, **more):
    """An arm whose two test subjects have one region; the second is 0.2 better."""
    return Arm(name, "4 %", [SubjectMetrics("a", "WT", dice, 1.0), SubjectMetrics("b", "WT", dice + 0.2, 1.0)], seed=seed, **more)


@pytest.fixture
def results():
    """Two starts with two seeds, of which one is adapted."""
    return StudyResults(
        "study",
        arms=[
            arm("none", 0, 0.4),
            arm("none", 1, 0.5),
            arm("timm", 0, 0.5, epochs=8, validation_dice=0.7),
            arm("timm", 1, 0.6, epochs=10, validation_dice=0.8),
        ],
        adaptations=[Adaptation("4 %", {}, 0, epochs=4, validation_dice=0.4), Adaptation("4 %", {}, 1, epochs=6)],
    )


def test_table_2_has_both_intervals(results):
    """Over the seeds by Student's t (0.05 x 12.706 around the mean), over the subjects by bootstrap."""
    none, timm = _dice(results)

    assert ("none", "T-IMM", 2) == (none["initialisation"], timm["initialisation"], none["seeds"])
    assert [0.55, 0.55 - 0.05 * 12.7062, 0.55 + 0.05 * 12.7062] == pytest.approx(
        [none[key] for key in ("dice", "seeds_low_95", "seeds_high_95")], abs=1e-5
    )
    assert 0.45 <= none["subjects_low_95"] < 0.55 < none["subjects_high_95"] <= 0.65
    assert 0.65 == pytest.approx(timm["dice_WT"])


def test_table_3_has_a_row_a_stage(results):
    """Means over the seeds; a stage that was not logged has no row."""
    adaptation, finetuning = _lengths(results)

    assert ("adaptation", 5.0, 0.4) == (adaptation["stage"], adaptation["epochs"], adaptation["validation_dice"])
    assert math.isnan(adaptation["seeds_low_95"])
    assert ("fine-tuning", "T-IMM", 9.0) == (finetuning["stage"], finetuning["initialisation"], finetuning["epochs"])
    assert 0.75 == pytest.approx(finetuning["validation_dice"])


def test_table_4_has_an_interval_over_seeds_where_they_differ(tmp_path):
    """Of T-IMM; sources and uniform merges are the same network with every seed, and count as one."""
    for seed in (0, 1):
        (tmp_path / f"{seed}").mkdir()
        content = {"networks": ["m1", "imm", "timm"], "tasks": ["m1"], "dice": [[0.9], [0.4], [0.5 + 0.1 * seed]]}
        (tmp_path / f"{seed}" / "forgetting.json").write_text(json.dumps(content))
    groups = [[SimpleNamespace(size="4 %", seed=seed)] for seed in (0, 1)]
    study = SimpleNamespace(groups=lambda: groups, folder_of=lambda group: tmp_path / f"{group[0].seed}")
    rows = {row["network"]: row for row in _forgetting(study)}

    assert {"m1": 1, "IMM": 1, "T-IMM": 2} == {name: row["seeds"] for name, row in rows.items()}
    assert math.isnan(rows["IMM"]["seeds_low_95"])
    assert [0.55, 0.55 - 0.05 * 12.7062] == pytest.approx([rows["T-IMM"]["dice"], rows["T-IMM"]["seeds_low_95"]], abs=1e-5)


def test_csv_leaves_the_undefined_empty():
    """So that spreadsheets take the rest as numbers."""
    table = PaperTable("t", "T", [{"size": "4 %", "dice": 0.5}, {"size": "8 %", "dice": math.nan}])

    assert [["size", "dice"], ["4 %", "0.5"], ["8 %", ""]] == list(csv.reader(table.as_csv().splitlines()))


def test_markdown_has_a_column_an_initialisation(results):
    """As the paper sets it; a start that a size does not have leaves its cell empty."""
    rows = [*_dice(results), {"size": "8 %", "initialisation": "T-IMM", "dice": 0.9}]
    text = PaperTable("table-2", "Dice", rows, (("size",), "initialisation", "dice")).as_markdown()

    assert "| size | none | T-IMM |" in text
    assert "| 4 % | 0.550 (-0.085 to 1.185) ± 0.100 | 0.650 (0.015 to 1.285) ± 0.100 |" in text
    assert "| 8 % |  | 0.900 |" in text


def test_markdown_without_pivot_is_the_csv():
    """Row by row."""
    assert "| task | training |\n| --- | --- |\n| m1 | 18 |" in PaperTable("t", "T", [{"task": "m1", "training": 18}]).as_markdown()
