"""``mergekit3d run``: every step of a recipe that is out of date, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe import LoadedRecipe, load_recipe
from mergekit3d.steps import StepOutcome
from mergekit3d.storage.lock import output_lock


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Args:
        out: the recipe's output folder.
        steps: every step, done or up to date.
        report: report.html, where the recipe has test subjects.
        tables: what to show on the screen.
    """

    out: Path
    steps: tuple[StepOutcome, ...]
    report: Path | None
    tables: Sequence[Any]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        steps = [{"step": step.name, "done": step.done} for step in self.steps]
        return {"out": str(self.out), "steps": steps, "report": None if self.report is None else str(self.report)}

    def __rich__(self) -> Any:
        """Tables like the paper's, then where the report is."""
        from rich.console import Group
        from rich.text import Text

        done = sum(step.done for step in self.steps)
        last = f"{self.out}: {done} steps done, {len(self.steps) - done} up to date"
        return Group(*self.tables, Text(last if self.report is None else f"{last}; {self.report}"))


def run(
    recipe: Path | str,
    *,
    overrides: Sequence[str] = (),
    allow_outside: Sequence[Path | str] = (),
    devices: Sequence[str] = (),
    jobs: int = 1,
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> RunResult:
    """Carry out a recipe: train, Fisher, adapt, fuse, fine-tune, evaluate, compare, report; only what is out of date.

    A study leaves the paper's tables and figures in OUT/tables and OUT/figures too.

    Args:
        recipe: YAML file.
        overrides: ``key.path=value`` each.
        allow_outside: folders beside the recipe's own, and the output folder, that the recipe may write to.
        devices: names (cuda:0, cuda:1 ...) of those that share the steps of a study; empty: ``options.device``, and all visible
            GPUs where that is auto.
        jobs: steps at once on each device, each in a process of its own.
        options: device, precision, seed, output folder; ``force`` repeats every step.
        reporter: where progress goes.

    Returns:
        What was done, and the report.

    Raises:
        MergeKit3DError: problems of the recipe and its data before any work, or of a step.
    """
    loaded = load_recipe(recipe, overrides=overrides, allow_outside=allow_outside, out=options.out)
    return run_loaded(loaded, devices=devices, jobs=jobs, options=options, reporter=reporter)


def run_loaded(
    loaded: LoadedRecipe,
    *,
    devices: Sequence[str] = (),
    jobs: int = 1,
    options: Options = DEFAULT_OPTIONS,
    reporter: Reporter = SILENT,
) -> RunResult:
    """Carry out a recipe that is loaded already; see `run`."""
    from mergekit3d.parallel import carry_out_parallel, slots_for
    from mergekit3d.plan.whole import check_whole
    from mergekit3d.reporting.record import RECORD_NAME, write_record
    from mergekit3d.steps import carry_out
    from mergekit3d.study import Study
    from mergekit3d.study_results import study_record

    slots = slots_for(options, devices, jobs)
    study = Study(loaded, replace(options, device=slots[0]), reporter)
    check_whole(loaded)
    study.check()
    with output_lock(loaded.out):
        write_record(loaded.out, study_record(study))
        steps = list(study.steps())
        if len(slots) > 1 and loaded.recipe.study is not None:
            outcomes = carry_out_parallel(loaded, steps, slots=slots, options=options, reporter=reporter)
        else:
            # Without a study each step needs the one before it, and some write beside one another.
            outcomes = carry_out(steps, loaded.out, force=options.force, tell=reporter.info)
        forgetting = [study.folder_of(group) / "forgetting.json" for group in study.groups()]
        if not any(path.exists() for path in (*forgetting, *(arm.metrics for arm in study.arms))):
            return RunResult(loaded.out, tuple(outcomes), None, [])
        from mergekit3d.reporting.collect import collect
        from mergekit3d.reporting.report import REPORT_NAME, write_report
        from mergekit3d.reporting.tables import print_tables
        from mergekit3d.study_figures import write_figures
        from mergekit3d.study_tables import FOLDER as TABLES
        from mergekit3d.study_tables import write_tables

        results, report = collect(loaded.out), loaded.out / REPORT_NAME
        made = [loaded.out / RECORD_NAME, *(path for step in steps for path in step.outputs)]
        told = [report, *(loaded.out / TABLES).glob("*.csv")]  # `report` may have written the first of them anew
        if any(outcome.done for outcome in outcomes) or len(told) == 1 or not all(_is_newer(path, made) for path in told):
            if loaded.recipe.study is not None:
                write_tables(study, results)
                write_figures(study, results)
            write_report(results, report)
    return RunResult(loaded.out, tuple(outcomes), report, list(print_tables(results)))


def _is_newer(report: Path, made: Sequence[Path]) -> bool:
    """Whether a report, which is written last, knows all results: an earlier run may have ended between its last step and its report."""
    return report.exists() and all(path.stat().st_mtime_ns <= report.stat().st_mtime_ns for path in made if path.exists())
