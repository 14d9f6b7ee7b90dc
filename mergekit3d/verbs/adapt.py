"""``mergekit3d adapt``: the mixing ratios of T-IMM, learned on the target together with the private tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.checkpoints import save_tensors
from mergekit3d.datasets.split import PARTS
from mergekit3d.engine.correspondence import sampled_cosines, warnings_on
from mergekit3d.errors import ProblemCollector, RecipeError
from mergekit3d.merging.methods import METHODS
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.plan.fusion import FusionPlan, plan_fusion
from mergekit3d.plan.network import fusion_start
from mergekit3d.plan.outcomes import EXPANDED, RANDOM
from mergekit3d.plan.ratios import Ratios, check_start, read_ratios, resolve_ratios, write_ratios
from mergekit3d.plan.target import Cohort, open_cohort
from mergekit3d.plots.path import plot_path
from mergekit3d.plots.ratios import plot_ratios
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe import LoadedRecipe, load_recipe
from mergekit3d.recipe.models import AdaptModel
from mergekit3d.storage.lock import output_lock
from mergekit3d.training.processes import ALONE, ProcessGroup, shared_work

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit3d.adaptation import FusedWeights
    from mergekit3d.datasets import Dataset
    from mergekit3d.training.cohort import Stage
    from mergekit3d.training.objective import Objective
    from mergekit3d.training.trainable import FitResult, Trainable

RATIOS_NAME, CHECKPOINT_NAME = "ratios.json", "checkpoint.safetensors"
PICTURE_NAME, PATH_NAME = "ratios.png", "path.png"
DELTA = "mergekit3d.delta"
"""Name under which the loop carries delta beside the network's tensors; it is never written into a checkpoint."""


@dataclass(frozen=True)
class AdaptResult:
    """What an adaptation wrote.

    Args:
        ratios: ratios.json.
        checkpoint: the fused network with the adapted private tensors.
        log: learning curve, with the ratios' path.
        picture: ratios by layer.
        path: how they went there, epoch by epoch.
        epochs: epochs trained.
        best_epoch: the epoch whose ratios were kept, from 1.
        validation_loss: at that epoch; None without validation subjects.
        validation_dice: mean over regions at that epoch; None without validation subjects.
        stopped: why it ended.
        layers: the ratios of every layer.
    """

    ratios: Path
    checkpoint: Path
    log: Path
    picture: Path
    path: Path
    epochs: int
    best_epoch: int
    validation_loss: float | None
    validation_dice: float | None
    stopped: str
    layers: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        paths = {key: str(getattr(self, key)) for key in ("ratios", "checkpoint", "log", "picture", "path")}
        return {"out": str(self.ratios.parent), **vars(self), **paths, "layers": dict(self.layers)}

    def lines(self) -> list[str]:
        """Lines for people."""
        dice = "" if self.validation_dice is None else f", validation Dice {self.validation_dice:.3f}"
        return [f"{self.ratios}: {len(self.layers)} ratios a source, from epoch {self.best_epoch} of {self.epochs}{dice}; {self.stopped}"]


def adapt(
    recipe: Path | str,
    *,
    overrides: Sequence[str] = (),
    allow_outside: Sequence[Path | str] = (),
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> AdaptResult:
    """Learn the mixing ratios of a recipe.

    Started by torchrun, the processes share the samples of each step, and the first of them reports and writes.

    Args:
        recipe: YAML file with sources, their Fisher diagonals, and a target.
        overrides: ``key.path=value`` each.
        allow_outside: folders beside the recipe's own, and the output folder, that the recipe may write to.
        options: device, precision, seed, output folder.
        reporter: where progress goes.

    Returns:
        Where ratios, checkpoint and log are, and how the adaptation ended.

    Raises:
        MergeKit3DError: problems of the recipe, its data or its checkpoints, all at once, before any work.

    Source: MIDL 2019, adaptation stage: the target's loss is minimised over delta (eq. 3) and S together.
    """
    with shared_work(options, reporter, training=True) as (group, own_options, own_reporter):
        loaded = group.agree(lambda: load_recipe(recipe, overrides=overrides, allow_outside=allow_outside, out=options.out))
        return adapt_loaded(loaded, group=group, options=own_options, reporter=own_reporter)


def adapt_loaded(
    loaded: LoadedRecipe, *, group: ProcessGroup = ALONE, options: Options = DEFAULT_OPTIONS, reporter: Reporter = SILENT
) -> AdaptResult:
    """Learn the ratios of a recipe that is loaded already; see `adapt`."""
    stage, plan, initial = group.agree(lambda: _plan(loaded, options, reporter))
    with group.first_holds(lambda: output_lock(stage.out)):
        return _run(stage, plan, loaded.recipe.adapt, initial, group=group, options=options, reporter=reporter)


def _plan(loaded: LoadedRecipe, options: Options, reporter: Reporter) -> tuple[Stage, FusionPlan, Ratios]:
    """What is adapted, with every problem found; and the ratios to start from."""
    from mergekit3d.training.cohort import Stage, refuse_trained

    out, settings = loaded.out / "adapt", loaded.recipe.adapt
    refuse_trained(out, options)
    objective = _objective(settings)
    cohort = open_cohort(loaded, loaded.recipe.target, labelled=PARTS if objective.supervised else ("validation",))
    seed = loaded.recipe.seed if options.seed is None else options.seed
    if settings.private is not None:
        loaded = loaded.changed(merge=loaded.recipe.merge.model_copy(update={"private": settings.private}))
    plan = plan_fusion(loaded, seed=seed, uniform=True)
    initial = _check(loaded, plan, settings, objective)
    for line in warnings_on(sampled_cosines(plan), plan.sources[0].name):
        reporter.warn(line)
    start = fusion_start(plan)
    digests = [
        {"name": s.name, "checkpoint": s.checkpoint.digest, "fisher": None if s.fisher is None else s.fisher.digest} for s in plan.sources
    ]
    unlabelled = _unlabelled(loaded, cohort, settings, objective)
    stage = Stage("adapt", loaded, cohort, settings, start, out, seed, {"sources": digests}, objective, unlabelled)
    return stage, plan, initial


def _objective(settings: AdaptModel) -> Objective:
    """The objective that a recipe names; entropy of scans of their own comes in batches of their own."""
    from mergekit3d.training.objective import Objective

    supervised, entropy = settings.objective.supervised, settings.objective.entropy
    if settings.unlabelled is not None and not entropy:
        todo = "set adapt.objective: entropy, or {supervised: 1, entropy: 0.1}"
        raise RecipeError("scans without labels are of no use to this objective", where="adapt.unlabelled", todo=todo)
    return Objective(supervised, entropy, in_pairs=bool(supervised) and settings.unlabelled is not None)


def _unlabelled(loaded: LoadedRecipe, cohort: Cohort, settings: AdaptModel, objective: Objective) -> Dataset | None:
    """The scans without labels; None where the training subjects are taken."""
    from mergekit3d.datasets import Dataset, find_dataset, select
    from mergekit3d.datasets.find import is_list
    from mergekit3d.datasets.layouts import LAYOUTS

    if settings.unlabelled is None or not objective.entropy:
        return None
    path, layout = loaded.data_path(settings.unlabelled), "auto" if loaded.recipe.target is None else loaded.recipe.target.layout
    # The target's layout holds for scans of the same kind, a folder or a list.
    alike = layout != "auto" and bool(LAYOUTS.get(layout).suffixes) == is_list(path)
    found = find_dataset(path, layout if alike else "auto")
    # Their labels are never read: ids of the target's data do for them.
    return Dataset(found.root, found.layout, select(found, cohort.task.modalities, need_labels=False), cohort.dataset.vocabulary)


def _check(loaded: LoadedRecipe, plan: FusionPlan, settings: AdaptModel, objective: Objective) -> Ratios:
    """Refuse what cannot be adapted; returns the ratios to start from."""
    problems = ProblemCollector()
    if not plan.method.learnable:
        able = " or ".join(name for name, method in METHODS.items() if method.learnable)
        problems.add(RecipeError(f"the ratios of {plan.method.name} cannot be learned", where="merge.method", wanted=able))
    if len(plan.sources) < 2:
        problems.add(RecipeError("one source has no ratios to learn", where="sources", wanted="two or more"))
    random = [tensor for tensor in plan.tensors if tensor.outcome in (RANDOM, EXPANDED)]
    if not objective.supervised and random:
        found = f"{random[0].entry.name} is {random[0].outcome}" + (f", and {len(random) - 1} more" if len(random) > 1 else "")
        todo = "set adapt.private to a source of the target's regions and modalities, or give the loss a weight in adapt.objective"
        failed = "the entropy of a prediction teaches nothing to weights that no source has"
        problems.add(RecipeError(failed, where="adapt.objective", wanted="private tensors of a source", found=found, todo=todo))
    groups = list(plan.ratios.layers)
    with_start = loaded.changed(merge=loaded.recipe.merge.model_copy(update={"ratios": settings.ratios}))
    initial = problems.attempt(lambda: resolve_ratios(with_start, groups, key="adapt.ratios"))
    if initial is not None:
        problems.attempt(lambda: check_start(initial.layers))
    problems.raise_if_any()
    assert initial is not None
    return initial


def _run(
    stage: Stage, plan: FusionPlan, settings: AdaptModel, initial: Ratios, *, group: ProcessGroup, options: Options, reporter: Reporter
) -> AdaptResult:
    from mergekit3d.adaptation.from_plan import as_fused
    from mergekit3d.training.cohort import describe, finished, fit_stage

    done = group.share(lambda: finished(stage, stage.out / CHECKPOINT_NAME, options))
    if done is not None:
        return group.share(lambda: _result(stage.out, done))
    trainable, fused = group.agree(lambda: _trainable(stage, plan, settings, initial, options))
    reporter.info(f"adapt: {describe(stage)}; {len(fused.groups)} ratios a source")

    def save(name: str, tensors: dict[str, Tensor]) -> None:
        """Only the best state leaves files; in a snapshot everything else is kept."""
        if name != "best":
            return
        ratios = Ratios(plan.ratios.sources, plan.ratios.granularity, fused.ratios_by_group(tensors[DELTA]))
        write_ratios(stage.out / RATIOS_NAME, ratios)
        plot_ratios(ratios.as_json(), stage.out / PICTURE_NAME)
        whole = {**{key: value for key, value in tensors.items() if key != DELTA}, **as_fused(plan, ratios)}
        save_tensors(stage.out / CHECKPOINT_NAME, whole, stage.metadata())

    ended = fit_stage(stage, trainable, save, group=group, options=options, reporter=reporter)

    def finish() -> AdaptResult:
        plot_path(stage.out / "log.csv", plan.ratios.sources, stage.out / PATH_NAME)
        return _result(stage.out, ended)

    return group.share(finish)


def _trainable(stage: Stage, plan: FusionPlan, settings: AdaptModel, initial: Ratios, options: Options) -> tuple[Trainable, FusedWeights]:
    """The network whose shared parameters follow delta, with delta and the private parameters to train."""
    from mergekit3d.adaptation.from_plan import fused_weights, log_columns, shared_names
    from mergekit3d.training.cohort import cpu_state
    from mergekit3d.training.devices import resolve_runtime
    from mergekit3d.training.trainable import Trainable

    network = stage.start.build().to(resolve_runtime(options.device, options.precision).device)
    fused = fused_weights(network, plan, settings, initial)
    fused.fuse()

    def state() -> dict[str, Tensor]:
        fused.fuse()
        return {**cpu_state(network), DELTA: fused.delta.detach().cpu().clone()}

    shared = shared_names(plan)
    private = [parameter for name, parameter in network.named_parameters() if name not in shared]
    groups: list[dict[str, Any]] = [{"params": private}]
    if not stage.objective.supervised:
        groups = []
        for parameter in private:
            parameter.requires_grad_(False)
    trainable = Trainable(
        network=network,
        parameter_groups=[*groups, {"params": [fused.delta], "lr": settings.ratio_learning_rate, "weight_decay": 0.0}],
        before_forward=fused.fuse,
        after_backward=fused.backward,
        before_step=fused.add_penalty,
        columns=lambda: log_columns(fused, plan.ratios.sources),
        state=state,
    )
    return trainable, fused


def _result(folder: Path, fit: FitResult) -> AdaptResult:
    return AdaptResult(
        ratios=folder / RATIOS_NAME,
        checkpoint=folder / CHECKPOINT_NAME,
        log=folder / "log.csv",
        picture=folder / PICTURE_NAME,
        path=folder / PATH_NAME,
        epochs=fit.epochs,
        best_epoch=fit.best_epoch,
        validation_loss=fit.best_validation_loss,
        validation_dice=fit.best_validation_dice,
        stopped=fit.stopped,
        layers=read_ratios(folder / RATIOS_NAME).layers,
    )
