"""What the checkpoints of a run tell of how they came to be: subjects, seeds, digests of what went in and came out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.checkpoints import Checkpoint, open_checkpoint
from mergekit3d.reporting import discover
from mergekit3d.reporting.record import StudyRecord
from mergekit3d.reporting.results import Provenance, Subjects
from mergekit3d.storage.seal import file_digest
from mergekit3d.textfiles import read_text

if TYPE_CHECKING:
    from mergekit3d.reporting.discover import Found

DIGEST = re.compile(r"[0-9a-f]{64}")
INPUTS = ("init", "checkpoint", "data", "adapted", "base", "ratios", "unlabelled")
"""Keys of a checkpoint's provenance that hold digests of what it was made from."""


def checkpoint_in(found: Found, folder: Path) -> Checkpoint | None:
    """The checkpoint of a stage's folder, the best one first; None where there is none.

    Raises:
        InputError: it is damaged.
    """
    for name in ("best.safetensors", "checkpoint.safetensors", "last.safetensors"):
        if found.has(folder / name):
            return open_checkpoint(found.folder / folder / name, verify=False)
    return None


def stage_subjects(found: Found, record: StudyRecord) -> list[Subjects]:
    """Subjects of every task, from the splits beside the checkpoints."""
    names = {Path(folder): name for name, folder in {**record.sources, **record.baselines}.items()}
    by_name: dict[str, Subjects] = {}
    for path in found.named(discover.SPLIT):
        name = names.get(path.parent, "target")
        arm = next((arm for arm in record.arms if Path(arm.folder) in path.parents), None)
        if arm is not None and len({other.split for other in record.arms}) > 1:
            name = f"target, {arm.split}"
        by_name.setdefault(name, _subjects(found, path, name))
    return sorted(by_name.values(), key=lambda subjects: subjects.name.startswith("target"))


def _subjects(found: Found, path: Path, name: str) -> Subjects:
    train, validation, test = discover.split_counts(found.folder / path)
    opened = checkpoint_in(found, path.parent)
    task = None if opened is None or opened.metadata is None else opened.metadata.task
    if task is None:
        return Subjects(name, (), (), train, validation, test)
    grid = "native" if task.spacing_mm is None else f"resampled to {' x '.join(f'{edge:g}' for edge in task.spacing_mm)} mm"
    return Subjects(name, task.modalities, tuple(task.outputs), train, validation, test, (), f"grid {grid}, {task.normalisation}")


def provenance_of(found: Found, record: StudyRecord) -> Provenance:
    """Versions, seeds, digests of inputs and outputs, and the recipe.

    Raises:
        InputError: a checkpoint is damaged.
    """
    outputs: dict[str, str] = {}
    inputs = dict(record.inputs)
    versions, seeds, architecture = dict(record.versions), {arm.seed for arm in record.arms}, None
    for path in found.files:
        if path.name in (discover.SPLIT, discover.RECIPE):
            continue
        name = path.as_posix()
        if path.suffix != ".safetensors":
            outputs[name] = file_digest(found.folder / path)
            continue
        opened = open_checkpoint(found.folder / path, verify=False)
        seal = None if opened.metadata is None else opened.metadata.seal
        outputs[name] = opened.digest if seal is None else seal["tensors"]
        if opened.metadata is None:
            continue
        told = opened.metadata.provenance
        versions.setdefault(opened.metadata.tool.get("name", "mergekit3d"), opened.metadata.tool.get("version", ""))
        if isinstance(told.get("seed"), int):
            seeds.add(told["seed"])
        if opened.metadata.architecture is not None:
            # Channels go by the task: of several networks, only what they have in common is told.
            told_here = opened.metadata.architecture
            architecture = {key: value for key, value in (architecture or told_here).items() if told_here.get(key) == value}
        inputs |= {f"{label} of {name}": digest for label, digest in _inputs_of(told)}
    inputs = {name: digest for name, digest in inputs.items() if digest not in outputs.values()}
    return Provenance(
        versions={name: version for name, version in versions.items() if version},
        inputs=_once(inputs),
        digests=outputs,
        seeds=sorted(seeds),
        recipe=record.recipe or _recipe(found),
        machine=record.machine,
        facts={"Architecture": _architecture(architecture)} if architecture else {},
    )


def _once(digests: Mapping[str, str]) -> dict[str, str]:
    """Every digest once, under the first of its names."""
    by_digest: dict[str, str] = {}
    for name, digest in digests.items():
        by_digest.setdefault(digest, name)
    return {name: digest for digest, name in by_digest.items()}


def _inputs_of(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in INPUTS:
        if isinstance(told.get(key), str) and DIGEST.fullmatch(told[key]):
            yield key, told[key]
    sources = told.get("sources")
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, dict):
            for key in ("checkpoint", "fisher"):
                digest = source.get(key)
                if isinstance(digest, str) and DIGEST.fullmatch(digest):
                    yield f"{key} {source.get('name', '')}", digest


def _architecture(told: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key} {value}" for key, value in told.items() if key != "name" and isinstance(value, str | int | float))
    return f"{told.get('name', '')}{f' ({arguments})' if arguments else ''}"


def _recipe(found: Found) -> str:
    """The recipe that a training left beside its results; of several stages, that of the first."""
    paths = found.named(discover.RECIPE)
    return read_text(found.folder / paths[0], "the recipe") if paths else ""
