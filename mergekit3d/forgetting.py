"""How much of the sources' tasks a merge still knows: Table 4 of the T-IMM paper, for any number of tasks in a row.

Every source and merge is evaluated on the test subjects of every source's task, its shared tensors with that source's private ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.metrics import mean_over_regions
from mergekit3d.options import Options
from mergekit3d.plan.fusion import plan_fusion
from mergekit3d.plan.network import fusion_start
from mergekit3d.plan.target import open_cohort
from mergekit3d.progress import Reporter
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.recipe.models import SourceModel
from mergekit3d.storage.atomic import write_json


@dataclass(frozen=True)
class Forgetting:
    """Mean test Dice of every network on every source's task.

    Args:
        networks: names of the rows: sources, then merges.
        tasks: names of the columns: sources whose task it is.
        dice: mean over regions and test subjects.
    """

    networks: tuple[str, ...]
    tasks: tuple[str, ...]
    dice: tuple[tuple[float, ...], ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"networks": list(self.networks), "tasks": list(self.tasks), "dice": [list(row) for row in self.dice]}


def write_forgetting(path: Path, forgetting: Forgetting) -> None:
    """Write a forgetting matrix as JSON."""
    write_json(path, forgetting.as_json())


def forgetting_matrix(loaded: LoadedRecipe, merges: Sequence[LoadedRecipe], *, options: Options, reporter: Reporter) -> Forgetting:
    """Evaluate sources and merges on the sources' test subjects.

    Args:
        loaded: the recipe, with sources that tell their targets.
        merges: the recipe as each merge sees it.
        options: device and precision.
        reporter: where progress goes.

    Returns:
        A row for every source and merge, a column for every source with test subjects.
    """
    tasks = [source for source in loaded.recipe.sources if source.target is not None and open_cohort(loaded, source.target).split.test]
    names = [source.name for source in loaded.recipe.sources]
    rows: list[tuple[str, LoadedRecipe]] = []
    for name in names:
        alone: dict[str, float | dict[str, float]] = {other: float(other == name) for other in names}
        rows.append((name, _merging(loaded, "mean-imm", alone)))
    rows += [(merge.recipe.merge.method, merge.changed(target=None)) for merge in merges]
    columns = [_dice_on_task(loaded, source, [row for _, row in rows], options, reporter) for source in tasks]
    dice = tuple(zip(*columns, strict=True))
    return Forgetting(tuple(name for name, _ in rows), tuple(source.name for source in tasks), dice)


def _merging(loaded: LoadedRecipe, method: str, ratios: dict[str, float | dict[str, float]]) -> LoadedRecipe:
    merge = loaded.recipe.merge.model_copy(update={"method": method, "ratios": ratios, "granularity": "model"})
    return loaded.changed(target=None, merge=merge)


def _dice_on_task(
    loaded: LoadedRecipe, source: SourceModel, rows: Sequence[LoadedRecipe], options: Options, reporter: Reporter
) -> list[float]:
    """Mean Dice of every merge, with one source's private tensors, on that source's test subjects."""
    from mergekit3d.prediction import measure_subjects, predictor_from
    from mergekit3d.training.batches import open_store

    cohort = open_cohort(loaded, source.target)
    store, column = open_store(cohort, ("test",), reporter), []
    for row in rows:
        merge = row.recipe.merge.model_copy(update={"private": source.name})
        start = fusion_start(plan_fusion(row.changed(merge=merge)))
        predictor = predictor_from(start.build(), start.network, cohort.task, options)
        subjects = measure_subjects(predictor, cohort.dataset, cohort.subjects("test"), convention="nnunet", reporter=reporter, store=store)
        column.append(mean_over_regions([measures for subject in subjects for measures in subject.rows]).dice)
    return column
