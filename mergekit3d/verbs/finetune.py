"""``mergekit3d finetune``: all weights trained on the target, from any initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.checkpoints import Metadata, open_checkpoint
from mergekit3d.errors import InputError, RecipeError
from mergekit3d.merging.methods import METHODS
from mergekit3d.nearby import did_you_mean_file
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.plan.anchors import FISHER, Anchors, checkpoint_anchors, fusion_anchors
from mergekit3d.plan.constraints import plan_constraints
from mergekit3d.plan.fusion import plan_fusion
from mergekit3d.plan.network import Start, checkpoint_start, fusion_start, network_for, random_start
from mergekit3d.plan.ratios import ADAPTED_RATIOS, ratios_path
from mergekit3d.plan.target import Cohort, open_cohort
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe import LoadedRecipe, load_recipe
from mergekit3d.recipe.models import SourceModel
from mergekit3d.storage.lock import output_lock
from mergekit3d.storage.seal import file_digest
from mergekit3d.training.processes import ALONE, ProcessGroup, shared_work

if TYPE_CHECKING:
    from mergekit3d.training.cohort import Stage, TrainResult

NONE, IMM, TIMM = "none", "imm", "timm"


def finetune(
    recipe: Path | str,
    *,
    overrides: Sequence[str] = (),
    allow_outside: Sequence[Path | str] = (),
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> TrainResult:
    """Fine-tune all weights on the recipe's target.

    Started by torchrun, the processes share the samples of each step, and the first of them reports and writes.

    Args:
        recipe: YAML file with a target; ``finetune.init`` says where to start.
        overrides: ``key.path=value`` each.
        allow_outside: folders beside the recipe's own, and the output folder, that the recipe may write to.
        options: device, precision, seed, output folder.
        reporter: where progress goes.

    Returns:
        Where the checkpoints and the log are, and how training ended.

    Raises:
        MergeKit3DError: problems of the recipe, its data or its checkpoints, before any work.
    """
    with shared_work(options, reporter, training=True) as (group, own_options, own_reporter):
        loaded = group.agree(lambda: load_recipe(recipe, overrides=overrides, allow_outside=allow_outside, out=options.out))
        return finetune_loaded(loaded, group=group, options=own_options, reporter=own_reporter)


def finetune_loaded(
    loaded: LoadedRecipe, *, group: ProcessGroup = ALONE, options: Options = DEFAULT_OPTIONS, reporter: Reporter = SILENT
) -> TrainResult:
    """Fine-tune by a recipe that is loaded already; see `finetune`."""
    from mergekit3d.training.cohort import refuse_trained, run_stage

    def plan() -> Stage:
        refuse_trained(loaded.out / "finetune", options)
        return _stage(loaded, options)

    stage = group.agree(plan)
    with group.first_holds(lambda: output_lock(stage.out)):
        return run_stage(stage, group=group, options=options, reporter=reporter)


def _stage(loaded: LoadedRecipe, options: Options) -> Stage:
    from mergekit3d.training.cohort import Stage

    cohort = open_cohort(loaded, loaded.recipe.target)
    seed = loaded.recipe.seed if options.seed is None else options.seed
    init = loaded.recipe.finetune.init or (loaded.recipe.merge.method if loaded.recipe.sources else NONE)
    start = start_of(loaded, cohort, init, seed)
    how, provenance = loaded.recipe.finetune, {"initialisation": _public_name(loaded, init)}
    constraints = plan_constraints(loaded, how, start, lambda: _anchors(loaded, cohort, init, start), "finetune")
    return Stage("finetune", loaded, cohort, how, start, loaded.out / "finetune", seed, provenance, constraints=constraints)


def start_of(loaded: LoadedRecipe, cohort: Cohort, init: str, seed: int) -> Start:
    """The network that ``finetune.init`` asks for.

    none: random. A source's name: its shared weights, the private ones new (as the paper compares). A merge method: the fused
    checkpoint where it is there, else what the fusion gives. A file: whatever of it fits.

    Raises:
        MergeKit3DError: the checkpoints cannot be used, or T-IMM has not been adapted yet.
    """
    if init == NONE:
        return random_start(network_for(loaded, cohort.task, None), seed)
    names = _sources(loaded)
    if init in names:
        return fusion_start(plan_fusion(_alone(loaded, init, "mean-imm"), seed=seed))
    fused = _fused(loaded, init)
    if fused is not None:
        _check_ratios(loaded, fused)
        return checkpoint_start(loaded, loaded.merge_path, cohort.task, seed)
    if init == TIMM:
        adapted = loaded.output_path(ADAPTED_RATIOS).with_name("checkpoint.safetensors")
        if not adapted.exists():
            raise InputError("the ratios are not learned yet", where=adapted, todo=f"run: mergekit3d adapt --recipe {loaded.path.name}")
        return checkpoint_start(loaded, adapted, cohort.task, seed)
    if init == IMM:
        return fusion_start(plan_fusion(_merging(loaded, method=IMM, ratios="uniform", private="random"), seed=seed))
    path = loaded.merge_path if init == loaded.recipe.merge.method else loaded.input_path(init)
    if not path.exists():
        known = ", ".join([NONE, *names, IMM, TIMM])
        raise RecipeError(
            "nothing to start fine-tuning from",
            where=f"finetune.init: {init}",
            wanted=f"{known} or a checkpoint file",
            found="no such file",
            todo=did_you_mean_file(path),
        )
    return checkpoint_start(loaded, path, cohort.task, seed)


def _anchors(loaded: LoadedRecipe, cohort: Cohort, init: str, start: Start) -> Anchors:
    """What ``finetune.regularise`` may hold: the fused and copied tensors of a fusion, or those of a checkpoint."""
    regularise = loaded.recipe.finetune.regularise
    assert regularise is not None
    if init == NONE:
        raise RecipeError("nothing to hold on to", where="finetune.regularise", found="init: none", todo="give finetune an init")
    if init in _sources(loaded):
        return fusion_anchors(plan_fusion(_alone(loaded, init, IMM if regularise.by == FISHER else "mean-imm")), regularise.by)
    if init in METHODS and (regularise.by != FISHER or METHODS.get(init).uses_fisher):
        merging = loaded
        if init != loaded.recipe.merge.method or (init == IMM and _fused(loaded, init) is None):
            changes = {"ratios": None} if init == TIMM else {"ratios": "uniform", "private": "random"}
            merging = _merging(loaded, method=init, **changes)
        return fusion_anchors(plan_fusion(merging), regularise.by)
    path = loaded.merge_path if init == loaded.recipe.merge.method else loaded.input_path(init)
    return checkpoint_anchors(loaded, path, None, start, cohort.task, regularise.by)


def _sources(loaded: LoadedRecipe) -> dict[str, SourceModel]:
    return {source.name: source for source in (*loaded.recipe.sources, *loaded.recipe.baselines)}


def _alone(loaded: LoadedRecipe, name: str, method: str) -> LoadedRecipe:
    """The fusion of one source: its shared weights as they are, the private ones new."""
    merging = _merging(loaded, method=method, ratios="uniform", private="random", granularity="model")
    return merging.changed(sources=(_sources(loaded)[name],))


def _merging(loaded: LoadedRecipe, **changes: Any) -> LoadedRecipe:
    return loaded.changed(merge=loaded.recipe.merge.model_copy(update=changes))


def _fused(loaded: LoadedRecipe, init: str) -> Metadata | None:
    """What the fused checkpoint tells of itself, where it is there, by this method; else None."""
    if init != loaded.recipe.merge.method or not loaded.merge_path.exists():
        return None
    metadata = open_checkpoint(loaded.merge_path, verify=False).metadata
    return metadata if metadata is not None and metadata.method == init else None


def _check_ratios(loaded: LoadedRecipe, fused: Metadata) -> None:
    """Refuse a fused checkpoint whose ratios were learned anew, or edited, since it was written.

    Raises:
        InputError: the file of ratios is another one.
    """
    ratios = ratios_path(loaded)
    if ratios is not None and ratios.is_file() and fused.provenance.get("ratios") != file_digest(ratios):
        todo = f"run: mergekit3d fuse --recipe {loaded.path.name} --force"
        found = f"another {ratios.name} now"
        raise InputError(
            "the fused checkpoint is out of date", where=loaded.merge_path, wanted="the ratios it was made by", found=found, todo=todo
        )


def _public_name(loaded: LoadedRecipe, init: str) -> str:
    """The initialisation as provenance tells it: a name, never a path."""
    names = {NONE, IMM, TIMM, loaded.recipe.merge.method, *_sources(loaded)}
    return init if init in names else "file"
