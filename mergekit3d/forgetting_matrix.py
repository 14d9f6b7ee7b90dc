"""How much of the sources' tasks a network still knows: Table 4 of the T-IMM paper, for any number of tasks and networks.

Every network is evaluated on the subjects of every source's task, its shared tensors with that source's private ones.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.architectures import NetworkSpec
from mergekit3d.errors import InputError
from mergekit3d.metrics import CONVENTIONS, SubjectMetrics, defined_mean, mean_over_regions, means_by_region
from mergekit3d.options import Options
from mergekit3d.plan.fusion import plan_fusion
from mergekit3d.plan.network import fusion_start
from mergekit3d.plan.own_tasks import OwnTask, own_tasks
from mergekit3d.progress import Reporter
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.storage.atomic import write_json, write_text
from mergekit3d.summaries import intervals_of
from mergekit3d.textfiles import read_json_object, read_text

if TYPE_CHECKING:
    from torch import nn

JSON, CSV, PICTURE = "forgetting.json", "forgetting.csv", "forgetting.png"
COLUMNS = ("network", "task", "subject", "region", "dice", "hd95")
CONVENTION = "nnunet"
DEFINITION = "mean over the regions of the mean Dice over the subjects; the network's shared tensors with the private ones of the source"


Builder = Callable[[OwnTask], "tuple[nn.Module, NetworkSpec]"]
"""Makes a network with the private tensors of a task's source."""


@dataclass(frozen=True)
class Forgetting:
    """Test Dice of every network on every source's task.

    Args:
        networks: names of the rows: sources, then merges and trained networks.
        tasks: names of the columns: sources whose task it is.
        measures: rows of every subject (by its number in the data set) and region, by network and task.
    """

    networks: tuple[str, ...]
    tasks: tuple[str, ...]
    measures: Mapping[tuple[str, str], tuple[SubjectMetrics, ...]]

    @property
    def dice(self) -> tuple[tuple[float, ...], ...]:
        """Mean over regions and subjects, a row a network; NaN where it is undefined."""
        return tuple(tuple(mean_over_regions(self.measures[network, task]).dice for task in self.tasks) for network in self.networks)

    @property
    def intervals_95(self) -> tuple[tuple[tuple[float, float], ...], ...]:
        """Bootstrap intervals over the subjects of the mean over the regions, as `dice`; NaN with fewer than two subjects."""
        return tuple(
            tuple((low, high) for low, high in (intervals_of(self.measures[network, task])["foreground_mean"] for task in self.tasks))
            for network in self.networks
        )

    def subjects(self, task: str) -> int:
        """Number of subjects of a task."""
        return len({row.subject for row in self.measures[self.networks[0], task]})

    def as_json(self) -> dict[str, Any]:
        """The content of forgetting.json; what is undefined is None."""
        return {
            "networks": list(self.networks),
            "tasks": list(self.tasks),
            "dice": [[_defined(value) for value in row] for row in self.dice],
            "mean_of_tasks": [_defined(defined_mean(row)) for row in self.dice],
            "interval_95": [[[_defined(end) for end in ends] for ends in row] for row in self.intervals_95],
            "regions": {
                task: {
                    network: {region: _defined(mean.dice) for region, mean in means_by_region(self.measures[network, task]).items()}
                    for network in self.networks
                }
                for task in self.tasks
            },
            "subjects": {task: self.subjects(task) for task in self.tasks},
            "definition": DEFINITION,
            "empty_regions": {"convention": CONVENTION, "meaning": CONVENTIONS[CONVENTION]},
        }


def write_forgetting(folder: Path, forgetting: Forgetting) -> None:
    """Write forgetting.json, forgetting.csv (a row a network, task, subject and region; ``nan`` where undefined) and forgetting.png."""
    from mergekit3d.plots.forgetting import forgetting_figure
    from mergekit3d.plots.style import save_figure

    figure = forgetting_figure(forgetting.networks, forgetting.tasks, forgetting.dice)
    write_json(folder / JSON, forgetting.as_json())
    _write_rows(folder / CSV, forgetting)
    save_figure(figure, folder / PICTURE)


def _write_rows(path: Path, forgetting: Forgetting) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (network, task), rows in forgetting.measures.items():
        writer.writerows((network, task, row.subject, row.region, repr(float(row.dice)), repr(float(row.hd95))) for row in rows)
    write_text(path, text.getvalue())


def read_forgetting(folder: Path) -> Forgetting:
    """What `write_forgetting` wrote, to the same numbers.

    Args:
        folder: with forgetting.json and forgetting.csv.

    Raises:
        InputError: either is not what was written.
    """
    what = "the forgetting matrix"
    networks, tasks, _ = dice_of_json(read_json_object(folder / JSON, what), folder / JSON)
    measures: dict[tuple[str, str], list[SubjectMetrics]] = {(network, task): [] for task in tasks for network in networks}
    try:
        for row in csv.DictReader(io.StringIO(read_text(folder / CSV, what))):
            metrics = SubjectMetrics(row["subject"], row["region"], float(row["dice"]), float(row["hd95"]))
            measures[row["network"], row["task"]].append(metrics)
    except (ValueError, TypeError, KeyError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError("cannot read the forgetting matrix", where=folder, wanted="what forgetting writes", found=found) from error
    return Forgetting(tuple(networks), tuple(tasks), {key: tuple(rows) for key, rows in measures.items()})


def forgetting_matrix(
    loaded: LoadedRecipe, merges: Sequence[LoadedRecipe], *, known: Forgetting | None = None, options: Options, reporter: Reporter
) -> Forgetting:
    """Evaluate sources and merges on the sources' test subjects.

    Args:
        loaded: the recipe, with sources that tell their targets.
        merges: the recipe as each merge sees it.
        known: rows that are measured already, of the same tasks.
        options: device and precision.
        reporter: where progress goes.

    Returns:
        A row for every source and merge, a column for every source with test subjects.
    """
    from mergekit3d.prediction import inference_of

    names = [source.name for source in loaded.recipe.sources]
    networks: dict[str, Builder] = {}
    for name in names:
        alone: dict[str, float | dict[str, float]] = {other: float(other == name) for other in names}
        networks[name] = partial(_merged, _merging(loaded, "mean-imm", alone))
    for merge in merges:
        networks[merge.recipe.merge.method] = partial(_merged, merge.changed(target=None))
    order, how = tuple(networks), inference_of(loaded.recipe.predict)
    if known is None:
        return measured_forgetting(networks, own_tasks(loaded), how=how, options=options, reporter=reporter)
    missing = {name: build for name, build in networks.items() if name not in known.networks}
    measures = {key: rows for key, rows in known.measures.items() if key[0] in networks}
    if missing:
        measures |= measured_forgetting(missing, own_tasks(loaded), how=how, options=options, reporter=reporter).measures
    return Forgetting(order, known.tasks, {(name, task): measures[name, task] for task in known.tasks for name in order})


def measured_forgetting(
    networks: Mapping[str, Builder], tasks: Sequence[OwnTask], *, how: Mapping[str, Any], options: Options, reporter: Reporter
) -> Forgetting:
    """Evaluate networks on tasks.

    Args:
        networks: by name, what makes each with the private tensors of a task's source.
        tasks: at least one.
        how: patch_size, overlap, mirror_axes and batch_size of `Predictor`.
        options: device and precision.
        reporter: where progress goes.
    """
    from mergekit3d.prediction import measure_subjects, predictor_from
    from mergekit3d.training.batches import open_store

    measures: dict[tuple[str, str], tuple[SubjectMetrics, ...]] = {}
    with reporter.task("forgetting", len(tasks) * len(networks)) as progress:
        for own in tasks:
            cohort, subjects = own.cohort, own.cohort.subjects("test")
            store = open_store(cohort, ("test",), reporter, folder=own.prepared)
            numbers = {subject.name: str(number) for number, subject in store.subjects.items()}
            for name, build in networks.items():
                predictor = predictor_from(*build(own), cohort.task, options, **how)
                measured = measure_subjects(predictor, cohort.dataset, subjects, convention=CONVENTION, reporter=reporter, store=store)
                rows = tuple(replace(row, subject=numbers[row.subject]) for subject in measured for row in subject.rows)
                measures[name, own.source] = rows
                progress.advance(1, message=f"{name} on the task of {own.source}: Dice {mean_over_regions(rows).dice:.3f}")
    return Forgetting(tuple(networks), tuple(own.source for own in tasks), measures)


def dice_of_json(content: Mapping[str, Any], where: object) -> tuple[list[str], list[str], list[list[float]]]:
    """Networks, tasks and mean Dice from the content of forgetting.json; NaN where undefined.

    Raises:
        InputError: it is not what `Forgetting.as_json` gives.
    """
    try:
        networks, tasks = [str(name) for name in content["networks"]], [str(name) for name in content["tasks"]]
        dice = [[math.nan if value is None else float(value) for value in row] for row in content["dice"]]
    except (KeyError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError("cannot read the forgetting matrix", where=where, wanted="what forgetting writes", found=found) from error
    if len(dice) != len(networks) or any(len(row) != len(tasks) for row in dice) or not networks or not tasks:
        raise InputError("cannot read the forgetting matrix", where=where, wanted="a Dice a network and task", found="another number")
    return networks, tasks, dice


def _merging(loaded: LoadedRecipe, method: str, ratios: dict[str, float | dict[str, float]]) -> LoadedRecipe:
    merge = loaded.recipe.merge.model_copy(update={"method": method, "ratios": ratios, "granularity": "model"})
    return loaded.changed(target=None, merge=merge)


def _merged(row: LoadedRecipe, own: OwnTask) -> tuple[nn.Module, NetworkSpec]:
    """A merge with the private tensors of one source, fused in memory."""
    merge = row.recipe.merge.model_copy(update={"private": own.source})
    start = fusion_start(plan_fusion(row.changed(merge=merge)))
    return start.build(), start.network


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
