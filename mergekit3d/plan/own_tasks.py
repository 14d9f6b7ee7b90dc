"""The tasks of the sources, on which anything with their private tensors can be tested: from a recipe, or from checkpoints and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergekit3d.architectures import network_of
from mergekit3d.checkpoints import TaskSpec, check_weights, open_checkpoint
from mergekit3d.datasets.find import find_dataset, named, select
from mergekit3d.datasets.split import Split, read_names
from mergekit3d.datasets.subject import Dataset
from mergekit3d.errors import InputError, MergeKit3DError, ProblemCollector, UsageError
from mergekit3d.plan.sources import Source, check_one_network
from mergekit3d.plan.target import Cohort, open_cohort
from mergekit3d.recipe.load import LoadedRecipe


@dataclass(frozen=True)
class OwnTask:
    """The task of a source.

    Args:
        source: its name.
        cohort: modalities, outputs, and the subjects to test on.
        prepared: folder of prepared subjects; None: they are not stored.
    """

    source: str
    cohort: Cohort
    prepared: Path | None = None


def own_tasks(loaded: LoadedRecipe) -> list[OwnTask]:
    """The tasks of a recipe's sources that have test subjects."""
    cohorts = {
        source.name: open_cohort(loaded, source.target, key=f"sources.{source.name}.target")
        for source in loaded.recipe.sources
        if source.target is not None
    }
    return [OwnTask(name, cohort, loaded.prepared) for name, cohort in cohorts.items() if cohort.split.test]


def with_tasks(sources: Sequence[Source], tasks: Sequence[OwnTask]) -> list[Source]:
    """The sources with the tasks that a recipe tells, where they do not say them themselves.

    Raises:
        InputError: a source was trained for other modalities or outputs than its target has.
    """
    told, problems, found = {own.source: own.cohort.task for own in tasks}, ProblemCollector(), []
    for source in sources:
        task = told.get(source.name)
        found.append(source if task is None or source.task is not None else replace(source, task=task))
        if task is None:
            continue
        where = f"sources.{source.name}.target"
        if source.task is not None and _outputs_of(source.task) != _outputs_of(task):
            wanted, has = _described(source.task), _described(task)
            problems.add(InputError("the source was trained for another task than its target", where=where, wanted=wanted, found=has))
            continue
        network, channels = source.network, (len(task.modalities), task.channels)
        if network is not None and (network.in_channels, network.out_channels) != channels:
            wanted = f"{network.in_channels} modalities and {network.out_channels} outputs, as its checkpoint"
            has = f"{len(task.modalities)} and {task.channels}"
            problems.add(InputError("the source's network is of another task than its target", where=where, wanted=wanted, found=has))
    problems.raise_if_any()
    return found


def _outputs_of(task: TaskSpec) -> tuple[object, ...]:
    return task.modalities, list(task.outputs.items()), task.exclusive


def _described(task: TaskSpec) -> str:
    return f"{', '.join(task.modalities)} to {', '.join(task.outputs)}"


def sources_of(given: Mapping[str, Path | str]) -> list[Source]:
    """The sources of the flags, which must say their tasks."""
    problems, opened = ProblemCollector(), []
    for name, path in given.items():
        try:
            checkpoint = open_checkpoint(path)
            check_weights(checkpoint)
        except MergeKit3DError as error:
            problems.add(error)
            continue
        task = None if checkpoint.metadata is None else checkpoint.metadata.task
        if task is None:
            todo = "name its task in a recipe: sources, each with a target"
            problems.add(InputError("the source does not say its task", where=path, wanted="modalities and regions", todo=todo))
        opened.append(Source(name, checkpoint, None, network_of(checkpoint), task))
    problems.raise_if_any()
    check_one_network(opened)
    return opened


def tasks_on(
    sources: Sequence[Source], data: Path | str | Mapping[str, Path | str] | None, layout: str, subjects_file: Path | str | None
) -> list[OwnTask]:
    """The sources' tasks on the subjects of the flags."""
    folders = dict(data) if isinstance(data, Mapping) else dict.fromkeys((source.name for source in sources), data)
    unknown = sorted(set(folders) - {source.name for source in sources})
    if unknown:
        raise UsageError("data of an unknown source", where="--data", found=unknown[0], wanted=", ".join(source.name for source in sources))
    tasks = []
    for source in sources:
        folder = folders.get(source.name)
        if folder is not None and source.task is not None:
            found = find_dataset(folder, layout)
            subjects = select(found, source.task.modalities, need_labels=True)
            chosen = named(subjects, None if subjects_file is None else read_names(Path(subjects_file)))
            dataset = Dataset(found.root, found.layout, subjects, found.vocabulary.for_outputs(source.task.outputs))
            split = Split((), (), tuple(subject.name for subject in chosen))
            tasks.append(OwnTask(source.name, Cohort(dataset, source.task, split)))
    return tasks
