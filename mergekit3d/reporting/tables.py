"""The tables of a study, as plain data for the report, and on the screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergekit3d.comparison import p_words
from mergekit3d.merging.partitions import layer_of
from mergekit3d.metrics import defined_mean, means_by_region
from mergekit3d.reporting.evidence import arm_dice, differences
from mergekit3d.reporting.results import Evaluation, StudyResults, display_name, listed
from mergekit3d.summaries import intervals_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mergekit3d.forgetting_matrix import Forgetting

MISSING = "–"
MOST_OUTPUTS = 5
FUSION_NOTE = (
    "share: how much a source weighs after its Fisher information, the mean of its part over the weights; distance: of the result from "
    "a source, relative to the length of that source's weights; both of fused tensors alone"
)


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Args:
        text: the number.
        detail: smaller, under it (an interval, a second measure).
        best: of its row.
        share: 0 to 1, how strongly it is tinted; None: not at all.
    """

    text: str
    detail: str = ""
    best: bool = False
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with a heading a row and a column.

    Args:
        caption: what it shows.
        corner: heading of the first column.
        columns: headings of the others.
        rows: heading and cells of every row.
        note: under the table.
    """

    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""


def dice_table(results: StudyResults) -> Table | None:
    """Mean test Dice, a row a size and a column an initialisation, the best bold (Table 2 of the paper)."""
    if not results.arms:
        return None
    rows = []
    for split in results.splits:
        dice = [arm_dice(results, split, name) for name in results.names]
        cells = [Cell(_number(arm.mean), _interval(arm.interval_95, arm.seeds_95)) for arm in dice]
        rows.append((split, _mark_best(cells, [arm.mean for arm in dice])))
    seeds = f"; in brackets: that over {len(results.seeds)} seeds by Student's t" if len(results.seeds) > 1 else ""
    note = f"below each mean, its 95 % bootstrap interval over the test subjects{seeds}"
    from_each = " from each initialisation" if len(results.names) > 1 else ""
    caption = f"Mean test Dice of {listed(results.regions)} after fine-tuning{from_each}"
    return Table(caption, "target", _headings(results), tuple(rows), note)


def region_tables(results: StudyResults) -> list[Table]:
    """Test Dice and HD95 of every region, a table a size."""
    tables = []
    for split in results.splits:
        arms = [arm_dice(results, split, name).by_region for name in results.names]
        rows = []
        for region in results.regions:
            means = [arm.get(region) for arm in arms]
            dice = [math.nan if mean is None else mean.dice for mean in means]
            details = ["" if mean is None or math.isnan(mean.hd95) else f"{mean.hd95:.1f} mm" for mean in means]
            cells = [Cell(_number(value), detail) for value, detail in zip(dice, details, strict=True)]
            rows.append((region, _mark_best(cells, dice)))
        caption = "Test Dice by region; below it, the 95th percentile of the Hausdorff distance"
        tables.append(Table(f"{split}: {caption}" if len(results.splits) > 1 else caption, "region", _headings(results), tuple(rows)))
    return tables if results.regions else []


def subjects_table(results: StudyResults) -> Table | None:
    """What was trained and tested on, a row a task; subjects by number."""
    if not results.subjects:
        return None
    rows = []
    for task in results.subjects:
        grids = "\n".join(filter(None, [*task.grids, task.remark])) or MISSING
        cells = (
            Cell(", ".join(task.modalities) or MISSING),
            Cell(_outputs(task.outputs), f"{len(task.outputs)} in all" if len(task.outputs) > MOST_OUTPUTS else ""),
            Cell(str(task.train)),
            Cell(str(task.validation)),
            Cell(str(task.test)),
            Cell(grids),
        )
        rows.append((task.name, cells))
    columns = ("modalities", "regions", "training", "validation", "test", "grid of the images")
    return Table("Subjects of every task, by their number", "task", columns, tuple(rows))


def evaluation_tables(results: StudyResults) -> list[Table]:
    """What `evaluate` measured, a row a region, then their mean."""
    return [_evaluation_table(evaluation) for evaluation in results.evaluations]


def _evaluation_table(evaluation: Evaluation) -> Table:
    intervals, means = intervals_of(evaluation.metrics), means_by_region(evaluation.metrics)
    summary = evaluation.summary or {}
    more = summary.get("mean") if isinstance(summary.get("mean"), dict) else {}
    rows = []
    for region, mean in means.items():
        of_region = dict((more or {}).get(region) or {})
        volumes = [of_region.get(key) for key in ("volume_pred_ml", "volume_ref_ml")]
        cells = (
            Cell(_number(mean.dice), _interval(tuple(intervals["mean"].get(region, (math.nan, math.nan))))),
            Cell(MISSING if math.isnan(mean.hd95) else f"{mean.hd95:.1f} mm"),
            Cell(_number(of_region.get("NSD"))),
            Cell(MISSING if None in volumes else f"{volumes[0]:.1f} ml", "" if None in volumes else f"truth {volumes[1]:.1f} ml"),
            Cell(str(mean.subjects)),
        )
        rows.append((region, cells))
    overall = defined_mean(mean.dice for mean in means.values())
    subjects = len({row.subject for row in evaluation.metrics})
    empty = Cell("")
    rows.append(
        ("mean", (Cell(_number(overall), _interval(tuple(intervals["foreground_mean"]))), empty, empty, empty, Cell(str(subjects))))
    )
    caption = "Agreement with the truth, by region" + (f": {evaluation.name}" if evaluation.name else "")
    columns = ("Dice", "HD95", "surface Dice", "volume", "subjects")
    return Table(caption, "region", columns, tuple(rows), "below each mean Dice, its 95 % bootstrap interval over the subjects")


def fisher_table(results: StudyResults) -> Table:
    """Trace, its standard error and subjects of every Fisher diagonal."""
    rows = []
    for name, fisher in results.fishers.items():
        error = "" if fisher.standard_error is None or not fisher.trace else f"± {100 * fisher.standard_error / fisher.trace:.2g} %"
        subjects = MISSING if fisher.subjects is None else str(fisher.subjects)
        rows.append((name, (Cell(f"{fisher.trace:.4g}", error), Cell(subjects), Cell(fisher.method or MISSING))))
    note = "below each trace, one standard error from the spread over the subjects"
    return Table("Fisher diagonals", "network", ("trace", "subjects", "labels"), tuple(rows), note)


def comparison_tables(results: StudyResults) -> list[Table]:
    """The first (T-IMM, or the best) against every other, subject by subject, a table a comparison."""
    tables = []
    for name, found in differences(results):
        rows = []
        for comparison in found.of_mean():
            low, high = comparison.interval_95
            cells = (
                Cell(f"{comparison.mean_difference:+.3f}", "" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"),
                Cell(f"{comparison.wins}", f"of {len(comparison.differences)}"),
                Cell(_p(comparison.p), comparison.p_method or ""),
                Cell(_p(comparison.p_holm)),
            )
            rows.append((comparison.other, cells))
        caption = f"{found.first} minus each other: Dice difference of the same test subjects"
        columns = ("mean difference", f"{found.first} better", "Wilcoxon p", "p after Holm")
        note = "; ".join(("below the mean difference, its 95 % bootstrap interval", *found.notes))
        tables.append(Table(f"{name}: {caption}" if name else caption, "other", columns, tuple(rows), note))
    return tables


def lengths_table(results: StudyResults) -> Table | None:
    """Epochs and validation Dice of adaptation and fine-tuning (Table 3 of the paper)."""
    stages: dict[str, Callable[[str], Sequence[Any]]] = {}
    if any(adaptation.epochs is not None for adaptation in results.adaptations):
        stages["adaptation"] = lambda split: [adaptation for adaptation in results.adaptations if adaptation.split == split]
    for name in results.names:
        if any(arm.epochs is not None for arm in results.arms if arm.name == name):
            stages[f"from {display_name(name)}"] = lambda split, name=name: results.of(split, name)  # type: ignore[misc]
    if not stages:
        return None
    splits = list(dict.fromkeys([*results.splits, *(adaptation.split for adaptation in results.adaptations)]))
    rows = tuple((split, tuple(_length(stage(split)) for stage in stages.values())) for split in splits)
    averaged = "; means over the seeds" if len(results.seeds) > 1 else ""
    note = f"epochs until the stage stopped; below, mean Dice on the validation subjects at the best epoch{averaged}"
    return Table("Length of the adaptation stage and of fine-tuning", "target", tuple(stages), rows, note)


def trainings_table(results: StudyResults) -> Table | None:
    """Epochs and validation Dice of the sources."""
    trainings = [training for training in results.trainings if training.epochs is not None]
    if not trainings:
        return None
    rows = tuple((training.name, (Cell(str(training.epochs)), Cell(_number(training.validation_dice)))) for training in trainings)
    own = all(training.name in (*results.sources, *results.baselines) for training in trainings)
    caption, corner = ("Training of the sources, each on its own task", "source") if own else ("Length of each training", "training")
    note = "validation Dice: mean over the regions at the epoch of the best validation loss"
    return Table(caption, corner, ("epochs", "validation Dice"), rows, note)


def forgetting_table(results: StudyResults) -> Table | None:
    """Dice of every model on the sources' own tasks (Table 4 of the paper), tinted by value."""
    found = results.forgetting
    if found is None:
        return None
    nowhere = [[(math.nan, math.nan)] * len(found.columns)] * len(found.rows)
    rows = []
    for label, values, intervals in zip(found.rows, found.dice, found.intervals_95 or nowhere, strict=True):
        cells = [
            Cell(_number(value), _interval(interval), share=None if _is_missing(value) else value)
            for value, interval in zip(values, intervals, strict=True)
        ]
        rows.append((label, tuple(cells)))
    columns = tuple(display_name(column) for column in found.columns)
    return Table("Test Dice on the sources' own tasks: what each model remembers", "task", columns, tuple(rows), found.note)


def matrix_table(forgetting: Forgetting) -> Table:
    """Dice of networks on the sources' own tasks, a row a network: Table 4 of the paper on its side, for any number of networks."""
    rows = []
    for name, dice, intervals in zip(forgetting.networks, forgetting.dice, forgetting.intervals_95, strict=True):
        cells = [Cell(_number(value), _interval(interval)) for value, interval in zip(dice, intervals, strict=True)]
        rows.append((name, (*cells, Cell(_number(defined_mean(dice)))) if len(dice) > 1 else tuple(cells)))
    several = ("mean of the tasks",) if len(forgetting.tasks) > 1 else ()
    columns = (*(f"task of {task} ({forgetting.subjects(task)} subjects)" for task in forgetting.tasks), *several)
    caption = "Mean test Dice on the sources' own tasks, each network with the private tensors of the source"
    return Table(caption, "network", columns, tuple(rows), "below each mean, its 95 % bootstrap interval over the subjects")


def tensors_table(fusion: Mapping[str, Any]) -> tuple[dict[str, int], Table]:
    """What became of every tensor.

    Args:
        fusion: the content of ``<stem>.report.json``.

    Returns:
        The number of tensors by outcome, and the table.
    """
    counts: dict[str, int] = {}
    rows = []
    for tensor in fusion.get("tensors", ()):
        outcome = str(tensor.get("outcome", ""))
        counts[outcome] = counts.get(outcome, 0) + 1
        shape = " × ".join(map(str, tensor.get("shape", ())))
        ratios = _by_source(tensor.get("ratios"), _ratio)
        remark = str(tensor.get("detail") or tensor.get("origin") or "")
        cells = (
            Cell(f"{outcome}, {partition}" if (partition := tensor.get("partition")) else outcome),
            Cell(shape),
            Cell(ratios),
            Cell(_by_source(tensor.get("share"), _percent)),
            Cell(_by_source(tensor.get("distance"), _percent)),
            Cell(remark),
        )
        rows.append((str(tensor.get("name", "")), cells))
    columns = ("outcome", "shape", "mixing ratio", "share", "distance", "remark")
    return counts, Table("Every tensor of the fused checkpoint", "tensor", columns, tuple(rows), FUSION_NOTE)


def layers_table(fusion: Mapping[str, Any]) -> Table | None:
    """What became of every layer: its tensors by outcome, how much each source weighs, how far the result is from each."""
    sources = [str(source) for source in fusion.get("sources", ())]
    figures = fusion.get("per_layer") or {}
    outcomes: dict[str, dict[str, int]] = {}
    for tensor in fusion.get("tensors", ()):
        of_layer, outcome = outcomes.setdefault(layer_of(str(tensor.get("name", ""))), {}), str(tensor.get("outcome", ""))
        of_layer[outcome] = of_layer.get(outcome, 0) + 1
    if not sources or not figures:
        return None
    rows = []
    for layer, counts in outcomes.items():
        of_figures = figures.get(layer, {})
        share, distance = dict(of_figures.get("share") or {}), dict(of_figures.get("distance") or {})
        cells = [Cell(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))]
        cells += [Cell(_percent(share.get(source)), share=share.get(source)) for source in sources]
        cells += [Cell(_percent(distance.get(source))) for source in sources]
        rows.append((layer, tuple(cells)))
    columns = ("tensors", *(f"share of {source}" for source in sources), *(f"distance from {source}" for source in sources))
    return Table("Layer by layer", "layer", columns, tuple(rows), FUSION_NOTE)


def print_tables(results: StudyResults) -> list[RenderableType]:
    """Table 2 and Table 4 of the study for a terminal; what was not measured is left out."""
    return [on_screen(table) for table in (dice_table(results), forgetting_table(results)) if table is not None]


def on_screen(table: Table) -> RenderableType:
    """A table for a terminal, or for a log file."""
    from rich import box
    from rich.table import Table as Screen
    from rich.text import Text

    screen = Screen(title=table.caption, caption=table.note or None, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    screen.add_column(Text(table.corner), no_wrap=True)
    for column in table.columns:
        screen.add_column(Text(column), justify="right", no_wrap=True)
    for label, cells in table.rows:
        # The star tells the best where there is no bold type, as in a log file.
        texts = [Text(f"{cell.text}*" if cell.best else f"{cell.text} ", style="bold" if cell.best else "") for cell in cells]
        screen.add_row(Text(label), *texts)
        if any(cell.detail for cell in cells):
            screen.add_row(Text(""), *(Text(f"{cell.detail} ", style="dim") for cell in cells))
    return screen


def _headings(results: StudyResults) -> tuple[str, ...]:
    return tuple(display_name(name) for name in results.names)


def _mark_best(cells: Sequence[Cell], values: Sequence[float]) -> tuple[Cell, ...]:
    """Cells with the best marked: all that print as the highest value, and none where there is but one."""
    defined = [value for value in values if not math.isnan(value)]
    highest = _number(max(defined)) if len(defined) > 1 else None
    return tuple(Cell(cell.text, cell.detail, best=cell.text == highest) for cell in cells)


def _number(value: float | None) -> str:
    return MISSING if _is_missing(value) else f"{value:.3f}"


def _is_missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _p(p: float) -> str:
    return MISSING if math.isnan(p) else p_words(p).removeprefix("p ").removeprefix("= ")


def _interval(interval_95: tuple[float, float], seeds_95: tuple[float, float] = (math.nan, math.nan)) -> str:
    (low, high), (low_seeds, high_seeds) = interval_95, seeds_95
    over_subjects = "" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
    return over_subjects if math.isnan(low_seeds) else f"{over_subjects}\n({low_seeds:.2f} to {high_seeds:.2f})".lstrip()


def _length(runs: Sequence[Any]) -> Cell:
    epochs = defined_mean(math.nan if run.epochs is None else float(run.epochs) for run in runs)
    dice = defined_mean(math.nan if run.validation_dice is None else run.validation_dice for run in runs)
    return Cell(MISSING if math.isnan(epochs) else f"{epochs:.0f}", "" if math.isnan(dice) else _number(dice))


def _outputs(outputs: Sequence[str]) -> str:
    return ", ".join(outputs[:MOST_OUTPUTS]) + (", …" if len(outputs) > MOST_OUTPUTS else "") or MISSING


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if isinstance(value, (int, float)) else MISSING


def _by_source(values: Any, written: Callable[[Any], str]) -> str:
    return ", ".join(f"{source}\N{NO-BREAK SPACE}{written(value)}" for source, value in values.items()) if isinstance(values, dict) else ""


def _ratio(ratio: Any) -> str:
    return f"{ratio:.3f}" if isinstance(ratio, (int, float)) else f"{min(ratio):.3f} to {max(ratio):.3f}"
