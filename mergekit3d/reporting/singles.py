"""The answer of a single command's run in sentences: what a reader wants to know first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mergekit3d.metrics import defined_mean, means_by_region
from mergekit3d.reporting.answer import Answer, difference_sentence
from mergekit3d.reporting.charts import ratio_words
from mergekit3d.reporting.evidence import arm_dice
from mergekit3d.reporting.results import Fisher, StudyResults
from mergekit3d.summaries import intervals_of

STAGES = ("training", "fine-tuning", "adaptation")
"""Names of trainings that are words."""


def single_answer(results: StudyResults) -> Answer | None:
    """What each part says in a sentence, the first as the headline; None where there is nothing to say."""
    sentences = [*_measured(results), *_compared(results), *_forgotten(results), *_adapted(results), *_fused(results)]
    sentences += [*_trained(results), *(_known(name, fisher) for name, fisher in results.fishers.items())]
    return Answer(sentences[0], tuple(sentences[1:])) if sentences else None


def _measured(results: StudyResults) -> list[str]:
    found = [(f"fine-tuned, {split}", arm_dice(results, split, name)) for split in results.splits for name in results.names]
    sentences = [_dice(name, arm.mean, arm.interval_95, len(arm.by_subject)) for name, arm in found]
    for evaluation in results.evaluations:
        mean = defined_mean(region.dice for region in means_by_region(evaluation.metrics).values())
        low, high = intervals_of(evaluation.metrics)["foreground_mean"]
        subjects = len({row.subject for row in evaluation.metrics})
        sentences.append(_dice(evaluation.name if len(results.evaluations) > 1 else "", mean, (low, high), subjects))
    return sentences


def _dice(name: str, mean: float, interval_95: tuple[float, float], subjects: int) -> str:
    if math.isnan(mean):
        return f"{f'{name}: ' if name else ''}No region is defined in any subject, so there is no mean Dice."
    low, high = interval_95
    between = "" if math.isnan(low) else f" (95 % interval {low:.3f} to {high:.3f})"
    return f"{f'{name}: ' if name else ''}Mean Dice {mean:.3f}{between} on {subjects} subject{'s' if subjects != 1 else ''}."


def _compared(results: StudyResults) -> list[str]:
    return [difference_sentence(found.first, comparison) for found in results.comparisons.values() for comparison in found.of_mean()]


def _forgotten(results: StudyResults) -> list[str]:
    found = results.forgetting
    if found is None:
        return []
    # A network that was not measured on every task would be ranked by the easier ones.
    columns = [[row[index] for row in found.dice] for index in range(len(found.columns))]
    measured = {network: [value for value in dice if value is not None] for network, dice in zip(found.columns, columns, strict=True)}
    known = {
        network: defined_mean(dice) for network, dice in measured.items() if len(dice) == len(found.dice) and not any(map(math.isnan, dice))
    }
    if not known:
        return []
    best = max(known, key=lambda network: known[network])
    highest = f"{best} has the highest mean Dice, {known[best]:.3f}, of {len(known)} networks"
    return [f"Over the sources' own tasks {highest} that were measured on all of them."]


def _adapted(results: StudyResults) -> list[str]:
    sentences = []
    for adaptation in results.adaptations[:1]:
        words = ratio_words(adaptation.ratios)
        epochs = "" if adaptation.epochs is None else f" after {adaptation.epochs} epoch{'s' if adaptation.epochs != 1 else ''}"
        dice = "" if adaptation.validation_dice is None else f"; validation Dice {adaptation.validation_dice:.3f}"
        sentences.append(f"The mixing ratios{epochs}: {words}{dice}.")
    return sentences


def _fused(results: StudyResults) -> list[str]:
    return [f"{name}: {words}" for name, fusion in results.fusions.items() if (words := _weights(fusion))]


def _weights(fusion: Mapping[str, Any]) -> str:
    summary = fusion.get("summary") or {}
    share, distance = summary.get("share") or {}, summary.get("distance") or {}
    parts = []
    for source in fusion.get("sources", ()):
        weighs = f" weighs {100 * share[source]:.0f} %" if isinstance(share.get(source), float) else ""
        away = f"{',' if weighs else ' is'} {100 * distance[source]:.1f} % away" if isinstance(distance.get(source), float) else ""
        parts += [f"{source}{weighs}{away}"] if weighs or away else []
    return f"of the fused weights, {'; '.join(parts)}." if parts else ""


def _trained(results: StudyResults) -> list[str]:
    sentences = []
    for training in results.trainings:
        if training.epochs is not None:
            dice = "" if training.validation_dice is None else f"; validation Dice {training.validation_dice:.3f} at the best of them"
            name = training.name.capitalize() if training.name in STAGES else training.name
            sentences.append(f"{name}: {training.epochs} epoch{'s' if training.epochs != 1 else ''}{dice}.")
    return sentences


def _known(name: str, fisher: Fisher) -> str:
    error = "" if fisher.standard_error is None or not fisher.trace else f" ± {100 * fisher.standard_error / fisher.trace:.2g} %"
    subjects = "" if fisher.subjects is None else f" over {fisher.subjects} subjects"
    most = max(fisher.layers, key=lambda layer: fisher.layers[layer].trace)
    part = fisher.layers[most].trace / fisher.trace if fisher.trace else 0.0
    return f"{name}: a Fisher trace of {fisher.trace:.4g}{error}{subjects}; the largest part of it, {100 * part:.0f} %, is in {most}."
