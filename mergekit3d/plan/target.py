"""A task of a recipe: what its network must put out, and the subjects that train, validate and test it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit3d.checkpoints.metadata import TaskSpec
from mergekit3d.datasets.find import find_dataset, select
from mergekit3d.datasets.labels import check_outputs, output_set
from mergekit3d.datasets.split import PARTS, Part, Split, split_by_file, split_of_list, split_subjects
from mergekit3d.datasets.subject import Dataset, Subject, canonical_modality
from mergekit3d.errors import InputError, ProblemCollector, RecipeError
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.recipe.models import SplitModel, TargetModel


@dataclass(frozen=True)
class Cohort:
    """The subjects of a task.

    Args:
        dataset: where they come from, with every subject's modalities in the task's order.
        task: modalities and outputs.
        split: names of the subjects that train, validate and test.
    """

    dataset: Dataset
    task: TaskSpec
    split: Split

    def subjects(self, part: str) -> tuple[Subject, ...]:
        """The subjects of ``train``, ``validation`` or ``test``, sorted by name."""
        by_name = {subject.name: subject for subject in self.dataset.subjects}
        return tuple(by_name[name] for name in getattr(self.split, part))


def task_of_target(loaded: LoadedRecipe, target: TargetModel) -> TaskSpec:
    """What the network of a target takes and puts out.

    Raises:
        RecipeError: no outputs, outputs that cannot be, or modalities that are neither given nor plain from the data.
    """
    given = target.regions if target.regions is not None else target.labels
    if given is None:
        raise RecipeError("the target has no outputs", where="target", wanted="regions or labels", todo="for example regions: brats")
    outputs = (
        output_set(given) if isinstance(given, str) else {name: ids if isinstance(ids, tuple) else (ids,) for name, ids in given.items()}
    )
    modalities = target.modalities or _modalities_of(find_dataset(loaded.data_path(target.data), target.layout))
    task = TaskSpec(
        modalities=tuple(canonical_modality(modality) for modality in modalities),
        outputs=outputs,
        exclusive=target.labels is not None,
        normalisation=target.normalisation,
        spacing_mm=target.spacing_mm,
    )
    if len(set(task.modalities)) != len(task.modalities):
        raise RecipeError("a modality stands twice", where="target.modalities", found=", ".join(task.modalities))
    check_outputs(task)
    return task


def open_cohort(loaded: LoadedRecipe, target: TargetModel | None, *, key: str = "target", labelled: Sequence[str] = PARTS) -> Cohort:
    """Find the subjects of a target and split them.

    Args:
        loaded: the recipe.
        target: its target, or that of a source.
        key: where the target stands in the recipe, for error texts.
        labelled: the parts of the split whose subjects need label maps.

    Raises:
        MergeKit3DError: no target, no data, subjects without a modality or labels, too few subjects.
    """
    if target is None:
        raise RecipeError("the recipe has no target", where=loaded.path, wanted=f"{key} with data, modalities and regions")
    task = task_of_target(loaded, target)
    found = find_dataset(loaded.data_path(target.data), target.layout)
    vocabulary = found.vocabulary.for_outputs(task.outputs)
    own = _is_own(target.split, found)
    subjects = select(found, task.modalities, need_labels=set(labelled) == set(PARTS) and not own)
    dataset = Dataset(found.root, found.layout, subjects, vocabulary)
    names = [subject.name for subject in subjects]
    if isinstance(target.split, Path):
        return _with_labels(Cohort(dataset, task, split_by_file(names, loaded.input_path(target.split))), labelled)
    model = target.split
    if own:
        return _with_labels(Cohort(dataset, task, split_of_list(subjects, model.fold)), labelled)
    split = split_subjects(
        names,
        train=_part(loaded, model.train),
        validation=_part(loaded, model.validation),
        test=_part(loaded, model.test),
        skip=model.skip,
        seed=model.seed,
    )
    return _with_labels(Cohort(dataset, task, split), labelled)


def has_test(loaded: LoadedRecipe, target: TargetModel) -> bool:
    """Whether some subjects of a target test.

    Raises:
        MergeKit3DError: as `open_cohort`, where the data have to be asked.
    """
    if isinstance(target.split, Path) or target.split.test:
        return True
    own = not target.split.model_fields_set - {"fold"} and _is_own(target.split, find_dataset(loaded.data_path(target.data), target.layout))
    return own and bool(open_cohort(loaded, target).split.test)


def _is_own(split: SplitModel | Path, dataset: Dataset) -> bool:
    """Whether the split is that which the data set holds itself."""
    if isinstance(split, Path) or split.model_fields_set - {"fold"}:
        return False
    return split.fold is not None or any(subject.part not in (None, PARTS[0]) for subject in dataset.subjects)


def _with_labels(cohort: Cohort, parts: Sequence[str]) -> Cohort:
    """The cohort, whose subjects of these parts have label maps.

    Raises:
        InputError: one has none; `Problems` where several have none.
    """
    problems = ProblemCollector()
    for part in parts:
        for subject in cohort.subjects(part):
            if subject.label is None:
                todo = f"add it, or leave the subject out of target.split.{part}"
                problems.add(InputError("a subject has no label map", where=subject.called, todo=todo))
    problems.raise_if_any()
    return cohort


def with_split(target: TargetModel, split: SplitModel) -> TargetModel:
    """The target with another split, for the sizes of a study."""
    return target.model_copy(update={"split": split})


def _part(loaded: LoadedRecipe, value: int | Path | None) -> Part | None:
    return loaded.input_path(value) if isinstance(value, Path) else value


def _modalities_of(dataset: Dataset) -> tuple[str, ...]:
    """The modalities that every subject has, where all subjects have the same."""
    kinds: Mapping[tuple[str, ...], None] = {tuple(sorted(subject.images)): None for subject in dataset.subjects}
    if len(kinds) != 1:
        raise RecipeError("the subjects have different modalities", where="target", todo="list those to use under target.modalities")
    order = ("t1", "t1ce", "t2", "flair")
    (modalities,) = kinds
    return tuple(sorted(modalities, key=lambda modality: (order.index(modality) if modality in order else len(order), modality)))
