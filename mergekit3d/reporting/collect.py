"""From the files in the folder of any run to the plain data of its report; nothing is computed anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.comparison import CompareResult, comparison_of
from mergekit3d.errors import InputError
from mergekit3d.metrics import CONVENTIONS
from mergekit3d.plots.logs import TrainingLog, read_log
from mergekit3d.reporting import discover, results
from mergekit3d.reporting.evidence import without_names
from mergekit3d.reporting.origins import checkpoint_in, provenance_of, stage_subjects
from mergekit3d.reporting.record import ArmRecord, StudyRecord, read_record
from mergekit3d.reporting.remembered import forgetting_of
from mergekit3d.reporting.words import question_of, title_of
from mergekit3d.summaries import read_metrics_csv
from mergekit3d.textfiles import read_json_object

if TYPE_CHECKING:
    from mergekit3d.reporting.discover import Found

WANTED = "what run, train, fisher, adapt, fuse, finetune, evaluate, compare or forgetting writes"


def collect(folder: Path) -> results.StudyResults:
    """All that a run left.

    Args:
        folder: of a study, or of a single command's outputs.

    Raises:
        InputError: no such folder, nothing in it that a report could tell, or a file that is damaged.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing under that name"
        raise InputError("nothing to report", where=folder, wanted="the output folder of a run", found=found)
    found_files = discover.find_files(folder)
    if found_files.is_empty:
        raise InputError("nothing to report", where=folder, wanted=WANTED)
    known = read_record(folder)
    record = discover.record_of(found_files) if known is None else known
    collected = _collected(found_files, record)
    if known is not None:
        return collected
    return replace(collected, title=title_of(collected), question=question_of(collected))


def _collected(found: Found, record: StudyRecord) -> results.StudyResults:
    arms = [_arm(found, arm) for arm in record.arms if found.has(_inner(arm, "test", discover.METRICS))]
    used = {_inner(arm, "finetune", discover.LOG) for arm in record.arms if found.has(_inner(arm, "test", discover.METRICS))}
    comparisons = {} if len(arms) > 1 else _comparisons(found)
    evaluations = _evaluations(found, record)
    return results.StudyResults(
        title=record.title,
        question=record.question,
        arms=arms,
        subjects=record.subjects or stage_subjects(found, record),
        sources=list(record.sources),
        baselines=list(record.baselines),
        adaptations=_adaptations(found, record),
        trainings=_trainings(found, record, used),
        forgetting=forgetting_of(found, record),
        pictures=_pictures(found, record),
        fusions=_fusions(found, record),
        evaluations=evaluations,
        comparisons=comparisons,
        fishers=_fishers(found, record),
        provenance=provenance_of(found, record),
        convention=_convention(found),
    )


def _inner(arm: ArmRecord, *parts: str) -> Path:
    return Path(arm.folder).joinpath(*parts)


def _arm(found: Found, arm: ArmRecord) -> results.Arm:
    log = _inner(arm, "finetune", discover.LOG)
    there = found.folder / log if found.has(log) else None
    epochs, dice = (None, None) if there is None else length(read_log(there))
    metrics = read_metrics_csv(found.folder / _inner(arm, "test", discover.METRICS))
    return results.Arm(arm.name, arm.split, metrics, arm.seed, there, epochs, dice)


def length(log: TrainingLog) -> tuple[int, float | None]:
    """Epochs of a training, and the validation Dice where the validation loss is best."""
    import numpy as np

    losses, dice = log.get("validation_loss"), log.get("validation_dice")
    if losses is None or dice is None:
        return len(log.epochs), None
    return len(log.epochs), float(dice[int(np.nanargmin(losses))])


def _adaptations(found: Found, record: StudyRecord) -> list[results.Adaptation]:
    by_folder = {_inner(arm, "adapt"): arm for arm in record.arms}
    adaptations = []
    for path in found.named(discover.RATIOS):
        arm = by_folder.get(path.parent)
        log = path.with_name(discover.LOG)
        there = found.folder / log if found.has(log) else None
        epochs, dice = (None, None) if there is None else length(read_log(there))
        split, seed = ("target", 0) if arm is None else (arm.split, arm.seed)
        ratios = _ratios(found.folder / path)
        adaptations.append(results.Adaptation(split, ratios, seed, there, epochs, dice))
    order = list(dict.fromkeys(arm.split for arm in record.arms))
    return sorted(adaptations, key=lambda one: (order.index(one.split) if one.split in order else len(order), one.seed))


def _ratios(path: Path) -> Mapping[str, Any]:
    from mergekit3d.plan.ratios import read_ratios

    return read_ratios(path).as_json()


def _trainings(found: Found, record: StudyRecord, used: set[Path]) -> list[results.Training]:
    """Logs that belong to no tested arm and no adaptation; the sources' first, in their order."""
    folders = {Path(inner) / discover.LOG: name for name, inner in {**record.sources, **record.baselines}.items() if inner}
    adapting = {path.with_name(discover.LOG) for path in found.named(discover.RATIOS)}
    logs = [path for path in found.named(discover.LOG) if path not in used and path not in adapting]
    ordered = [path for path in folders if path in logs] + [path for path in logs if path not in folders]
    trainings = []
    for path in ordered:
        name = folders.get(path) or " ".join(discover.stage_name(path.parent)) or _method(found, path.parent)
        trainings.append(results.Training(name, found.folder / path, *length(read_log(found.folder / path))))
    return trainings


def _method(found: Found, folder: Path) -> str:
    opened = checkpoint_in(found, folder)
    method = folder.name or ("" if opened is None or opened.metadata is None else opened.metadata.method)
    return {"finetune": "fine-tuning", "train": "training", "adapt": "adaptation"}.get(method or "", "training")


def _pictures(found: Found, record: StudyRecord) -> list[results.Picture]:
    """The slices of every size, of its first seed: more of the like would make the page large."""
    splits = {Path(arm.folder).parent: arm.split for arm in record.arms}
    several = len(set(splits.values())) > 1
    by_split: dict[str, results.Picture] = {}
    order = list(splits)
    for path in sorted(found.named(discover.SLICES), key=lambda path: order.index(path.parent) if path.parent in splits else -1):
        split = splits.get(path.parent, "")
        of_split = f", {split}" if several and split else ""
        caption = f"One test subject, the median by mean Dice: the truth beside the predictions after fine-tuning{of_split}"
        by_split.setdefault(split, results.Picture((found.folder / path).read_bytes(), caption))
    return list(by_split.values())


def _fusions(found: Found, record: StudyRecord) -> dict[str, Mapping[str, Any]]:
    """Reports of fusions; of a study's seeds and sizes, the first of every initialisation."""
    arms = {Path(arm.folder): arm for arm in record.arms}
    fusions: dict[str, Mapping[str, Any]] = {}
    shown: set[str] = set()
    for path in sorted(found.ending(discover.FUSION_ENDING), key=lambda path: list(arms).index(path.parent) if path.parent in arms else -1):
        content = read_json_object(found.folder / path, "the report of a fusion")
        if not isinstance(content.get("tensors"), list):
            continue
        arm = arms.get(path.parent)
        if arm is not None and arm.name in shown:
            continue
        method = str(content.get("method", ""))
        stem = path.name.removesuffix(discover.FUSION_ENDING)
        name = results.display_name(arm.name if arm is not None and arm.folder != "." else method or stem)
        if arm is not None:
            shown.add(arm.name)
            name += _which(arm, record)
        if name in fusions and arm is None:
            name = f"{name} ({(path.parent / stem).as_posix()})"
        fusions.setdefault(name, content)
    return fusions


def _which(arm: ArmRecord, record: StudyRecord) -> str:
    """Size and seed of an arm in words, where a study has several."""
    several = [len({getattr(other, part) for other in record.arms}) > 1 for part in ("split", "seed")]
    parts = [word for word, needed in zip((arm.split, f"seed {arm.seed}"), several, strict=True) if needed and word]
    return f", {', '.join(parts)}" if parts else ""


def _evaluations(found: Found, record: StudyRecord) -> list[results.Evaluation]:
    of_arms = {_inner(arm, "test", discover.METRICS) for arm in record.arms}
    evaluations = []
    for path in found.named(discover.METRICS):
        if path in of_arms:
            continue
        summary = path.with_name(discover.SUMMARY)
        content = read_json_object(found.folder / summary, "the summary") if found.has(summary) else None
        name = "/".join(discover.stage_name(path.parent))
        evaluations.append(results.Evaluation(name, read_metrics_csv(found.folder / path), content))
    return evaluations


def _comparisons(found: Found) -> dict[str, CompareResult]:
    comparisons = {}
    for path in found.named(discover.COMPARE):
        where = found.folder / path
        comparison = comparison_of(read_json_object(where, "the comparison"), where)
        comparisons[path.parent.as_posix()] = without_names(comparison)
    return comparisons


def _fishers(found: Found, record: StudyRecord) -> dict[str, results.Fisher]:
    from mergekit3d.checkpoints import open_checkpoint
    from mergekit3d.plots.fisher import information_of

    folders = {Path(inner): name for name, inner in {**record.sources, **record.baselines}.items() if inner}
    fishers = {}
    for path in _in_order(found.ending(discover.FISHER_ENDING), list(folders)):
        opened = open_checkpoint(found.folder / path, verify=False)
        layers = information_of(opened)
        told: Mapping[str, Any] = {} if opened.metadata is None else opened.metadata.provenance
        stem = path.name.removesuffix(discover.FISHER_ENDING)
        name = folders.get(path.parent) or (path.parent / stem).as_posix()
        trace, error = (sum(layer.trace for layer in layers.values()), (told.get("trace") or [None, None])[1])
        method = "" if opened.metadata is None else str(opened.metadata.method or "")
        fishers[name] = results.Fisher(layers, told.get("subjects"), trace, error, method.removeprefix("fisher-"))
    return fishers


def _in_order(paths: Iterable[Path], folders: list[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (folders.index(path.parent) if path.parent in folders else len(folders), path))


def _convention(found: Found) -> str:
    for path in found.named(discover.SUMMARY):
        told = read_json_object(found.folder / path, "the summary").get("empty_regions", {})
        if isinstance(told, dict) and told.get("convention") in CONVENTIONS:
            return str(told["convention"])
    return "nnunet"
