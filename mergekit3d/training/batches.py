"""Where the batches of a recipe's training come from: its subjects, prepared, cut, changed at random, and made ahead."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit3d.architectures import architecture
from mergekit3d.datasets.augmentation import Transform, flips
from mergekit3d.datasets.cache import SubjectStore
from mergekit3d.datasets.intensity import CHANGES, intensities
from mergekit3d.datasets.prefetch import made_in_order
from mergekit3d.datasets.presets import OFF, PRESETS
from mergekit3d.datasets.sampling import Batch, Job, epoch_jobs, whole_volume_batches
from mergekit3d.datasets.share import WHOLE, Share
from mergekit3d.datasets.spatial import Chance, Spatial
from mergekit3d.plan.target import Cohort
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe.models import AugmentModel, ChanceModel
from mergekit3d.training.processes import ALONE, ProcessGroup
from mergekit3d.volumes.orientation import Shape

if TYPE_CHECKING:
    from mergekit3d.training.cohort import Stage
    from mergekit3d.training.devices import Runtime
    from mergekit3d.training.trainable import TrainingData

AXES = ("left-right", "posterior-anterior", "inferior-superior")
"""Of volumes in RAS+ order."""

SPATIAL = ("rotate", "scale", "elastic")
MOST_WORKERS = 8


def augmentation_of(model: AugmentModel) -> tuple[Spatial | None, list[Transform]]:
    """What a recipe's ``augment`` asks for: resampling, or None, and what follows it."""
    chances = {name: _chance(getattr(model, name), PRESETS[model.preset].get(name), name) for name in (*SPATIAL, *CHANGES)}
    active = {name: chance for name, chance in chances.items() if chance.probability > 0}
    spatial = Spatial(**{name: chances[name] for name in SPATIAL}) if active.keys() & set(SPATIAL) else None
    changes = {name: chance for name, chance in active.items() if name in CHANGES}
    transforms = [intensities(changes)] if changes else []
    if model.flip:
        transforms.append(flips([AXES.index(axis) for axis in model.flip]))
    return spatial, transforms


def _chance(model: ChanceModel | None, preset: Chance | None, name: str) -> Chance:
    """A change of the recipe; what it leaves out is the preset's, else nnU-Net's. What neither names does not happen."""
    usual = PRESETS["nnunet"][name] if preset is None else preset
    if model is None:
        return OFF if preset is None else preset
    low, high = (usual.low, usual.high) if model.range is None else model.range
    return Chance(usual.probability if model.probability is None else model.probability, low, high)


def workers_of(asked: int | None, runtime: Runtime, group: ProcessGroup = ALONE) -> int:
    """How many threads make batches: as many as asked for; left open, one on the CPU, which has enough to do, up to 8 beside a GPU."""
    if asked is not None:
        return asked
    if runtime.device.type == "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", group.size))
    return max(1, min(MOST_WORKERS, cores // here - 1))


def open_store(cohort: Cohort, parts: Iterable[str], reporter: Reporter, *, folder: Path | None = None) -> SubjectStore:
    """The subjects of some parts of the split, prepared when asked for; numbered by their place in the data set."""
    wanted = {subject.name for part in parts for subject in cohort.subjects(part)}
    numbered = {subject.number: subject for subject in cohort.dataset.subjects if subject.name in wanted}
    return SubjectStore(numbered, cohort.task, vocabulary=cohort.dataset.vocabulary, folder=folder, reporter=reporter)


def numbers_of(cohort: Cohort, part: str) -> list[int]:
    """Numbers of the subjects of a part of the split."""
    names = {subject.name for subject in cohort.subjects(part)}
    return [subject.number for subject in cohort.dataset.subjects if subject.name in names]


def training_data(
    stage: Stage, store: SubjectStore, group: ProcessGroup = ALONE, *, workers: int = 1, pin: bool = False, reporter: Reporter = SILENT
) -> TrainingData:
    """Batches of a stage: training patches or volumes by epoch, validation subjects whole; of several processes, this one's share.

    Where the objective has an entropy of scans of its own, batches with and without targets take turns; where it has nothing else,
    none has targets.

    Args:
        stage: the stage.
        store: its training subjects, where labels are read, and its validation subjects.
        group: the processes that share the training.
        workers: threads that make training batches.
        pin: whether batches go into memory that a GPU copies from in the background.
        reporter: is told of resampling.
    """
    from mergekit3d.training.trainable import TrainingData

    multiple_of = architecture(stage.start.network.name).multiple_of(stage.start.network)
    train, validation, settings = numbers_of(stage.cohort, "train"), numbers_of(stage.cohort, "validation"), stage.settings
    spatial, augment = augmentation_of(settings.augment)

    def share_of(store: SubjectStore, numbers: Sequence[int], rank: int) -> Share:
        several_whole = group.size > 1 and settings.patch_size is None and settings.batch_size > 1
        return Share(rank, group.size, settings.accumulate, _shapes(store, numbers, group) if several_whole else {})

    def jobs_of(store: SubjectStore, numbers: Sequence[int], share: Share, epoch: int) -> Iterator[Job]:
        return epoch_jobs(
            store,
            numbers,
            batch_size=settings.batch_size,
            patch_size=settings.patch_size,
            multiple_of=multiple_of,
            seed=stage.seed,
            epoch=epoch,
            steps=settings.steps_per_epoch,
            spatial=spatial,
            augment=augment,
            share=share,
        )

    unlabelled = _unlabelled_store(stage, reporter)
    share = share_of(store, train, group.rank) if stage.objective.supervised else WHOLE
    # From the last process on: where both are one sample, they are in two processes.
    other = WHOLE if unlabelled is None else share_of(unlabelled, unlabelled.numbers, group.size - 1 - group.rank)

    def jobs(epoch: int) -> Iterator[Job]:
        if unlabelled is None:
            return jobs_of(store, train, share, epoch)
        if not stage.objective.in_pairs:
            return jobs_of(unlabelled, unlabelled.numbers, other, epoch)
        labelled = jobs_of(store, train, share, epoch)
        return _in_turns(labelled, lambda: jobs_of(unlabelled, unlabelled.numbers, other, epoch))

    return TrainingData(
        train=lambda epoch, done: made_in_order((partial(_made, job, pin) for job in itertools.islice(jobs(epoch), done, None)), workers),
        validation=lambda: whole_volume_batches(store, validation[group.rank :: group.size], multiple_of=multiple_of),
        region_names=tuple(stage.cohort.task.outputs),
    )


def _made(job: Job, pin: bool) -> Batch:
    batch = job()
    return batch.pinned() if pin else batch


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
    numbered = {subject.number: subject for subject in dataset.subjects}
    if stage.unlabelled is None:
        numbered = {number: numbered[number] for number in numbers_of(stage.cohort, "train")}
    folder = stage.loaded.prepared
    return SubjectStore(numbered, stage.cohort.task, vocabulary=dataset.vocabulary, with_target=False, folder=folder, reporter=reporter)


def _in_turns(labelled: Iterator[Job], unlabelled: Callable[[], Iterator[Job]]) -> Iterator[Job]:
    """One of the first, one of the second, and so on until the first end; the second begin anew when they end."""
    others = itertools.chain.from_iterable(unlabelled() for _ in itertools.count())
    for job in labelled:
        yield job
        yield next(others)
