"""From the files that a study's steps left to the plain data of its report."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit3d import __version__
from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.forgetting_matrix import dice_of_json
from mergekit3d.metrics import defined_mean
from mergekit3d.plan.target import Cohort, open_cohort
from mergekit3d.plots.logs import read_log
from mergekit3d.report import results as report
from mergekit3d.study import Arm, Study
from mergekit3d.summaries import read_metrics_csv

LIBRARIES = ("torch", "numpy", "nibabel", "monai", "safetensors")


SEQUENCE = "Of tasks learned one after the other: how much of each do the networks, and the merges of all of them, still know?"


def study_results(study: Study) -> report.StudyResults:
    """All that a study found, read from its output folder; steps that have not run leave their part empty.

    Args:
        study: whose steps have been carried out.
    """
    loaded = study.loaded
    sources = [source.name for source in loaded.recipe.sources]
    question = SEQUENCE if loaded.recipe.target is None else report.TRANSFER
    return report.StudyResults(
        title=loaded.name,
        question=question,
        arms=[_arm(arm) for arm in study.arms if arm.metrics.exists()],
        data=_data(study),
        sources=sources,
        baselines=[source.name for source in loaded.recipe.baselines],
        adaptations=[_adaptation(arm) for arm in study.arms if (arm.loaded.out / "adapt" / "ratios.json").exists()],
        trainings=[
            _training(name, loaded.out / name / "train" / "log.csv")
            for name in sources
            if (loaded.out / name / "train" / "log.csv").exists()
        ],
        forgetting=_forgetting(study),
        pictures=_pictures(study),
        fusions=_fusions(study),
        provenance=_provenance(study),
    )


def _arm(arm: Arm) -> report.Arm:
    epochs, dice = _length(arm.log)
    return report.Arm(
        name=arm.initialisation,
        split=_split_name(arm),
        metrics=read_metrics_csv(arm.metrics),
        seed=arm.seed,
        log=arm.log if arm.log.exists() else None,
        epochs=epochs,
        validation_dice=dice,
    )


def _split_name(arm: Arm) -> str:
    return arm.size or f"{len(_target_cohort(arm).split.train)} subjects"


def _adaptation(arm: Arm) -> report.Adaptation:
    folder = arm.loaded.out / "adapt"
    epochs, dice = _length(folder / "log.csv")
    return report.Adaptation(_split_name(arm), _read(folder / "ratios.json"), arm.seed, folder / "log.csv", epochs, dice)


def _training(name: str, log: Path) -> report.Training:
    return report.Training(name, log, *_length(log))


def _length(log: Path) -> tuple[int | None, float | None]:
    """Epochs of a training, and the validation Dice where the validation loss is best."""
    if not log.exists():
        return None, None
    table = read_log(log)
    losses, dice = table.get("validation_loss"), table.get("validation_dice")
    epochs = len(table.epochs)
    if losses is None or dice is None:
        return epochs, None
    best = min(range(epochs), key=lambda index: math.inf if math.isnan(losses[index]) else losses[index])
    return epochs, float(dice[best])


def _forgetting(study: Study) -> report.Forgetting | None:
    for group in study.groups():
        path = study.folder_of(group) / "forgetting.json"
        if path.exists():
            networks, tasks, dice = dice_of_json(_read(path), path)
            outputs = {source.name: source.target.regions for source in study.loaded.recipe.sources if source.target is not None}
            rows = [f"{_words(outputs.get(task))} (S of {task})" for task in tasks]
            columns = [list(column) for column in zip(*dice, strict=True)]
            if len(rows) > 1:
                rows.append("mean of the tasks")
                columns.append([defined_mean(row) for row in dice])
            return report.Forgetting(rows, [report.display_name(name) for name in networks], columns)
    return None


def _words(outputs: Any) -> str:
    return f"regions {outputs}" if isinstance(outputs, str) else ", ".join(list(outputs or {})[:4])


def _pictures(study: Study) -> list[report.Picture]:
    found = []
    for group in study.groups():
        path = study.folder_of(group) / "slices.png"
        if path.exists():
            caption = f"A test subject (the median by mean Dice), truth and predictions after fine-tuning, {_split_name(group[0])}"
            found.append(report.Picture(path.read_bytes(), caption))
    return found


def _fusions(study: Study) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for arm in study.arms:
        path = arm.loaded.merge_path.with_name(f"{arm.loaded.merge_path.stem}.report.json")
        if path.exists():
            found.setdefault(report.display_name(arm.initialisation), _read(path))
    return found


def _data(study: Study) -> str:
    """What was trained and tested on, in a sentence a task."""
    sentences = []
    for source in study.loaded.recipe.sources:
        if source.target is not None:
            cohort = open_cohort(study.loaded, source.target)
            sentences.append(
                f"{source.name}: {_sizes(cohort)}, {' + '.join(cohort.task.modalities)} to {len(cohort.task.outputs)} regions."
            )
    if study.arms and study.loaded.recipe.target is not None:
        cohort = _target_cohort(study.arms[0])
        sentences.append(f"Target: {_sizes(cohort)}, {' + '.join(cohort.task.modalities)} to {', '.join(cohort.task.outputs)}.")
    return " ".join(sentences)


def _sizes(cohort: Cohort) -> str:
    split = cohort.split
    return f"{len(split.train)} training, {len(split.validation)} validation and {len(split.test)} test subjects"


def _target_cohort(arm: Arm) -> Cohort:
    return open_cohort(arm.loaded, arm.loaded.recipe.target)


def _provenance(study: Study) -> report.Provenance:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"mergekit3d": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    checkpoints = {source.name: study.loaded.checkpoint_path(source) for source in study.loaded.recipe.sources}
    checkpoints |= {f"{arm.initialisation} {arm.size} seed {arm.seed}".replace("  ", " "): arm.checkpoint for arm in study.arms}
    digests = {name: open_checkpoint(path, verify=False).digest for name, path in checkpoints.items() if path.exists()}
    return report.Provenance(
        versions=versions,
        digests=digests,
        seeds=sorted({arm.seed for arm in study.arms}),
        recipe=study.loaded.path.read_text(encoding="utf-8"),
        machine=_machine(study),
    )


def _machine(study: Study) -> str:
    import torch

    from mergekit3d.training.devices import resolve_runtime

    device = resolve_runtime(study.options.device, study.options.precision).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} processor, {torch.get_num_threads()} threads"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
