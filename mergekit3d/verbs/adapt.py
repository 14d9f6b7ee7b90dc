"""``mergekit3d adapt``: the mixing ratios of T-IMM, learned on the target together with the private tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit3d.checkpoints import save_tensors
from mergekit3d.engine.combining import widened
from mergekit3d.engine.correspondence import sampled_cosines, warnings_on
from mergekit3d.engine.values import combine
from mergekit3d.errors import RecipeError
from mergekit3d.merging.methods import METHODS
from mergekit3d.merging.partitions import BUFFERS
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.plan.fusion import FusionPlan, plan_fusion
from mergekit3d.plan.network import fusion_start
from mergekit3d.plan.outcomes import FUSED, TensorPlan
from mergekit3d.plan.ratios import Ratios, read_ratios, write_ratios
from mergekit3d.plan.target import open_cohort
from mergekit3d.plots.ratios import plot_ratios
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe import LoadedRecipe, load_recipe
from mergekit3d.recipe.models import AdaptModel
from mergekit3d.storage.lock import output_lock

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mergekit3d.adaptation import FusedWeights, SharedTensor
    from mergekit3d.training.cohort import Stage
    from mergekit3d.training.loop import FitResult, Trainable

RATIOS_NAME, CHECKPOINT_NAME, PICTURE_NAME = "ratios.json", "checkpoint.safetensors", "ratios.png"
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
    epochs: int
    best_epoch: int
    validation_loss: float | None
    validation_dice: float | None
    stopped: str
    layers: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        paths = {key: str(getattr(self, key)) for key in ("ratios", "checkpoint", "log", "picture")}
        return {**vars(self), **paths, "layers": dict(self.layers)}

    def lines(self) -> list[str]:
        """Lines for people."""
        dice = "" if self.validation_dice is None else f", validation Dice {self.validation_dice:.3f}"
        return [f"{self.ratios}: {len(self.layers)} ratios a source, from epoch {self.best_epoch} of {self.epochs}{dice}; {self.stopped}"]


def adapt(
    recipe: Path | str,
    *,
    overrides: Sequence[str] = (),
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> AdaptResult:
    """Learn the mixing ratios of a recipe.

    Args:
        recipe: YAML file with sources, their Fisher diagonals, and a target.
        overrides: ``key.path=value`` each.
        options: device, precision, seed, output folder.
        reporter: where progress goes.

    Returns:
        Where ratios, checkpoint and log are, and how the adaptation ended.

    Raises:
        MergeKit3DError: problems of the recipe, its data or its checkpoints, all at once, before any work.

    Source: MIDL 2019, adaptation stage: the target's loss is minimised over delta (eq. 3) and S together.
    """
    loaded = load_recipe(recipe, overrides=overrides, out=options.out)
    return adapt_loaded(loaded, options=options, reporter=reporter)


def adapt_loaded(loaded: LoadedRecipe, *, options: Options = DEFAULT_OPTIONS, reporter: Reporter = SILENT) -> AdaptResult:
    """Learn the ratios of a recipe that is loaded already; see `adapt`."""
    from mergekit3d.training.cohort import Stage, refuse_trained

    out = loaded.out / "adapt"
    refuse_trained(out, options)
    cohort = open_cohort(loaded, loaded.recipe.target)
    seed = loaded.recipe.seed if options.seed is None else options.seed
    plan = plan_fusion(loaded, seed=seed, uniform=True)
    if not plan.method.learnable:
        able = " or ".join(name for name, method in METHODS.items() if method.learnable)
        raise RecipeError(f"the ratios of {plan.method.name} cannot be learned", where="merge.method", wanted=able)
    if len(plan.sources) < 2:
        raise RecipeError("one source has no ratios to learn", where="sources", wanted="two or more")
    for line in warnings_on(sampled_cosines(plan), plan.sources[0].name):
        reporter.warn(line)
    start = fusion_start(plan)
    digests = [
        {"name": s.name, "checkpoint": s.checkpoint.digest, "fisher": None if s.fisher is None else s.fisher.digest} for s in plan.sources
    ]
    stage = Stage("adapt", loaded, cohort, loaded.recipe.adapt, start, out, seed, {"sources": digests})
    with output_lock(out):
        return _run(stage, plan, loaded.recipe.adapt, options=options, reporter=reporter)


def _run(stage: Stage, plan: FusionPlan, settings: AdaptModel, *, options: Options, reporter: Reporter) -> AdaptResult:
    from mergekit3d.training.cohort import describe, finished, fit_stage

    done = finished(stage, stage.out / CHECKPOINT_NAME, options)
    if done is not None:
        return _result(stage.out, done)
    trainable, fused = _trainable(stage, plan, settings, options)
    reporter.info(f"adapt: {describe(stage)}; {len(fused.groups)} ratios a source")

    def save(name: str, tensors: dict[str, Tensor]) -> None:
        """Only the best state leaves files; in a snapshot everything else is kept."""
        if name != "best":
            return
        ratios = Ratios(plan.ratios.sources, plan.ratios.granularity, fused.ratios_by_group(tensors[DELTA]))
        tensors = {**tensors, **_as_fused(plan, ratios)}
        write_ratios(stage.out / RATIOS_NAME, ratios)
        plot_ratios(ratios.as_json(), stage.out / PICTURE_NAME)
        save_tensors(stage.out / CHECKPOINT_NAME, {key: value for key, value in tensors.items() if key != DELTA}, stage.metadata())

    return _result(stage.out, fit_stage(stage, trainable, save, options=options, reporter=reporter))


def _trainable(stage: Stage, plan: FusionPlan, settings: AdaptModel, options: Options) -> tuple[Trainable, FusedWeights]:
    """The network whose shared parameters follow delta, with delta and the private parameters to train."""
    from mergekit3d.training.cohort import cpu_state
    from mergekit3d.training.devices import resolve_runtime
    from mergekit3d.training.loop import Trainable

    network = stage.start.build().to(resolve_runtime(options.device, options.precision).device)
    fused = fused_weights(network, plan, settings)
    fused.fuse()

    def state() -> dict[str, Tensor]:
        fused.fuse()
        return {**cpu_state(network), DELTA: fused.delta.detach().cpu().clone()}

    shared = shared_names(plan)
    private = [parameter for name, parameter in network.named_parameters() if name not in shared]
    trainable = Trainable(
        network=network,
        parameter_groups=[{"params": private}, {"params": [fused.delta], "lr": settings.ratio_learning_rate, "weight_decay": 0.0}],
        before_forward=fused.fuse,
        after_backward=fused.backward,
        columns=lambda: _columns(fused, plan.ratios.sources),
        state=state,
    )
    return trainable, fused


def _result(folder: Path, fit: FitResult) -> AdaptResult:
    return AdaptResult(
        ratios=folder / RATIOS_NAME,
        checkpoint=folder / CHECKPOINT_NAME,
        log=folder / "log.csv",
        picture=folder / PICTURE_NAME,
        epochs=fit.epochs,
        best_epoch=fit.best_epoch,
        validation_loss=fit.best_validation_loss,
        validation_dice=fit.best_validation_dice,
        stopped=fit.stopped,
        layers=read_ratios(folder / RATIOS_NAME).layers,
    )


def shared_names(plan: FusionPlan) -> set[str]:
    """Names of the tensors that the ratios decide: P. What is expanded or random trains with S, running statistics follow the data."""
    return {tensor.entry.name for tensor in _learned(plan)}


def _learned(plan: FusionPlan) -> list[TensorPlan]:
    fused = [tensor for tensor in plan.owners if tensor.outcome == FUSED]
    return [tensor for tensor in fused if tensor.entry.name.rpartition(".")[2] not in BUFFERS]


def fused_weights(network: nn.Module, plan: FusionPlan, settings: AdaptModel) -> FusedWeights:
    """The network's shared parameters as a function of delta, with the ratios where the recipe starts them."""
    from mergekit3d.adaptation import FusedWeights, inverse_trace_ratios

    parameters = {name for name, _ in network.named_parameters()}
    for name in shared_names(plan) - parameters:
        raise RecipeError("a buffer cannot be adapted", where=name, todo="let partitions.private name it")
    tensors = [_shared_tensor(plan, tensor.entry.name, tensor.group or "") for tensor in _learned(plan)]
    groups = list(dict.fromkeys(tensor.group for tensor in tensors))
    initial: dict[str, list[float]] = {}
    if isinstance(settings.ratios, dict):
        row = [float(settings.ratios.get(source.name, 0)) for source in plan.sources]
        if len(settings.ratios) != len(row) or min(row) <= 0:
            raise RecipeError("cannot start from these ratios", where="adapt.ratios", wanted="a ratio above 0 for each source")
        initial = dict.fromkeys(groups, row)
    if settings.normalise_fisher:
        scales = inverse_trace_ratios(tensors)
        uniform = [1 / len(plan.sources)] * len(plan.sources)
        initial = {group: [a * b for a, b in zip(initial.get(group, uniform), scales.get(group, uniform), strict=True)] for group in groups}
    return FusedWeights(network, tensors, by_kernel=plan.ratios.granularity == "kernel", initial_ratios=initial or None)


def _as_fused(plan: FusionPlan, ratios: Ratios) -> dict[str, Tensor]:
    """The shared tensors as the command ``fuse`` writes them, to the bit; those that were trained with differ by rounding."""
    import torch

    fused = {}
    for tensor in _learned(plan):
        name = tensor.entry.name
        thetas, fishers = _values(plan, name)
        fused[name] = torch.from_numpy(combine(plan, name, thetas, fishers, None, ratios.layers[tensor.group or ""]))
    return fused


def _values(plan: FusionPlan, name: str) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """A tensor of every source, and its Fisher diagonals where the method uses them; float32 or wider."""
    thetas = [widened(source.checkpoint.read(name)) for source in plan.sources]
    if not plan.method.uses_fisher:
        return thetas, None
    return thetas, [widened(source.fisher.read(name)) for source in plan.sources if source.fisher is not None]


def _shared_tensor(plan: FusionPlan, name: str, group: str) -> SharedTensor:
    import torch

    from mergekit3d.adaptation import SharedTensor

    thetas, fishers = _values(plan, name)
    return SharedTensor(
        name, group, torch.from_numpy(np.stack(thetas)), None if fishers is None else torch.from_numpy(np.stack(fishers))
    )


def _columns(fused: FusedWeights, sources: Sequence[str]) -> dict[str, float]:
    """Columns of log.csv: the ratio of every layer and source (by kernel: its mean)."""
    return {
        f"ratio_{group}_{source}": float(np.mean(np.asarray(value)))
        for group, row in fused.ratios_by_group().items()
        for source, value in zip(sources, row, strict=True)
    }
