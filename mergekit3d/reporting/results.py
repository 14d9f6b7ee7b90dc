"""The results of a study, as plain data: what the report and the tables on the screen are made from. Every part may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit3d.comparison import CompareResult
from mergekit3d.metrics import SubjectMetrics
from mergekit3d.plots.fisher import Information

BASELINE = "none"
FUSED = ("imm", "timm")
MEAN_IMM = "mean-imm"
LEARNED = "timm"
"""The only start whose merge differs from size to size and seed to seed."""

_NAMES = {"none": "none", "imm": "IMM", "mean-imm": "mean-IMM", "timm": "T-IMM"}

TRANSFER = (
    "Which initialisation serves a new segmentation task with few labelled subjects best: none, one trained network, or networks "
    "of other tasks merged by their Fisher information with fixed (IMM) or with learned mixing ratios (T-IMM)?"
)


@dataclass(frozen=True)
class Arm:
    """One fine-tuned network: an initialisation, a size of the target's training set, a seed.

    Args:
        name: of the initialisation: none, a source's name, imm, timm.
        split: name of the size of the training set ("4 %", "4 subjects"); its rows in the tables come in the order of the arms.
        metrics: rows of its metrics.csv on the test subjects.
        seed: of the fine-tuning.
        log: its log.csv, for the learning curves.
        epochs: length of the fine-tuning.
        validation_dice: mean Dice on the validation subjects at its best epoch.
    """

    name: str
    split: str
    metrics: Sequence[SubjectMetrics]
    seed: int = 0
    log: Path | None = None
    epochs: int | None = None
    validation_dice: float | None = None


@dataclass(frozen=True)
class Adaptation:
    """One adaptation stage of T-IMM.

    Args:
        split: as of `Arm`.
        ratios: the content of ratios.json.
        seed: of the adaptation.
        log: its log.csv.
        epochs: its length.
        validation_dice: mean Dice on the validation subjects at its best epoch.
    """

    split: str
    ratios: Mapping[str, Any]
    seed: int = 0
    log: Path | None = None
    epochs: int | None = None
    validation_dice: float | None = None


@dataclass(frozen=True)
class Training:
    """The training of one source.

    Args:
        name: of the source.
        log: its log.csv.
        epochs: its length.
        validation_dice: mean Dice on its validation subjects at its best epoch.
    """

    name: str
    log: Path | None = None
    epochs: int | None = None
    validation_dice: float | None = None


@dataclass(frozen=True)
class Forgetting:
    """Dice of each model on the test subjects of the sources' own tasks (Table 4 of the paper).

    Args:
        rows: the tasks, in words ("labels 1-7, with the S of m1").
        columns: the models.
        dice: one row a task, one value a model; NaN or None where it was not measured.
        intervals_95: of each; empty where they are not known.
        note: over what they are.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    dice: Sequence[Sequence[float | None]]
    intervals_95: Sequence[Sequence[tuple[float, float]]] = ()
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture made elsewhere, such as of `slices_figure`.

    Args:
        png: its bytes.
        caption: what it shows.
        alt: the same for those who cannot see it; the caption where left out.
    """

    png: bytes
    caption: str
    alt: str = ""


@dataclass(frozen=True)
class Subjects:
    """The subjects of one task, by their number: names can tell who they are.

    Args:
        name: of the task: a source's, or the target.
        modalities: of their images, in the network's order.
        outputs: regions or classes.
        train: how many train.
        validation: how many validate.
        test: how many test.
        grids: voxels and voxel size in words, the most frequent first; empty where it was not recorded.
        remark: what was done with the images.
    """

    name: str
    modalities: Sequence[str] = ()
    outputs: Sequence[str] = ()
    train: int = 0
    validation: int = 0
    test: int = 0
    grids: Sequence[str] = ()
    remark: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` left in one folder.

    Args:
        name: of the folder; empty for the only one.
        metrics: rows of metrics.csv.
        summary: the content of summary.json; None where there is none.
    """

    name: str
    metrics: Sequence[SubjectMetrics]
    summary: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Fisher:
    """What a file of a Fisher diagonal tells.

    Args:
        layers: information by layer, in the network's order.
        subjects: how many it was estimated over; None where it is not told.
        trace: sum of the diagonal.
        standard_error: of the trace; None where it is not told.
        method: how it was estimated.
    """

    layers: Mapping[str, Information]
    subjects: int | None
    trace: float
    standard_error: float | None
    method: str = ""


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from. No paths: they can name patients.

    Args:
        versions: of the tool and its libraries, by name.
        inputs: sha256 of what it was made from, by name.
        digests: sha256 of every checkpoint and table that it left, by name.
        seeds: of the study.
        recipe: its text.
        machine: processor or GPU, in words.
        seconds: the whole took.
        facts: anything more, by name.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    recipe: str = ""
    machine: str = ""
    seconds: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyResults:
    """All that a study, or a single command, found.

    Args:
        title: of the report.
        arms: the fine-tuned networks.
        data: what was trained and tested on, in one or two sentences.
        subjects: the same as a table, a row a task.
        question: what the study asks.
        sources: names of the source models, in the order of training.
        baselines: names of further initialisations (jointly trained sources).
        adaptations: one a size and seed.
        trainings: of the sources.
        forgetting: Table 4.
        pictures: slices of predictions beside the truth.
        fusions: the content of ``<stem>.report.json`` by the name of the fused model.
        evaluations: metrics that belong to no arm.
        comparisons: what `compare` left, by its folder; a study's arms are compared anew.
        fishers: Fisher diagonals by the name of the network.
        provenance: versions, digests, seeds, recipe.
        convention: for empty regions, as in `mergekit3d.metrics.CONVENTIONS`.
    """

    title: str
    arms: Sequence[Arm] = ()
    data: str = ""
    subjects: Sequence[Subjects] = ()
    question: str = TRANSFER
    sources: Sequence[str] = ()
    baselines: Sequence[str] = ()
    adaptations: Sequence[Adaptation] = ()
    trainings: Sequence[Training] = ()
    forgetting: Forgetting | None = None
    pictures: Sequence[Picture] = ()
    fusions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()
    comparisons: Mapping[str, CompareResult] = field(default_factory=dict)
    fishers: Mapping[str, Fisher] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    convention: str = "nnunet"

    @property
    def splits(self) -> list[str]:
        """Names of the sizes, in the order of the arms."""
        return list(dict.fromkeys(arm.split for arm in self.arms))

    @property
    def names(self) -> list[str]:
        """Names of the initialisations, in the order of the arms."""
        return list(dict.fromkeys(arm.name for arm in self.arms))

    @property
    def seeds(self) -> list[int]:
        """Seeds of the arms, sorted."""
        return sorted({arm.seed for arm in self.arms})

    @property
    def regions(self) -> list[str]:
        """Names of the regions, in the order of the metrics."""
        return list(dict.fromkeys(row.region for arm in self.arms for row in arm.metrics))

    def of(self, split: str, name: str) -> list[Arm]:
        """The arms of one size and initialisation, one a seed."""
        return [arm for arm in self.arms if arm.split == split and arm.name == name]


def display_name(name: str) -> str:
    """An initialisation as the paper writes it; names of sources stay."""
    return _NAMES.get(name, name)


def listed(items: Sequence[str]) -> str:
    """Words as a list in a sentence: "a, b and c"; of many, the first and their number."""
    if len(items) > 7:
        return f"{', '.join(items[:3])} and {len(items) - 3} more"
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)
