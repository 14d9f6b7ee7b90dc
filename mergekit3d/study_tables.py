"""Tables 1 to 4 of the T-IMM paper from a study's results, as CSV and Markdown, with intervals over seeds and over test subjects."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit3d.metrics import defined_mean, mean_over_regions
from mergekit3d.paired import student_interval
from mergekit3d.plan.target import open_cohort
from mergekit3d.recipe.models import TargetModel
from mergekit3d.reporting.evidence import arm_dice
from mergekit3d.reporting.results import LEARNED, Adaptation, Arm, StudyResults, display_name
from mergekit3d.storage.atomic import write_text
from mergekit3d.study import Study, all_sources
from mergekit3d.study_results import SUBMISSION, submitted

FOLDER = "tables"
Value = str | int | float
Row = dict[str, Value]


@dataclass(frozen=True)
class PaperTable:
    """One table: a row a measurement for CSV, and pivoted for Markdown.

    Args:
        name: of its files.
        caption: above it.
        rows: the same columns in each.
        pivot: columns that make the rows, the columns and the cells in Markdown; empty: as in CSV.
    """

    name: str
    caption: str
    rows: Sequence[Row]
    pivot: tuple[tuple[str, ...], str, str] | None = None

    def as_csv(self) -> str:
        """One header, then a row a measurement; what is undefined is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.rows[0])
        writer.writerows([["" if _undefined(value) else value for value in row.values()] for row in self.rows])
        return text.getvalue()

    def as_markdown(self) -> str:
        """A table of means, each with its interval over the seeds and that over the test subjects where there are such."""
        lines = [f"# {self.caption}", ""]
        if self.pivot is None:
            names = list(self.rows[0])
            lines += [_line(names), _line(["---"] * len(names))]
            lines += [_line([_plain(value) for value in row.values()]) for row in self.rows]
            return "\n".join([*lines, ""])
        heads, across, cell = self.pivot
        columns = list(dict.fromkeys(str(row[across]) for row in self.rows))
        cells: dict[tuple[str, ...], dict[str, str]] = {}
        for row in self.rows:
            cells.setdefault(tuple(str(row[head]) for head in heads), {})[str(row[across])] = _cell(row, cell)
        lines += [_line([*heads, *columns]), _line(["---"] * (len(heads) + len(columns)))]
        lines += [_line([*key, *(of_row.get(column, "") for column in columns)]) for key, of_row in cells.items()]
        notes = ["in brackets: 95 % interval over the seeds by Student's t", "after ±: half of one over the test subjects, by bootstrap"]
        kept = [note for note, key in zip(notes, ("seeds_low_95", "subjects_low_95"), strict=True) if self._has(key)]
        return "\n".join([*lines, "", *([f"{cell}; {'; '.join(kept)}"] if kept else [cell]), ""])

    def _has(self, key: str) -> bool:
        return any(key in row and not _undefined(row[key]) for row in self.rows)


def write_tables(study: Study, results: StudyResults) -> list[Path]:
    """Write what of the four tables was measured into OUT/tables.

    Args:
        study: whose steps have been carried out.
        results: of `study_results`.

    Returns:
        The files.
    """
    files = []
    for table in paper_tables(study, results):
        for ending, text in (("csv", table.as_csv()), ("md", table.as_markdown())):
            path = study.loaded.out / FOLDER / f"{table.name}.{ending}"
            write_text(path, text)
            files.append(path)
    return files


def paper_tables(study: Study, results: StudyResults) -> list[PaperTable]:
    """The tables that have rows."""
    tables = [
        PaperTable("table-1", "Subjects of every task", list(_splits(study))),
        PaperTable("table-2", "Mean test Dice after fine-tuning", list(_dice(results)), (("size",), "initialisation", "dice")),
        PaperTable("table-3", "Length and validation Dice of adaptation and fine-tuning", list(_lengths(results))),
        PaperTable("table-4", "Test Dice on the sources' own tasks", list(_forgetting(study)), (("size", "task"), "network", "dice")),
    ]
    return [table for table in tables if table.rows]


def _splits(study: Study) -> Iterator[Row]:
    loaded = study.loaded
    targets: list[tuple[str, TargetModel | None]] = [(source.name, source.target) for source in all_sources(loaded)]
    targets += [
        (f"target {group[0].size}".rstrip(), group[0].loaded.recipe.target) for group in study.groups() if group[0].seed == _seed(study)
    ]
    for name, target in targets:
        if target is None:
            continue
        cohort = open_cohort(loaded, target)
        train, validation, test = (len(getattr(cohort.split, part)) for part in ("train", "validation", "test"))
        yield {
            "task": name,
            "total": train + validation,
            "training": train,
            "validation": validation,
            "test": test,
            "modalities": " ".join(cohort.task.modalities),
            "outputs": " ".join(cohort.task.outputs),
        }
    online = submitted(study)
    if online is not None:
        modalities = " ".join(open_cohort(loaded, study.arms[0].loaded.recipe.target).task.modalities)
        counts = {"total": 0, "training": 0, "validation": 0, "test": len(online.subjects)}
        yield {"task": SUBMISSION, **counts, "modalities": modalities, "outputs": ""}


def _seed(study: Study) -> int:
    return study.arms[0].seed


def _dice(results: StudyResults) -> Iterator[Row]:
    for split in results.splits:
        for name in results.names:
            arms = results.of(split, name)
            if arms:
                dice = arm_dice(results, split, name)
                subjects = {"subjects_low_95": dice.interval_95[0], "subjects_high_95": dice.interval_95[1]}
                over_seeds = _over_seeds(mean_over_regions(arm.metrics).dice for arm in arms)
                regions = {f"dice_{region}": mean.dice for region, mean in dice.by_region.items()}
                yield {"size": split, "initialisation": display_name(name), **over_seeds, **subjects, **regions}


def _lengths(results: StudyResults) -> Iterator[Row]:
    for split in dict.fromkeys([*results.splits, *(adaptation.split for adaptation in results.adaptations)]):
        adaptations = [adaptation for adaptation in results.adaptations if adaptation.split == split]
        stages: list[tuple[str, str, Sequence[Arm | Adaptation]]] = [("adaptation", "timm", adaptations)]
        stages += [("fine-tuning", name, results.of(split, name)) for name in results.names]
        for stage, name, runs in stages:
            if any(run.epochs is not None for run in runs):
                epochs = defined_mean(math.nan if run.epochs is None else float(run.epochs) for run in runs)
                dice = _over_seeds(math.nan if run.validation_dice is None else run.validation_dice for run in runs)
                row: Row = {"size": split, "stage": stage, "initialisation": display_name(name), "epochs": epochs}
                yield row | {("validation_dice" if key == "dice" else key): value for key, value in dice.items()}


def _forgetting(study: Study) -> Iterator[Row]:
    """Sources and merges on each source's task, with that source's private tensors; a row a size, as the learned ratios differ."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for group in study.groups():
        path = study.folder_of(group) / "forgetting.json"
        if not path.exists():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        for network, values in zip(content["networks"], content["dice"], strict=True):
            for task, value in zip(content["tasks"], values, strict=True):
                found.setdefault((group[0].size, task, network), []).append(math.nan if value is None else value)
    for (size, task, network), values in found.items():
        # Sources and uniform merges are the same network with every seed: measured once, they have no interval over seeds.
        measured = _over_seeds(values if network == LEARNED else values[:1])
        yield {"size": size, "task": f"task of {task}, S of {task}", "network": display_name(network), **measured}


def _over_seeds(values: Iterable[float]) -> dict[str, Value]:
    given = list(values)
    low, high = student_interval(given)
    return {"seeds": len(given), "dice": defined_mean(given), "seeds_low_95": low, "seeds_high_95": high}


def _undefined(value: Value) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _plain(value: Value) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def _cell(row: Mapping[str, Value], key: str) -> str:
    text = _plain(row[key])
    ends = [row.get(name, math.nan) for name in ("seeds_low_95", "seeds_high_95", "subjects_low_95", "subjects_high_95")]
    low, high, low_subjects, high_subjects = (float(end) for end in ends)
    if not math.isnan(low):
        text += f" ({low:.3f} to {high:.3f})"
    return text if math.isnan(low_subjects) else f"{text} ± {(high_subjects - low_subjects) / 2:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
