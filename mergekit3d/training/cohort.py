"""From a cohort and a network to a trained checkpoint: what train, adapt and finetune share beside the loop itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.architectures import architecture
from mergekit3d.checkpoints import CHECKPOINT, Metadata, aliases_of, open_checkpoint, save_tensors
from mergekit3d.checkpoints.metadata import tool
from mergekit3d.datasets.split import write_split
from mergekit3d.errors import RecipeError, UsageError
from mergekit3d.options import Options
from mergekit3d.plan.constraints import FREE, Constraints
from mergekit3d.plan.network import Start
from mergekit3d.plan.target import Cohort
from mergekit3d.plots.logs import read_log
from mergekit3d.progress import Reporter
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.recipe.models import TrainingModel
from mergekit3d.recipe.text import RECIPE_NAME, write_recipe
from mergekit3d.storage.seal import json_digest
from mergekit3d.training.batches import open_store, training_data, workers_of
from mergekit3d.training.objective import SUPERVISED, Objective
from mergekit3d.training.processes import ALONE, ProcessGroup

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mergekit3d.datasets import Dataset
    from mergekit3d.training.devices import Runtime
    from mergekit3d.training.settings import TrainingSettings
    from mergekit3d.training.trainable import FitResult, Trainable


@dataclass(frozen=True)
class TrainResult:
    """What a training wrote.

    Args:
        best: checkpoint of the best validation loss.
        last: checkpoint of the last epoch.
        log: the learning curve, one row an epoch.
        epochs: epochs trained.
        best_epoch: the best one, from 1.
        validation_loss: at the best epoch; None without validation subjects.
        validation_dice: mean over regions at the best epoch; None without validation subjects.
        stopped: why training ended.
    """

    best: Path
    last: Path
    log: Path
    epochs: int
    best_epoch: int
    validation_loss: float | None
    validation_dice: float | None
    stopped: str

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        paths = {"out": self.best.parent, "best": self.best, "last": self.last, "log": self.log}
        return {**vars(self), **{name: str(path) for name, path in paths.items()}}

    def lines(self) -> list[str]:
        """Lines for people."""
        dice = "" if self.validation_dice is None else f", validation Dice {self.validation_dice:.3f}"
        return [f"{self.best}: epoch {self.best_epoch} of {self.epochs}{dice}; {self.stopped}"]


@dataclass(frozen=True)
class Stage:
    """One training of a recipe.

    Args:
        method: train, adapt or finetune; written into the checkpoints.
        loaded: the recipe.
        cohort: subjects and task.
        settings: how to train.
        start: the network to start from.
        out: folder for best, last, log and picture.
        seed: of initialisation, order, augmentation and dropout.
        provenance: what else the checkpoints tell of their making.
        objective: what the steps minimise.
        unlabelled: scans without labels for its entropy; None: the training subjects.
        constraints: what holds the training of a whole network back.
    """

    method: str
    loaded: LoadedRecipe
    cohort: Cohort
    settings: TrainingModel
    start: Start
    out: Path
    seed: int
    provenance: Mapping[str, Any] = field(default_factory=dict)
    objective: Objective = SUPERVISED
    unlabelled: Dataset | None = None
    constraints: Constraints = FREE

    def metadata(self, **provenance: Any) -> Metadata:
        """Metadata of a checkpoint that this stage writes."""
        held = {"regularised_by": list(self.constraints.digests)} if self.constraints.digests else {}
        return Metadata(
            kind=CHECKPOINT,
            architecture=self.start.network.as_json(),
            task=self.cohort.task,
            method=self.method,
            provenance={**self.start.origin, **held, **self.provenance, "recipe": self.identity(), "seed": self.seed, **provenance},
            tool=tool(),
            origin=self.start.kept,
            ancestry=self.start.ancestry,
        )

    def identity(self) -> str:
        """Digest of what decides the result, beside the data: recipe and start, which tells the sources by their content."""
        recipe = self.loaded.recipe.without_places().decisive(without=frozenset({"study"})) | {"data": None}
        split, start = vars(self.cohort.split), [dict(self.start.origin), self.start.network.as_json()]
        return json_digest([recipe, split, self.settings.decisive(), *start, self.seed, *self.constraints.digests])


def refuse_trained(folder: Path, options: Options) -> None:
    """Refuse to train over an earlier training.

    Raises:
        UsageError: the folder holds one, and neither ``--force`` nor ``--resume`` is given.
    """
    if options.force or options.resume:
        return
    if any((folder / name).exists() for name in ("best.safetensors", "last.safetensors", "checkpoint.safetensors", "log.csv")):
        raise UsageError(
            "the output exists already", where=folder, todo="pass --force to replace it, --resume to go on, or --out to write elsewhere"
        )


def finished(stage: Stage, checkpoint: Path, options: Options) -> FitResult | None:
    """How a stage ended that ``--resume`` finds complete: a queue may start a job once more that was done already.

    Args:
        stage: the stage.
        checkpoint: what it leaves at its end.
        options: with ``resume``.

    Returns:
        The result, from log.csv; None where there is something left to do.

    Raises:
        UsageError: the checkpoint comes from another recipe or start.
    """
    from mergekit3d.training.keeping import LOG_NAME
    from mergekit3d.training.snapshot import SNAPSHOT_NAME
    from mergekit3d.training.trainable import FitResult

    if not options.resume or (stage.out / SNAPSHOT_NAME).exists() or not checkpoint.exists():
        return None
    metadata = open_checkpoint(checkpoint).metadata
    if metadata is None or metadata.provenance.get("recipe") != stage.identity():
        raise UsageError(
            "nothing to resume", where=stage.out, found="results of another recipe", todo="pass --force to replace them, or another --out"
        )
    log = read_log(stage.out / LOG_NAME)
    epochs, losses, dice = len(log.epochs), log.get("validation_loss"), log.get("validation_dice")
    if losses is None:
        return FitResult(epochs, epochs, None, None, "done before")
    best = min(range(epochs), key=lambda index: losses[index])
    return FitResult(epochs, best + 1, float(losses[best]), None if dice is None else float(dice[best]), "done before")


def run_stage(stage: Stage, *, group: ProcessGroup = ALONE, options: Options, reporter: Reporter) -> TrainResult:
    """Train a network whole, shared out among the processes of a group; see `fit_stage` for the parts.

    Returns:
        Where the checkpoints and the log are, and how training ended.
    """
    from mergekit3d.training.constrained import constrained

    runtime = runtime_of(stage, group, options)
    done = group.share(lambda: finished(stage, stage.out / "best.safetensors", options))
    if done is not None:
        return train_result(stage.out, done, best="best.safetensors")
    network = group.agree(lambda: _placed(stage, runtime))
    remark = stage.constraints.remark()
    reporter.info(f"{stage.method}: {describe(stage)}{f'; {remark}' if remark else ''}")
    trainable = group.agree(lambda: constrained(network, stage.constraints, lambda: cpu_state(network)))

    def save(name: str, state: dict[str, Tensor]) -> None:
        save_tensors(stage.out / f"{name}.safetensors", state, stage.metadata())

    result = fit_stage(stage, trainable, save, group=group, options=options, reporter=reporter)
    return train_result(stage.out, result, best="best.safetensors")


def _placed(stage: Stage, runtime: Runtime) -> nn.Module:
    """The network on its device, in the memory format of the recipe."""
    from mergekit3d.training.stepping import MEMORY_FORMATS

    network = stage.start.build().to(runtime.device)
    memory_format = MEMORY_FORMATS[settings_of(stage.settings).memory_format]
    return network.to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]


def fit_stage(
    stage: Stage,
    trainable: Trainable,
    save: Callable[[str, dict[str, Tensor]], None],
    *,
    group: ProcessGroup = ALONE,
    options: Options,
    reporter: Reporter,
) -> FitResult:
    """Run the loop on a stage's cohort, with its log, split, recipe and picture in the stage's folder."""
    from mergekit3d.training.devices import slow_precision
    from mergekit3d.training.loop import fit

    group.agree(lambda: check_stage(stage))
    group.share(lambda: write_split(stage.out / "split.json", stage.cohort.split))
    group.share(lambda: write_recipe(stage.loaded, stage.out / RECIPE_NAME))
    # Labels of the training subjects are not looked at where only their entropy counts; they may not be there.
    parts = ("train", "validation") if stage.objective.supervised else ("validation",)
    store = open_store(stage.cohort, parts, reporter, folder=stage.loaded.prepared)
    settings, runtime = _settings(stage), runtime_of(stage, group, options)
    if (slow := slow_precision(runtime)) is not None:
        reporter.warn(slow)
    samples = settings.batch_size * settings.accumulate
    if samples < group.size:
        idle = f"{group.size - samples} of {group.size} processes have nothing to do"
        reporter.warn(f"{idle}: a step has batch_size x accumulate = {samples} samples, for all of them together")
    return fit(
        trainable,
        training_data(
            stage,
            store,
            group,
            workers=workers_of(stage.loaded.recipe.workers, runtime, group),
            pin=runtime.device.type == "cuda",
            reporter=reporter,
        ),
        settings,
        runtime=runtime,
        folder=stage.out,
        exclusive=stage.cohort.task.exclusive,
        seed=stage.seed,
        reporter=reporter,
        save=save,
        resume=options.resume,
        identity=stage.identity(),
        draw=_draw(stage),
        processes=group,
        objective=stage.objective,
    )


def runtime_of(stage: Stage, group: ProcessGroup, options: Options) -> Runtime:
    """The device of this process, and one precision for all.

    Raises:
        UsageError: there is no such device, or it cannot compute like that.
    """
    from mergekit3d.training.devices import training_runtime

    own = group.agree(lambda: training_runtime(options.device, options.precision, stage.settings.precision))
    return replace(own, precision=group.share(lambda: own.precision))


def _settings(stage: Stage) -> TrainingSettings:
    """The loop's settings; a step of pairs takes twice as many batches."""
    settings = settings_of(stage.settings)
    return replace(settings, accumulate=2 * settings.accumulate) if stage.objective.in_pairs else settings


def check_stage(stage: Stage) -> None:
    """Refuse patches that the network cannot halve as often as it has levels, and a training without subjects.

    Raises:
        RecipeError: an edge of ``patch_size`` is no multiple of what the network needs, or nobody trains.
    """
    multiple_of = architecture(stage.start.network.name).multiple_of(stage.start.network)
    patch = stage.settings.patch_size
    if patch is not None and any(edge % multiple_of for edge in patch):
        wanted = f"multiples of {multiple_of} for {stage.start.network.name}"
        raise RecipeError("the network does not take these patches", where=f"{stage.method}.patch_size", wanted=wanted, found=list(patch))
    if not stage.cohort.split.train:
        raise RecipeError(
            "no training subjects", where="target.split.train", todo="give it a number, or fewer validation and test subjects"
        )


def settings_of(model: TrainingModel) -> TrainingSettings:
    """The loop's settings from the recipe's keys of the same names."""
    from dataclasses import fields

    from mergekit3d.training.settings import TrainingSettings

    return TrainingSettings(**{item.name: getattr(model, item.name) for item in fields(TrainingSettings) if hasattr(model, item.name)})


def cpu_state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's tensors on the CPU; names of one tensor stay names of one."""
    state = network.state_dict()
    aliases = aliases_of(state)
    copied = {name: tensor.detach().cpu().clone() for name, tensor in state.items() if name not in aliases}
    return {name: copied[aliases.get(name, name)] for name in state}


def train_result(folder: Path, result: FitResult, *, best: str, last: str = "last.safetensors") -> TrainResult:
    """What the loop returned, with the paths of its files."""
    return TrainResult(
        best=folder / best,
        last=folder / last,
        log=folder / "log.csv",
        epochs=result.epochs,
        best_epoch=result.best_epoch,
        validation_loss=result.best_validation_loss,
        validation_dice=result.best_validation_dice,
        stopped=result.stopped,
    )


def describe(stage: Stage) -> str:
    """Subjects, task and start in one line."""
    split, task = stage.cohort.split, stage.cohort.task
    subjects = f"{len(split.train)} training and {len(split.validation)} validation subjects"
    return f"{subjects}, {' + '.join(task.modalities)} to {len(task.outputs)} outputs, {stage.start.network.name}: {stage.start.remark()}"


def _draw(stage: Stage) -> Callable[[Path], None]:
    def draw(folder: Path) -> None:
        from mergekit3d.plots.curves import plot_curves

        sources = [source.name for source in stage.loaded.recipe.sources] if stage.method == "adapt" else []
        plot_curves([folder / "log.csv"], folder / "progress.png", names=[folder.name], sources=sources)

    return draw
