from __future__ import annotations

from dataclasses import replace

import pytest

from mergekit3d.metrics import SubjectMetrics
from mergekit3d.reporting.answer import answer
from mergekit3d.reporting.results import Arm, StudyResults


def shifted(arm, by):
    rows = [SubjectMetrics(row.subject, row.region, row.dice + by, row.hd95) for row in arm.metrics]
    return replace(arm, metrics=rows)


def test_the_headline_names_winner_and_runner_up(arms):
    """Names and means come from the numbers."""
    found = answer(StudyResults("study", arms))
    assert (
        found.headline
        == "Starting from the adaptive merge T-IMM gave the highest mean test Dice, 0.700; next came the merge IMM with 0.600."
    )


def test_whichever_initialisation_wins_is_named(arms):
    """A study where random weights win says so, and that the paper's order did not hold."""
    arms[0] = shifted(arms[0], 0.4)
    found = answer(StudyResults("study", arms))
    assert found.headline.startswith("Starting from random weights (none) gave the highest mean test Dice, 0.800; next came")
    order = next(detail for detail in found.details if detail.startswith("The paper's order"))
    assert order.endswith("did not hold: none 0.800 > T-IMM 0.700 > IMM 0.600 > m1 0.520.")
    assert any(detail.startswith("T-IMM against IMM: +0.100 Dice") for detail in found.details)


def test_the_papers_order_is_checked_with_the_best_single_source(arms):
    """T-IMM > IMM > best single source > none."""
    found = answer(StudyResults("study", arms))
    assert "held: T-IMM 0.700 > IMM 0.600 > m1 0.520 > none 0.400." in found.details[1]


def test_one_seed_is_told(arms):
    """What one seed can and cannot show stands last."""
    assert answer(StudyResults("study", arms)).details[-1].startswith("One seed: the intervals are over subjects alone.")


def test_several_seeds_are_counted(arms):
    """In how many of the seeds the winner was ahead, with the interval over them; one that holds 0 is told, whatever the subjects say."""
    again = [replace(shifted(arm, -0.15 if arm.name == "timm" else 0.0), seed=1) for arm in arms]
    found = answer(StudyResults("study", [*arms, *again]))
    assert "and in 1 of 2 seeds (95 % interval over seeds -0.928 to +0.978). The interval over seeds includes 0" in found.details[0]
    assert found.details[-1].startswith("Means over 2 seeds")


def test_a_difference_within_its_interval_is_told(arms):
    """Where the interval includes 0 the sentence says that the subjects do not tell the two apart."""
    rows = [
        SubjectMetrics(row.subject, row.region, row.dice + (0.1 if index % 4 < 2 else -0.098), 1.0)
        for index, row in enumerate(arms[3].metrics)
    ]
    found = answer(StudyResults("study", [arms[3], replace(arms[4], metrics=rows)]))
    assert "The interval includes 0: these subjects do not tell the two apart." in found.details[0]


def test_few_subjects_are_told(arms):
    """With five subjects no test can tell two initialisations apart."""
    few = [replace(arm, metrics=[row for row in arm.metrics if row.subject < "s5"]) for arm in arms]
    assert "With fewer than 6 subjects no test can tell them apart." in answer(StudyResults("study", few)).details[0]


def test_several_sizes_have_a_winner_each(arms):
    """The headline lists the sizes."""
    more = [replace(shifted(arm, 0.3 if arm.name == "m2" else 0.1), split="8 subjects") for arm in arms]
    found = answer(StudyResults("study", [*arms, *more]))
    assert "T-IMM at 4 subjects (0.700)" in found.headline
    assert found.details[0].startswith("4 subjects: ")


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare_has_no_answer(arms, count):
    """One initialisation wins nothing."""
    assert answer(StudyResults("study", arms[:count])) is None


def test_equal_means_are_a_tie():
    """Two that print alike are not ranked."""
    rows = [SubjectMetrics("a", "ET", 0.5, 1.0)]
    found = answer(StudyResults("study", [Arm("imm", "4", rows), Arm("timm", "4", rows)]))
    assert found.headline == "IMM and T-IMM reached the same mean test Dice, 0.500."
