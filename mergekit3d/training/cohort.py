"""From a cohort and a network to a trained checkpoint: what train, adapt and finetune share beside the loop itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.architectures import architecture
from mergekit3d.checkpoints import CHECKPOINT, Metadata, open_checkpoint, save_tensors
from mergekit3d.checkpoints.metadata import tool
from mergekit3d.datasets.augmentation import Transform, flips
from mergekit3d.datasets.cache import SubjectStore
from mergekit3d.datasets.sampling import Batch, epoch_batches, whole_volume_batches
from mergekit3d.datasets.share import WHOLE, Share
from mergekit3d.datasets.split import write_split
from mergekit3d.errors import RecipeError, UsageError
from mergekit3d.options import Options
from mergekit3d.plan.constraints import FREE, Constraints
from mergekit3d.plan.network import Start
from mergekit3d.plan.target import Cohort
from mergekit3d.plots.logs import read_log
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.recipe.models import TrainingModel
from mergekit3d.storage.seal import json_digest
from mergekit3d.training.objective import SUPERVISED, Objective
from mergekit3d.training.processes import ALONE, ProcessGroup
from mergekit3d.volumes.orientation import Shape

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mergekit3d.datasets import Dataset
    from mergekit3d.training.loop import FitResult, Trainable, TrainingData
    from mergekit3d.training.settings import TrainingSettings


AXES = ("left-right", "posterior-anterior", "inferior-superior")
"""Of volumes in RAS+ order."""


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
        return {**vars(self), "best": str(self.best), "last": str(self.last), "log": str(self.log)}

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
        )

    def identity(self) -> str:
        """Digest of what decides the result, beside the data: recipe and start."""
        recipe = self.loaded.recipe.model_dump(mode="json", exclude={"out", "data", "cache", "study"})
        split = vars(self.cohort.split)
        return json_digest(
            [recipe, split, self.settings.model_dump(mode="json"), dict(self.start.origin), self.seed, *self.constraints.digests]
        )


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
    from mergekit3d.training.loop import FitResult
    from mergekit3d.training.snapshot import SNAPSHOT_NAME

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
    from mergekit3d.training.devices import resolve_runtime

    done = group.share(lambda: finished(stage, stage.out / "best.safetensors", options))
    if done is not None:
        return train_result(stage.out, done, best="best.safetensors")
    runtime = resolve_runtime(options.device, options.precision)
    network = group.agree(lambda: stage.start.build().to(runtime.device))
    remark = stage.constraints.remark()
    reporter.info(f"{stage.method}: {describe(stage)}{f'; {remark}' if remark else ''}")
    trainable = group.agree(lambda: constrained(network, stage.constraints, lambda: cpu_state(network)))

    def save(name: str, state: dict[str, Tensor]) -> None:
        save_tensors(stage.out / f"{name}.safetensors", state, stage.metadata())

    result = fit_stage(stage, trainable, save, group=group, options=options, reporter=reporter)
    return train_result(stage.out, result, best="best.safetensors")


def fit_stage(
    stage: Stage,
    trainable: Trainable,
    save: Callable[[str, dict[str, Tensor]], None],
    *,
    group: ProcessGroup = ALONE,
    options: Options,
    reporter: Reporter,
) -> FitResult:
    """Run the loop on a stage's cohort, with its log, split and picture in the stage's folder."""
    from mergekit3d.training.devices import resolve_runtime
    from mergekit3d.training.loop import fit

    group.agree(lambda: check_stage(stage))
    group.share(lambda: write_split(stage.out / "split.json", stage.cohort.split))
    # Labels of the training subjects are not looked at where only their entropy counts; they may not be there.
    parts = ("train", "validation") if stage.objective.supervised else ("validation",)
    store = open_store(stage.cohort, parts, reporter, folder=stage.loaded.prepared)
    settings = _settings(stage)
    samples = settings.batch_size * settings.accumulate
    if samples < group.size:
        idle = f"{group.size - samples} of {group.size} processes have nothing to do"
        reporter.warn(f"{idle}: a step has batch_size x accumulate = {samples} samples, for all of them together")
    return fit(
        trainable,
        training_data(stage, store, group, reporter=reporter),
        settings,
        runtime=resolve_runtime(options.device, options.precision),
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


def open_store(cohort: Cohort, parts: Iterable[str], reporter: Reporter, *, folder: Path | None = None) -> SubjectStore:
    """The subjects of some parts of the split, prepared when asked for; numbered by their place in the data set."""
    wanted = {subject.name for part in parts for subject in cohort.subjects(part)}
    numbered = {number: subject for number, subject in enumerate(cohort.dataset.subjects, 1) if subject.name in wanted}
    return SubjectStore(numbered, cohort.task, vocabulary=cohort.dataset.vocabulary, folder=folder, reporter=reporter)


def numbers_of(cohort: Cohort, part: str) -> list[int]:
    """Numbers of the subjects of a part of the split."""
    names = {subject.name for subject in cohort.subjects(part)}
    return [number for number, subject in enumerate(cohort.dataset.subjects, 1) if subject.name in names]


def training_data(stage: Stage, store: SubjectStore, group: ProcessGroup = ALONE, *, reporter: Reporter = SILENT) -> TrainingData:
    """Batches of a stage: training patches or volumes by epoch, validation subjects whole; of several processes, this one's share.

    Where the objective has an entropy of scans of its own, batches with and without targets take turns; where it has nothing else,
    none has targets.
    """
    from mergekit3d.training.loop import TrainingData

    multiple_of = architecture(stage.start.network.name).multiple_of(stage.start.network)
    train, validation, settings = numbers_of(stage.cohort, "train"), numbers_of(stage.cohort, "validation"), stage.settings
    augment: list[Transform] = [flips([AXES.index(axis) for axis in settings.augment.flip])] if settings.augment.flip else []

    def share_of(store: SubjectStore, numbers: Sequence[int], rank: int) -> Share:
        several_whole = group.size > 1 and settings.patch_size is None and settings.batch_size > 1
        return Share(rank, group.size, settings.accumulate, _shapes(store, numbers, group) if several_whole else {})

    def batches_of(store: SubjectStore, numbers: Sequence[int], share: Share, epoch: int) -> Iterator[Batch]:
        return epoch_batches(
            store,
            numbers,
            batch_size=settings.batch_size,
            patch_size=settings.patch_size,
            multiple_of=multiple_of,
            seed=stage.seed,
            epoch=epoch,
            steps=settings.steps_per_epoch,
            augment=augment,
            share=share,
        )

    unlabelled = _unlabelled_store(stage, reporter)
    share = share_of(store, train, group.rank) if stage.objective.supervised else WHOLE
    # From the last process on: where both are one sample, they are in two processes.
    other = WHOLE if unlabelled is None else share_of(unlabelled, unlabelled.numbers, group.size - 1 - group.rank)

    def batches(epoch: int) -> Iterable[Batch]:
        if unlabelled is None:
            return batches_of(store, train, share, epoch)
        if not stage.objective.in_pairs:
            return batches_of(unlabelled, unlabelled.numbers, other, epoch)
        labelled = batches_of(store, train, share, epoch)
        return _in_turns(labelled, lambda: batches_of(unlabelled, unlabelled.numbers, other, epoch))

    return TrainingData(
        train=batches,
        validation=lambda: whole_volume_batches(store, validation[group.rank :: group.size], multiple_of=multiple_of),
        region_names=tuple(stage.cohort.task.outputs),
    )


def _shapes(store: SubjectStore, numbers: Sequence[int], group: ProcessGroup) -> dict[int, Shape]:
    """Voxels of every subject once it is prepared, which nothing but preparing it tells; each process prepares some."""

    def prepared() -> dict[int, Shape]:
        return {number: (x, y, z) for number in numbers[group.rank :: group.size] for _, x, y, z in (store.get(number).image.shape,)}

    own = group.agree(prepared)
    return {number: shape for part in group.gather(own) for number, shape in part.items()}


def _unlabelled_store(stage: Stage, reporter: Reporter) -> SubjectStore | None:
    """Subjects whose label maps are not read; None where every batch has targets. A subject of the cohort keeps its number."""
    if stage.objective.supervised and not stage.objective.in_pairs:
        return None
    dataset = stage.unlabelled if stage.unlabelled is not None else stage.cohort.dataset
    numbered = dict(enumerate(dataset.subjects, 1))
    if stage.unlabelled is None:
        numbered = {number: numbered[number] for number in numbers_of(stage.cohort, "train")}
    folder = stage.loaded.prepared
    return SubjectStore(numbered, stage.cohort.task, vocabulary=dataset.vocabulary, with_target=False, folder=folder, reporter=reporter)


def _in_turns(labelled: Iterator[Batch], unlabelled: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
    """One of the first, one of the second, and so on until the first end; the second begin anew when they end."""
    others = itertools.chain.from_iterable(unlabelled() for _ in itertools.count())
    for batch in labelled:
        yield batch
        yield next(others)


def cpu_state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's tensors on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


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
