"""``mergekit3d finetune``: all weights trained on the target, from any initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.errors import InputError, RecipeError
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.plan.fusion import plan_fusion
from mergekit3d.plan.network import Start, checkpoint_start, fusion_start, network_for, random_start
from mergekit3d.plan.ratios import ADAPTED_RATIOS
from mergekit3d.plan.target import Cohort, open_cohort
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe import LoadedRecipe, load_recipe
from mergekit3d.storage.lock import output_lock

if TYPE_CHECKING:
    from mergekit3d.training.cohort import TrainResult

NONE, IMM, TIMM = "none", "imm", "timm"


def finetune(
    recipe: Path | str,
    *,
    overrides: Sequence[str] = (),
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> TrainResult:
    """Fine-tune all weights on the recipe's target.

    Args:
        recipe: YAML file with a target; ``finetune.init`` says where to start.
        overrides: ``key.path=value`` each.
        options: device, precision, seed, output folder.
        reporter: where progress goes.

    Returns:
        Where the checkpoints and the log are, and how training ended.

    Raises:
        MergeKit3DError: problems of the recipe, its data or its checkpoints, before any work.
    """
    loaded = load_recipe(recipe, overrides=overrides, out=options.out)
    return finetune_loaded(loaded, options=options, reporter=reporter)


def finetune_loaded(loaded: LoadedRecipe, *, options: Options = DEFAULT_OPTIONS, reporter: Reporter = SILENT) -> TrainResult:
    """Fine-tune by a recipe that is loaded already; see `finetune`."""
    from mergekit3d.training.cohort import Stage, refuse_trained, run_stage

    out = loaded.out / "finetune"
    refuse_trained(out, options)
    cohort = open_cohort(loaded, loaded.recipe.target)
    seed = loaded.recipe.seed if options.seed is None else options.seed
    init = loaded.recipe.finetune.init or (loaded.recipe.merge.method if loaded.recipe.sources else NONE)
    start = start_of(loaded, cohort, init, seed)
    stage = Stage("finetune", loaded, cohort, loaded.recipe.finetune, start, out, seed, {"initialisation": _public_name(loaded, init)})
    with output_lock(out):
        return run_stage(stage, options=options, reporter=reporter)


def start_of(loaded: LoadedRecipe, cohort: Cohort, init: str, seed: int) -> Start:
    """The network that ``finetune.init`` asks for.

    none: random. A source's name: its shared weights, the private ones new (as the paper compares). A merge method: the fused
    checkpoint where it is there, else what the fusion gives. A file: whatever of it fits.

    Raises:
        MergeKit3DError: the checkpoints cannot be used, or T-IMM has not been adapted yet.
    """
    if init == NONE:
        return random_start(network_for(loaded, cohort.task, None), seed)
    names = {source.name: source for source in (*loaded.recipe.sources, *loaded.recipe.baselines)}
    if init in names:
        alone = loaded.changed(
            sources=(names[init],),
            merge=loaded.recipe.merge.model_copy(
                update={"method": "mean-imm", "ratios": "uniform", "private": "random", "granularity": "model"}
            ),
        )
        return fusion_start(plan_fusion(alone, seed=seed))
    if init == loaded.recipe.merge.method and _method_of(loaded.merge_path) == init:
        return checkpoint_start(loaded, loaded.merge_path, cohort.task, seed)
    if init == TIMM:
        adapted = loaded.output_path(ADAPTED_RATIOS).with_name("checkpoint.safetensors")
        if not adapted.exists():
            raise InputError("the ratios are not learned yet", where=adapted, todo=f"run: mergekit3d adapt --recipe {loaded.path.name}")
        return checkpoint_start(loaded, adapted, cohort.task, seed)
    if init == IMM:
        merge = loaded.recipe.merge.model_copy(update={"method": IMM, "ratios": "uniform", "private": "random"})
        return fusion_start(plan_fusion(loaded.changed(merge=merge), seed=seed))
    path = loaded.merge_path if init == loaded.recipe.merge.method else loaded.input_path(init)
    if not path.exists():
        known = ", ".join([NONE, *names, IMM, TIMM])
        raise RecipeError(
            "nothing to start fine-tuning from",
            where=f"finetune.init: {init}",
            wanted=f"{known} or a checkpoint file",
            found="no such file",
        )
    return checkpoint_start(loaded, path, cohort.task, seed)


def _method_of(path: Path) -> str | None:
    """The merge method that wrote a file; None where there is no such file."""
    if not path.exists():
        return None
    metadata = open_checkpoint(path, verify=False).metadata
    return None if metadata is None else metadata.method


def _public_name(loaded: LoadedRecipe, init: str) -> str:
    """The initialisation as provenance tells it: a name, never a path."""
    names = {NONE, IMM, TIMM, loaded.recipe.merge.method, *(source.name for source in (*loaded.recipe.sources, *loaded.recipe.baselines))}
    return init if init in names else "file"
