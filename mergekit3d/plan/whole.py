"""Every problem of a whole recipe at once, before its first step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mergekit3d.architectures import check_arguments, network_of, network_shapes
from mergekit3d.checkpoints import format_for, open_checkpoint
from mergekit3d.errors import InputError, MergeKit3DError, ProblemCollector, RecipeError
from mergekit3d.merging.methods import METHODS, parameters_of
from mergekit3d.plan.constraints import check_constraints
from mergekit3d.plan.network import network_for
from mergekit3d.plan.target import open_cohort
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.recipe.models import SourceModel, TargetModel, TrainModel, WholeModel

NONE = "none"


def check_whole(loaded: LoadedRecipe) -> None:
    """Look at all data sets, checkpoints and names of a recipe.

    Raises:
        MergeKit3DError: every problem found.
    """
    recipe, problems = loaded.recipe, ProblemCollector()

    def attempt(check: Callable[[], object]) -> bool:
        try:
            check()
        except MergeKit3DError as error:
            problems.add(error)
            return False
        return True

    known = attempt(lambda: _check_architecture(loaded))
    attempt(lambda: parameters_of(METHODS.get(recipe.merge.method), recipe.merge.parameters))
    if recipe.sources:
        attempt(lambda: format_for(loaded.merge_path).writer())
    if recipe.target is None and recipe.train is None and not recipe.sources:
        problems.add(RecipeError("the recipe asks for nothing", where=loaded.path, wanted="a target, and sources or train"))
    if recipe.target is not None:
        model, key = (recipe.finetune, "finetune") if recipe.train is None else (recipe.train, "train")
        attempt(partial(_check_task, loaded, recipe.target, "target", model if known else None, key))
    earlier: list[str] = []
    for source in (*recipe.sources, *recipe.baselines):
        if source.target is not None:
            trained, where = source.train if source.checkpoint is None and known else None, f"sources.{source.name}"
            attempt(partial(_check_task, loaded, source.target, f"{where}.target", trained, f"{where}.train"))
        attempt(partial(_check_start, loaded, source, earlier))
        earlier.append(source.name)
    if recipe.train is not None and recipe.train.init != NONE:
        path = loaded.input_path(recipe.train.init)
        attempt(lambda: open_checkpoint(path, verify=False))
    problems.raise_if_any()


def _check_start(loaded: LoadedRecipe, source: SourceModel, earlier: list[str]) -> None:
    if source.checkpoint is not None:
        open_checkpoint(loaded.checkpoint_path(source), verify=False)
        if source.target is None and not loaded.fisher_path(source).exists() and METHODS.get(loaded.recipe.merge.method).uses_fisher:
            todo = f"run: mergekit3d fisher {source.checkpoint} --data <its data set>, or give the source a target"
            raise InputError("no Fisher diagonal", where=f"source {source.name!r}", todo=todo)
        return
    assert source.train is not None
    if source.train.init not in (NONE, *earlier):
        open_checkpoint(loaded.input_path(source.train.init), verify=False)


def _check_architecture(loaded: LoadedRecipe) -> None:
    given = loaded.architecture
    if given is not None:
        check_arguments(given.name, given.arguments)


def _check_task(loaded: LoadedRecipe, target: TargetModel, where: str, model: WholeModel | None, key: str) -> None:
    """The data of a task, and what its training freezes, rates and holds, as far as the network is known before the first step."""
    task = open_cohort(loaded, target, key=where).task
    if model is None or not model.is_held:
        return
    paths = [loaded.checkpoint_path(source) for source in loaded.recipe.sources]
    if isinstance(model, TrainModel):
        paths.append(loaded.input_path(model.init))
    known = next((network_of(open_checkpoint(path, verify=False)) for path in paths if path.exists()), None)
    network = network_for(loaded, task, known)
    check_constraints(loaded, model, network, network_shapes(network), key)
