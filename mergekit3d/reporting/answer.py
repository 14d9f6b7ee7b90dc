"""The answer of a study in sentences, computed from its numbers: whichever initialisation wins, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergekit3d.comparison import Comparison, p_words
from mergekit3d.paired import FEWEST_PAIRS, student_interval
from mergekit3d.reporting.evidence import pair, paper_order, ranking, seed_differences
from mergekit3d.reporting.results import StudyResults, display_name, listed

TIED = 0.0005
"""Means closer than this print alike."""


@dataclass(frozen=True)
class Answer:
    """What the study says.

    Args:
        headline: one sentence.
        details: a sentence or two each, in order of weight.
    """

    headline: str
    details: tuple[str, ...]


def answer(results: StudyResults) -> Answer | None:
    """The answer to "which initialisation is best"; None where fewer than two were measured."""
    ranked = {split: ranking(results, split) for split in results.splits}
    ranked = {split: order for split, order in ranked.items() if len(order) > 1}
    if not ranked:
        return None
    details = []
    for split, order in ranked.items():
        start = f"{split}: " if len(ranked) > 1 else ""
        details += [start + sentence for sentence in _of_split(results, split, order)]
    return Answer(_headline(ranked), (*details, _about_seeds(results)))


def _headline(ranked: dict[str, list[tuple[str, float]]]) -> str:
    if len(ranked) == 1:
        ((best, mean), (runner_up, next_mean), *_) = next(iter(ranked.values()))
        if mean - next_mean < TIED:
            return f"{display_name(best)} and {display_name(runner_up)} reached the same mean test Dice, {mean:.3f}."
        return (
            f"Starting from {_phrase(best)} gave the highest mean test Dice, {mean:.3f}; "
            f"next came {_phrase(runner_up)} with {next_mean:.3f}."
        )
    winners = [f"{display_name(order[0][0])} at {split} ({order[0][1]:.3f})" for split, order in ranked.items()]
    return f"Highest mean test Dice: {listed(winners)}."


def _of_split(results: StudyResults, split: str, order: Sequence[tuple[str, float]]) -> list[str]:
    best, runner_up = order[0][0], order[1][0]
    pairs = [(best, runner_up)]
    if {best, runner_up} != {"timm", "imm"} and {"timm", "imm"} <= {name for name, _ in order}:
        pairs.append(("timm", "imm"))
    sentences = []
    for first, other in pairs:
        found = pair(results, split, first, other)
        if found is not None:
            sentences.append(difference_sentence(found.first, found.of_mean()[0], seed_differences(results, split, first, other)))
    paper = paper_order(results, split)
    if paper is not None:
        measured, holds = paper
        named = " > ".join(f"{display_name(name)} {mean:.3f}" for name, mean in sorted(measured, key=lambda entry: -entry[1]))
        verdict = "held" if holds else "did not hold"
        sentences.append(f"The paper's order, T-IMM > IMM > best single source > none, {verdict}: {named}.")
    return sentences


def difference_sentence(first: str, comparison: Comparison, by_seed: Sequence[float] = ()) -> str:
    """How one method compares with another, with what that is worth.

    Args:
        first: name of the method.
        comparison: with the other, of the mean over the regions.
        by_seed: difference of the means with each seed.
    """
    low, high = comparison.interval_95
    pairs = len(comparison.differences)
    words = (
        f"{first} against {comparison.other}: {comparison.mean_difference:+.3f} Dice on average "
        f"(95 % interval over subjects {low:+.3f} to {high:+.3f}; Wilcoxon {_unbroken(p_words(comparison.p))}), "
        f"better on {comparison.wins} of {pairs} test subjects"
    )
    low_seeds, high_seeds = student_interval(by_seed)
    if len(by_seed) > 1:
        won = sum(difference > 0 for difference in by_seed)
        words += f" and in {won} of {len(by_seed)} seeds (95 % interval over seeds {low_seeds:+.3f} to {high_seeds:+.3f})"
    return f"{words}. {_certainty(comparison, low_seeds <= 0 <= high_seeds)}".strip()


def _certainty(comparison: Comparison, seeds_include_0: bool) -> str:
    low, high = comparison.interval_95
    if len(comparison.differences) < FEWEST_PAIRS:
        return f"With fewer than {FEWEST_PAIRS} subjects no test can tell them apart."
    if low <= 0 <= high:
        return "The interval includes 0: these subjects do not tell the two apart."
    return "The interval over seeds includes 0: other seeds may turn the order." if seeds_include_0 else ""


def _unbroken(words: str) -> str:
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def _about_seeds(results: StudyResults) -> str:
    if len(results.seeds) > 1:
        return (
            f"Means over {len(results.seeds)} seeds. An interval over subjects knows nothing of the seeds' spread, and one over seeds "
            "nothing of the subjects'."
        )
    return (
        "One seed: the intervals are over subjects alone. Another seed may turn the order, and one proves nothing about the size of "
        "a difference."
    )


def _phrase(name: str) -> str:
    return {"none": "random weights (none)", "imm": "the merge IMM", "timm": "the adaptive merge T-IMM"}.get(name, f"{name} alone")
