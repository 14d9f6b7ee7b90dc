"""Greedy model soup: which sources to average, by their Dice on the target's validation subjects.

Source: Wortsman et al., "Model soups", ICML 2022, recipe 1; `mergekit3d.merging.methods.greedy_soup` has the choice itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mergekit3d.errors import RecipeError
from mergekit3d.merging.methods.greedy_soup import greedy_soup
from mergekit3d.metrics import mean_over_regions
from mergekit3d.options import Options
from mergekit3d.plan.fusion import FusionPlan
from mergekit3d.plan.network import fusion_start
from mergekit3d.plan.outcomes import RANDOM, ZERO
from mergekit3d.plan.target import open_cohort
from mergekit3d.progress import Reporter
from mergekit3d.recipe.load import LoadedRecipe


def choose_ingredients(
    loaded: LoadedRecipe, plan: FusionPlan, *, options: Options, reporter: Reporter
) -> tuple[FusionPlan, dict[str, Any]]:
    """Choose the sources of a greedy soup.

    Args:
        loaded: a recipe whose target has validation subjects.
        plan: of the average of all sources.
        options: device and precision.
        reporter: where progress goes.

    Returns:
        The plan of the average of the sources chosen (the others have a ratio of 0), and what the report says of the choice.

    Raises:
        RecipeError: no validation subjects, or sources that do not solve the target's task.
    """
    from mergekit3d.prediction import inference_of, measure_subjects, predictor_from
    from mergekit3d.training.batches import open_store

    _check(plan)
    cohort = open_cohort(loaded, loaded.recipe.target)
    subjects = cohort.subjects("validation")
    if not subjects:
        raise RecipeError(f"{plan.method.name} needs validation subjects", where="target.split", todo="set target.split.validation")
    store, names, scores = open_store(cohort, ("validation",), reporter), plan.ratios.sources, {}

    def score(chosen: Sequence[int]) -> float:
        start = fusion_start(averaging(plan, chosen))
        predictor = predictor_from(start.build(), start.network, cohort.task, options, **inference_of(loaded.recipe.predict))
        measured = measure_subjects(predictor, cohort.dataset, subjects, convention="nnunet", reporter=reporter, store=store)
        dice = mean_over_regions([measures for subject in measured for measures in subject.rows]).dice
        soup = " + ".join(names[index] for index in chosen)
        scores[soup] = dice
        reporter.info(f"{soup}: mean Dice {dice:.4f} on {len(subjects)} validation subjects")
        return dice

    chosen = greedy_soup(len(names), score)
    return averaging(plan, chosen), {"soup": [names[index] for index in chosen], "validation_dice": scores}


def averaging(plan: FusionPlan, chosen: Sequence[int]) -> FusionPlan:
    """The plan with equal ratios for the sources of these numbers and 0 for the others."""
    row = [1 / len(chosen) if index in chosen else 0.0 for index in range(len(plan.sources))]
    return replace(plan, ratios=replace(plan.ratios, layers=dict.fromkeys(plan.ratios.layers, row)))


def _check(plan: FusionPlan) -> None:
    """Refuse plans whose networks would be evaluated with weights that no source has."""
    for tensor in plan.owners:
        if tensor.outcome in (RANDOM, ZERO):
            raise RecipeError(
                f"{plan.method.name} evaluates its sources, and this tensor is of none of them",
                where=tensor.entry.name,
                found=tensor.detail or tensor.outcome,
                todo="give sources that solve the target's task, or set merge.private to one of them",
            )
