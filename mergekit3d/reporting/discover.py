"""What stands in the folder of a run: its result files, and, where no study's record says it, which of them belong to which arm."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit3d.reporting.record import ArmRecord, StudyRecord
from mergekit3d.reporting.results import BASELINE, FUSED, MEAN_IMM
from mergekit3d.textfiles import read_json_object

LOG, RATIOS, METRICS, SUMMARY, SPLIT = "log.csv", "ratios.json", "metrics.csv", "summary.json", "split.json"
COMPARE, FORGETTING, SLICES, RECIPE = "compare.json", "forgetting.json", "slices.png", "recipe.yaml"
FISHER_ENDING, FUSION_ENDING = ".fisher.safetensors", ".report.json"
RESULTS = (LOG, RATIOS, METRICS, COMPARE, FORGETTING, SLICES)
BESIDE = (SUMMARY, SPLIT, RECIPE, "best.safetensors", "last.safetensors", "checkpoint.safetensors")
"""What tells something only beside other files."""

SKIPPED = ("prepared", "data", "probabilities")
DEPTH = 5
"""Folders below the run's own: size, seed, initialisation, stage."""

_ORDER = (BASELINE, "", "imm", MEAN_IMM, "timm")


@dataclass(frozen=True)
class Found:
    """The files of a run.

    Args:
        folder: the run's.
        files: paths from there, sorted.
    """

    folder: Path
    files: tuple[Path, ...]

    def named(self, name: str) -> list[Path]:
        """The files of one name, from the run's folder."""
        return [path for path in self.files if path.name == name]

    def ending(self, ending: str) -> list[Path]:
        """The files whose names end so, from the run's folder."""
        return [path for path in self.files if path.name.endswith(ending)]

    def has(self, path: Path) -> bool:
        """Whether a file is there, named from the run's folder."""
        return path in self.files

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that a report could tell."""
        return not any(path.name in RESULTS or path.name.endswith((FISHER_ENDING, FUSION_ENDING)) for path in self.files)


def find_files(folder: Path) -> Found:
    """The result files in a folder and `DEPTH` levels below, without data, what is hidden, and links to folders."""
    found = []
    for parent, folders, files in os.walk(folder):
        inner = Path(parent).relative_to(folder)
        deep = len(inner.parts) >= DEPTH
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith(".") and name not in SKIPPED)
        found += [inner / name for name in files if name in RESULTS or name in BESIDE or name.endswith((FISHER_ENDING, FUSION_ENDING))]
    return Found(folder, tuple(sorted(path for path in found if (folder / path).is_file())))


def record_of(found: Found) -> StudyRecord:
    """Arms and sources as the folders tell them: for runs of single commands, and for studies from before they were recorded."""
    arms = [_arm(found, path.parent.parent) for path in found.named(METRICS) if path.parent.name == "test"]
    arms.sort(key=lambda arm: (_size_of(arm.split), arm.split, arm.seed, _place(arm.name), arm.name))
    sources = {
        path.parent.parent.name: path.parent.as_posix()
        for path in found.named(LOG)
        if path.parent.name == "train" and path.parent.parent.name
    }
    return StudyRecord("", arms=arms, sources=sources)


def _arm(found: Found, folder: Path) -> ArmRecord:
    parents = folder.parts[:-1]
    seed = next((int(match[1]) for part in parents if (match := re.fullmatch(r"seed-(\d+)", part))), 0)
    sizes = [part for part in parents if not re.fullmatch(r"seed-\d+", part)]
    split = folder / "finetune" / SPLIT
    named = " ".join(sizes).replace("-percent", " %")
    return ArmRecord(folder.name or "network", named or _trained(found, split), seed, folder.as_posix())


def _trained(found: Found, split: Path) -> str:
    counts = split_counts(found.folder / split) if found.has(split) else None
    return "target" if counts is None else f"{counts[0]} subject{'' if counts[0] == 1 else 's'}"


def split_counts(path: Path) -> tuple[int, int, int]:
    """How many subjects train, validate and test, from split.json.

    Raises:
        InputError: it cannot be read.
    """
    content = read_json_object(path, "the split")
    train, validation, test = (
        len(names) if isinstance(names := content.get(part), list) else 0 for part in ("train", "validation", "test")
    )
    return train, validation, test


def _place(name: str) -> int:
    return _ORDER.index(name) if name in (BASELINE, *FUSED, MEAN_IMM) else _ORDER.index("")


def _size_of(split: str) -> int:
    number = re.match(r"\d+", split)
    return int(number[0]) if number else 0


def stage_name(folder: Path) -> Sequence[str]:
    """The parts of a stage's folder that tell it from others: ``m1`` of ``m1/train``, nothing of the run's own."""
    return [part for part in folder.parts if part not in ("train", "finetune", "adapt", "test", "evaluation")]
