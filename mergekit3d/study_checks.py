"""What can be told of a study before its first step: names, sizes, precisions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from mergekit3d.errors import ProblemCollector, RecipeError
from mergekit3d.plan.target import open_cohort, with_split
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.recipe.models import StudyModel
from mergekit3d.registry import did_you_mean
from mergekit3d.study import IMM, MEAN_IMM, MERGES, NONE, all_sources, slug

if TYPE_CHECKING:
    from mergekit3d.study import Study


def check_study(study: Study) -> None:
    """Refuse unknown initialisations, sizes without their subjects, and precisions that the device lacks.

    Args:
        study: whose data sets exist.

    Raises:
        MergeKit3DError: an unknown name; too few subjects; a recipe without a target that asks for more than merges; a device or
            precision that is not there.
    """
    from mergekit3d.training.devices import training_runtime

    loaded, model = study.loaded, study.loaded.recipe.study
    sources = [source.train for source in all_sources(loaded)]
    for training in (loaded.recipe.train, loaded.recipe.adapt, loaded.recipe.finetune, *sources):
        if training is not None:
            training_runtime(study.options.device, study.options.precision, training.precision)
    if model is None:
        return
    if loaded.recipe.target is None and (model.sizes or model.submission is not None):
        key = "sizes" if model.sizes else "submission"
        raise RecipeError(f"{key} of no target", where=f"study.{key}", todo="give the recipe a target, or leave them out")
    _check_names(loaded, model)
    _check_sizes(loaded, model)
    _check_submission(study, model)


def _check_names(loaded: LoadedRecipe, model: StudyModel) -> None:
    has_target = loaded.recipe.target is not None
    known = [NONE, *MERGES, *(source.name for source in all_sources(loaded))] if has_target else [IMM, MEAN_IMM]
    for where, init in _asked(model):
        if init not in known:
            todo = did_you_mean(init, known) if has_target else "without a target: imm, mean-imm"
            raise RecipeError("unknown initialisation", where=where, found=init, todo=todo)


def _asked(model: StudyModel) -> Iterator[tuple[str, str]]:
    """Every initialisation that a study asks for, with its key."""
    yield from (("study.initialisations", init) for init in model.initialisations)
    for name, size in model.sizes.items():
        yield from ((f"study.sizes.{name}.initialisations", init) for init in size.initialisations or ())


def _check_sizes(loaded: LoadedRecipe, model: StudyModel) -> None:
    """Every size has its subjects: a study must not learn after days of work that the last one lacks some."""
    target, problems = loaded.recipe.target, ProblemCollector()
    if target is None:
        return
    folders: dict[str, str] = {}
    for name, size in model.sizes.items():
        folder = slug(name)
        if not folder.strip("."):
            problems.add(RecipeError("no folder can have the name of a size", where="study.sizes", found=repr(name), todo="use letters"))
        elif folder in folders:
            found = f"{folders[folder]!r} and {name!r}"
            problems.add(RecipeError("two sizes would share one folder", where="study.sizes", found=found, todo="rename one"))
        folders[folder] = name
        problems.attempt(partial(open_cohort, loaded, with_split(target, size.split), key=f"study.sizes.{name}"))
    problems.raise_if_any()


def _check_submission(study: Study, model: StudyModel) -> None:
    asked = model.submission
    if asked is None:
        return
    if asked.size is not None and asked.size not in model.sizes:
        todo = did_you_mean(asked.size, list(model.sizes))
        raise RecipeError("unknown size", where="study.submission.size", found=asked.size, todo=todo)
    compared = {arm.initialisation for arm in study.arms if asked.size in (None, arm.size)}
    for init in asked.initialisations or ():
        if init not in compared:
            todo = did_you_mean(init, sorted(compared))
            raise RecipeError("no such network to submit", where="study.submission.initialisations", found=init, todo=todo)
    folder = study.loaded.data_path(asked.data)
    if not folder.exists():
        study.reporter.warn(f"study.submission is left out: {folder}: no such folder; --set data.{asked.data}=FOLDER names another")
