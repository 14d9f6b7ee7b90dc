from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from mergekit3d.reporting.results import Adaptation, StudyResults, Training
from mergekit3d.reporting.tables import (
    MISSING,
    comparison_tables,
    dice_table,
    forgetting_table,
    layers_table,
    lengths_table,
    print_tables,
    region_tables,
    tensors_table,
    trainings_table,
)


def texts(table):
    return {label: [cell.text.replace("\N{NO-BREAK SPACE}", " ") for cell in cells] for label, cells in table.rows}


def test_table_2_has_a_row_a_size_and_the_best_marked(arms):
    """Columns in the order of the arms, the paper's names; an initialisation that was not run has a dash."""
    more = [replace(arm, split="8 subjects") for arm in arms if arm.name != "imm"]
    table = dice_table(StudyResults("study", [*arms, *more]))
    assert table.columns == ("none", "m1", "m2", "IMM", "T-IMM")
    assert {
        "4 subjects": ["0.400", "0.520", "0.500", "0.600", "0.700"],
        "8 subjects": ["0.400", "0.520", "0.500", MISSING, "0.700"],
    } == texts(table)
    assert [False, False, False, False, True] == [cell.best for cell in table.rows[0][1]]
    assert table.caption == "Mean test Dice of ET and WT after fine-tuning from each initialisation"


def test_all_that_print_as_the_best_are_marked(arms):
    """A tie at three decimals is a tie."""
    tied = [arms[3], replace(arms[4], metrics=arms[3].metrics)]
    assert [True, True] == [cell.best for cell in dice_table(StudyResults("study", tied)).rows[0][1]]


def test_several_seeds_show_their_spread(arms):
    """The mean over the seeds, and its interval by Student's t: 0.01 x 12.706 around it."""
    again = [replace(arm, seed=1, metrics=[replace(row, dice=row.dice + 0.02) for row in arm.metrics]) for arm in arms]
    table = dice_table(StudyResults("study", [*arms, *again]))
    assert table.rows[0][1][0].text == "0.410"
    assert table.rows[0][1][0].detail.endswith("\n(0.28 to 0.54)")


def test_regions_are_told_one_by_one(arms):
    """Dice and HD95 of each region."""
    (table,) = region_tables(StudyResults("study", arms))
    assert {"ET": ["0.300", "0.420", "0.400", "0.500", "0.600"], "WT": ["0.500", "0.620", "0.600", "0.700", "0.800"]} == texts(table)
    assert table.rows[0][1][0].detail == "5.0 mm"


def test_comparisons_are_of_timm_with_each_other(arms):
    """Constant differences: better on every subject."""
    (table,) = comparison_tables(StudyResults("study", arms))
    assert {"none": "+0.300", "m1": "+0.180", "m2": "+0.200", "IMM": "+0.100"} == {label: cells[0].text for label, cells in table.rows}
    assert (table.rows[0][1][1].text, table.rows[0][1][1].detail) == ("8", "of 8")
    assert table.rows[0][1][2].text == "0.008"


def test_table_3_gives_lengths_and_validation_dice(arms):
    """Adaptation first, then fine-tuning from each initialisation."""
    results = StudyResults("study", arms, adaptations=[Adaptation("4 subjects", {}, epochs=15, validation_dice=0.44)])
    table = lengths_table(results)
    assert table.columns == ("adaptation", "from none", "from m1", "from m2", "from IMM", "from T-IMM")
    assert [("15", "0.440"), ("20", "0.400")] == [(cell.text, cell.detail) for cell in table.rows[0][1][:2]]
    assert {"m1": ["30", "0.850"]} == texts(trainings_table(StudyResults("study", trainings=[Training("m1", None, 30, 0.85)])))


def test_table_4_tints_by_value(everything):
    """What was not measured has a dash and no tint."""
    ((_, cells),) = forgetting_table(everything).rows
    assert [("0.890", 0.89), (MISSING, None)] == [(cell.text, cell.share) for cell in cells]


def test_tensors_are_counted_by_outcome():
    """One row a tensor; ratios by kernel as a range."""
    fusion = {
        "tensors": [
            {
                "name": "a.weight",
                "outcome": "fused",
                "partition": "shared",
                "shape": [4, 2, 3],
                "ratios": {"m1": [0.1, 0.3], "m2": [0.9, 0.7]},
                "share": {"m1": 0.828, "m2": 0.172},
                "distance": {"m1": 0.173, "m2": None},
            },
            {"name": "b.weight", "outcome": "random", "shape": []},
        ]
    }
    counts, table = tensors_table(fusion)
    assert counts == {"fused": 1, "random": 1}
    fused = ["fused, shared", "4 × 2 × 3", "m1 0.100 to 0.300, m2 0.700 to 0.900", "m1 82.8 %, m2 17.2 %", "m1 17.3 %, m2 –", ""]
    assert {"a.weight": fused, "b.weight": ["random", "", "", "", "", ""]} == texts(table)


def test_layers_tell_how_much_each_source_weighs():
    """A row a layer with its tensors by outcome, shares tinted; reports from before there were figures have no such table."""
    tensors = [{"name": f"a.{kind}", "outcome": "fused"} for kind in ("weight", "bias")] + [{"name": "b.weight", "outcome": "copied"}]
    figures = {"a": {"share": {"m1": 0.75, "m2": 0.25}, "distance": {"m1": 0.1, "m2": 0.2}}}
    table = layers_table({"sources": ["m1", "m2"], "tensors": tensors, "per_layer": figures})
    assert table is not None
    assert {"a": ["2 fused", "75.0 %", "25.0 %", "10.0 %", "20.0 %"], "b": ["1 copied", *[MISSING] * 4]} == texts(table)
    assert layers_table({"tensors": tensors}) is None


def test_missing_parts_have_no_table():
    """An empty study has no tables at all."""
    empty = StudyResults("study")
    assert [dice_table(empty), lengths_table(empty), trainings_table(empty), forgetting_table(empty)] == [None] * 4
    assert [[], [], []] == [region_tables(empty), comparison_tables(empty), print_tables(empty)]


@pytest.mark.parametrize("width", [60, 100])
def test_tables_on_the_screen_mark_the_best_without_colour(arms, width):
    """A star tells the best in a log file; names with brackets are no markup."""
    named = [*arms[1:], replace(arms[0], name="[red]all[/red]")]
    output = io.StringIO()
    console = Console(file=output, width=width, no_color=True)
    for table in print_tables(StudyResults("study", named)):
        console.print(table)
    assert "0.700*" in output.getvalue()
    assert "0.600*" not in output.getvalue()
    if width == 100:
        assert "[red]all[/red]" in output.getvalue()
