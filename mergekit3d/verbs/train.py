"""``mergekit3d train``: a source model, from random or from another source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit3d.errors import RecipeError
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.plan.anchors import FISHER, Anchors, checkpoint_anchors
from mergekit3d.plan.constraints import plan_constraints
from mergekit3d.plan.network import Start, checkpoint_start, network_for, random_start
from mergekit3d.plan.target import Cohort, open_cohort
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe import LoadedRecipe, load_recipe
from mergekit3d.recipe.load import fisher_beside
from mergekit3d.recipe.models import TargetModel, TrainModel
from mergekit3d.storage.lock import output_lock
from mergekit3d.training.processes import ALONE, ProcessGroup, shared_work

if TYPE_CHECKING:
    from mergekit3d.training.cohort import TrainResult

NONE = "none"


def train(
    recipe: Path | str,
    *,
    overrides: Sequence[str] = (),
    allow_outside: Sequence[Path | str] = (),
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> TrainResult:
    """Train a source model.

    Started by torchrun, the processes share the samples of each step, and the first of them reports and writes.

    Args:
        recipe: YAML file with target and train.
        overrides: ``key.path=value`` each.
        allow_outside: folders beside the recipe's own, and the output folder, that the recipe may write to.
        options: device, precision, seed, output folder.
        reporter: where progress goes.

    Returns:
        Where the checkpoints and the log are, and how training ended.

    Raises:
        MergeKit3DError: problems of the recipe, its data or the initial checkpoint, before any work.
    """

    def load() -> tuple[LoadedRecipe, TrainModel]:
        loaded = load_recipe(recipe, overrides=overrides, allow_outside=allow_outside, out=options.out)
        if loaded.recipe.train is None:
            raise RecipeError("the recipe trains nothing", where=loaded.path, wanted="train", todo="for example train: {init: none}")
        return loaded, loaded.recipe.train

    with shared_work(options, reporter, training=True) as (group, own_options, own_reporter):
        loaded, model = group.agree(load)
        out = loaded.out / "train"
        return train_model(loaded, loaded.recipe.target, model, out=out, group=group, options=own_options, reporter=own_reporter)


def train_model(
    loaded: LoadedRecipe,
    target: TargetModel | None,
    model: TrainModel,
    *,
    out: Path,
    earlier: Mapping[str, Path] | None = None,
    group: ProcessGroup = ALONE,
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> TrainResult:
    """Train one model of a recipe.

    Args:
        loaded: the recipe.
        target: the task to train on.
        model: how to train.
        out: folder for best, last, log and picture.
        earlier: checkpoints that ``init`` may name.
        group: the processes that share the training.
        options: device, precision, seed.
        reporter: where progress goes.

    Returns:
        See `train`.
    """
    from mergekit3d.training.cohort import Stage, refuse_trained, run_stage

    def plan() -> Stage:
        refuse_trained(out, options)
        cohort = open_cohort(loaded, target)
        seed = loaded.recipe.seed if options.seed is None else options.seed
        start = start_of(loaded, cohort, model, earlier or {}, seed)
        constraints = plan_constraints(loaded, model, start, lambda: _anchors(loaded, cohort, model, earlier or {}, start), "train")
        return Stage("train", loaded, cohort, model, start, out, seed, constraints=constraints)

    stage = group.agree(plan)
    with group.first_holds(lambda: output_lock(out)):
        return run_stage(stage, group=group, options=options, reporter=reporter)


def start_of(loaded: LoadedRecipe, cohort: Cohort, model: TrainModel, earlier: Mapping[str, Path], seed: int) -> Start:
    """The network that ``train.init`` asks for: random, an earlier source's, or a file's."""
    if model.init == NONE:
        return random_start(network_for(loaded, cohort.task, None), seed, model.initialisation)
    return checkpoint_start(loaded, init_path(loaded, model, earlier), cohort.task, seed)


def init_path(loaded: LoadedRecipe, model: TrainModel, earlier: Mapping[str, Path]) -> Path:
    """The checkpoint that ``train.init`` names: an earlier source's, or a file."""
    return earlier.get(model.init, loaded.input_path(model.init))


def init_fisher(loaded: LoadedRecipe, model: TrainModel, earlier: Mapping[str, Path]) -> Path | None:
    """The Fisher diagonal of ``train.init``, where training is regularised by it."""
    if model.regularise is None or model.regularise.by != FISHER:
        return None
    for source in loaded.recipe.sources:
        if source.name == model.init and model.init in earlier:
            return loaded.fisher_path(source)
    return fisher_beside(init_path(loaded, model, earlier))


def _anchors(loaded: LoadedRecipe, cohort: Cohort, model: TrainModel, earlier: Mapping[str, Path], start: Start) -> Anchors:
    assert model.regularise is not None
    path, fisher = init_path(loaded, model, earlier), init_fisher(loaded, model, earlier)
    return checkpoint_anchors(loaded, path, fisher, start, cohort.task, model.regularise.by)
