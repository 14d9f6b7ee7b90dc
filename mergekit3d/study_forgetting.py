"""The steps of a study that ask what its networks still know of the sources' tasks: the paper's Table 4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mergekit3d.forgetting_matrix import CSV, JSON, PICTURE, forgetting_matrix, read_forgetting, write_forgetting
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.steps import Step, files_identity
from mergekit3d.study import IMM, MEAN_IMM, MERGES, Study, label

SHARED = "forgetting-of-sources"
"""Folder of what all groups have in common."""


def forgetting_steps(study: Study) -> Iterator[Step]:
    """A matrix for every group of arms; with several groups, sources and uniform merges, which are the same in all, are measured once."""
    settings = study.loaded.recipe.study
    if settings is None or not settings.forgetting or not any(study.has_test(source.target) for source in study.loaded.recipe.sources):
        return
    groups = [[arm for arm in group if arm.initialisation in MERGES] for group in study.groups()]
    uniform = {arm.initialisation: arm.loaded for group in groups for arm in group if arm.initialisation in (IMM, MEAN_IMM)}
    shared = study.loaded.out / SHARED if len(groups) > 1 else None
    if shared is not None:
        yield _step(study, "forgetting of the sources", shared, list(uniform.values()), [])
    for whole, merged in zip(study.groups(), groups, strict=True):
        ratios = [arm.loaded.out / "adapt" / "ratios.json" for arm in merged if arm.initialisation not in uniform]
        name = label("forgetting", whole[0], with_initialisation=False)
        yield _step(study, name, study.folder_of(whole), [arm.loaded for arm in merged], ratios, shared)


def _step(
    study: Study, name: str, folder: Path, merges: Sequence[LoadedRecipe], ratios: Sequence[Path], shared: Path | None = None
) -> Step:
    """Measure a matrix and write it.

    Args:
        study: with sources.
        name: of the step.
        folder: where the matrix goes.
        merges: the recipe as each merge sees it.
        ratios: files of learned ratios that these use.
        shared: folder of rows that are measured already.
    """
    loaded = study.loaded
    sources = loaded.recipe.sources
    checkpoints = [loaded.checkpoint_path(source) for source in sources]
    fishers = [loaded.fisher_path(source) for source in sources] if merges else []
    rows = [] if shared is None else [shared / JSON, shared / CSV]

    def identity() -> Any:
        return [
            files_identity([*checkpoints, *fishers, *ratios, *rows]),
            [merge.recipe.merge.model_dump(mode="json") for merge in merges],
            loaded.recipe.partitions.model_dump(mode="json"),
            [source.model_dump(mode="json") for source in sources],
            loaded.recipe.predict.model_dump(mode="json"),
        ]

    def action() -> None:
        known = None if shared is None else read_forgetting(shared)
        write_forgetting(folder, forgetting_matrix(loaded, merges, known=known, options=study.options, reporter=study.reporter))

    return Step(name, tuple(folder / part for part in (JSON, CSV, PICTURE)), identity, action, (*checkpoints, *fishers, *ratios, *rows))
