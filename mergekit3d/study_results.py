"""From a study's recipe and data to the record that its report is made from, beside the files that its steps leave."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit3d import __version__
from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.datasets.find import find_dataset
from mergekit3d.datasets.subject import Dataset, Subject
from mergekit3d.errors import InputError
from mergekit3d.plan.target import Cohort, open_cohort
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.recipe.models import SourceModel
from mergekit3d.recipe.text import recipe_text
from mergekit3d.reporting.record import ArmRecord, StudyRecord
from mergekit3d.reporting.results import TRANSFER, Subjects
from mergekit3d.reporting.words import SEQUENCE
from mergekit3d.study import Arm, Study, all_sources
from mergekit3d.volumes.nifti import read_grid
from mergekit3d.volumes.orientation import spacing_of

LIBRARIES = ("torch", "numpy", "nibabel", "monai", "safetensors")
MOST_GRIDS = 3
SUBMISSION = "submission"
"""The row of the subjects whose truth a challenge keeps."""


def study_record(study: Study) -> StudyRecord:
    """What the files of a study will not tell of it.

    Args:
        study: checked.

    Raises:
        MergeKit3DError: its data cannot be used.
    """
    loaded = study.loaded
    splits = {size: _split_name(arm) for size, arm in {arm.size: arm for arm in study.arms}.items()}
    return StudyRecord(
        title=loaded.name,
        question=SEQUENCE if loaded.recipe.target is None else TRANSFER,
        arms=[ArmRecord(arm.initialisation, splits[arm.size], arm.seed, _inside(arm.loaded.out, loaded.out)) for arm in study.arms],
        sources=_folders(loaded, loaded.recipe.sources),
        baselines=_folders(loaded, loaded.recipe.baselines),
        tasks={source.name: _words(source.target.regions) for source in loaded.recipe.sources if source.target is not None},
        subjects=_subjects(study),
        versions=_versions(),
        inputs=_inputs(loaded),
        recipe=recipe_text(loaded),
        machine=_machine(study),
    )


def _inside(folder: Path, out: Path) -> str:
    return folder.relative_to(out).as_posix()


def _split_name(arm: Arm) -> str:
    if arm.size or arm.loaded.recipe.target is None:
        return arm.size
    return f"{len(_target_cohort(arm).split.train)} subjects"


def _folders(loaded: LoadedRecipe, sources: Sequence[SourceModel]) -> dict[str, str]:
    """The folder of each source's training; empty where it was trained elsewhere."""
    return {
        source.name: "" if source.checkpoint is not None else _inside(loaded.checkpoint_path(source).parent, loaded.out)
        for source in sources
    }


def _words(outputs: Any) -> str:
    return f"regions {outputs}" if isinstance(outputs, str) else ", ".join(list(outputs or {})[:4])


def _subjects(study: Study) -> list[Subjects]:
    """The subjects of every task, the sources' first."""
    loaded = study.loaded
    found = [
        _of_cohort(source.name, open_cohort(loaded, source.target, key=f"sources.{source.name}.target"))
        for source in all_sources(loaded)
        if source.target is not None
    ]
    sizes = {arm.size: arm for arm in reversed(study.arms)} if loaded.recipe.target is not None else {}
    for size, arm in reversed(sizes.items()):
        found.append(_of_cohort(f"target, {size}" if size else "target", _target_cohort(arm)))
    online = submitted(study)
    if online is not None:
        grids, remark = _grids(online.subjects), f"layout {online.layout}, segmented for a challenge that keeps the truth"
        found.append(Subjects(SUBMISSION, _target_cohort(study.arms[0]).task.modalities, (), 0, 0, len(online.subjects), grids, remark))
    if loaded.recipe.train is not None:
        found.append(_of_cohort(loaded.name, open_cohort(loaded, loaded.recipe.target)))
    return found


def submitted(study: Study) -> Dataset | None:
    """The subjects that a study segments for a challenge; None where it does not, or they are not there."""
    folder = study.submission_folder
    return None if folder is None else find_dataset(folder)


def _of_cohort(name: str, cohort: Cohort) -> Subjects:
    split, task = cohort.split, cohort.task
    used = [subject for part in ("train", "validation", "test") for subject in cohort.subjects(part)]
    spacing = "" if task.spacing_mm is None else f"resampled to {_size(task.spacing_mm)} mm, "
    return Subjects(
        name,
        list(task.modalities),
        list(task.outputs),
        len(split.train),
        len(split.validation),
        len(split.test),
        _grids(used),
        f"layout {cohort.dataset.layout}, {spacing}{task.normalisation}",
    )


def _grids(subjects: Sequence[Subject]) -> list[str]:
    """Voxels and voxel size of the subjects' first images, from the headers; the most frequent ones."""
    counts: Counter[str] = Counter()
    for subject in subjects:
        try:
            grid = read_grid(next(iter(subject.images.values()))).canonical()
        except InputError:
            continue  # the step that needs the image tells what is wrong with it
        counts[f"{_edges(grid.shape)} voxels of {_size(spacing_of(grid.affine))} mm"] += 1
    shown = [f"{grid} ({count})" if len(counts) > 1 else grid for grid, count in counts.most_common(MOST_GRIDS)]
    return [*shown, f"{len(counts) - MOST_GRIDS} more"] if len(counts) > MOST_GRIDS else shown


def _edges(edges: Sequence[int]) -> str:
    return " × ".join(map(str, edges))


def _size(edges_mm: Sequence[float]) -> str:
    """A voxel's edges; of a cube, one."""
    written = [f"{edge:.3g}" for edge in edges_mm]
    return written[0] if len(set(written)) == 1 else " × ".join(written)


def _target_cohort(arm: Arm) -> Cohort:
    return open_cohort(arm.loaded, arm.loaded.recipe.target)


def _inputs(loaded: LoadedRecipe) -> dict[str, str]:
    """Digests of the checkpoints that were trained elsewhere."""
    inputs = {}
    for source in (*loaded.recipe.sources, *loaded.recipe.baselines):
        if source.checkpoint is not None:
            opened = open_checkpoint(loaded.checkpoint_path(source), verify=False)
            seal = None if opened.metadata is None else opened.metadata.seal
            inputs[f"checkpoint {source.name}"] = opened.digest if seal is None else seal["tensors"]
    return inputs


def _versions() -> Mapping[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"mergekit3d": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


def _machine(study: Study) -> str:
    import torch

    from mergekit3d.training.devices import resolve_runtime

    device = resolve_runtime(study.options.device, study.options.precision).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} processor, {threads} thread{'' if threads == 1 else 's'}"
