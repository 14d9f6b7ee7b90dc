"""``mergekit3d demo``: the whole method on generated data, no download."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from mergekit3d.errors import UsageError
from mergekit3d.options import DEFAULT_OPTIONS, Options
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.recipe import load_recipe
from mergekit3d.storage.atomic import output_error, write_text
from mergekit3d.verbs.run import RunResult, run_loaded

SPACING_MM = 6.0
SOURCE_SUBJECTS, TARGET_SUBJECTS = 17, 14


def demo(out: Path | str = "demo", *, options: Options = DEFAULT_OPTIONS, reporter: Reporter = SILENT) -> RunResult:
    """Generate subjects, then run the whole method on them: M1, M2, Fisher, IMM, T-IMM, fine-tuning, comparison, report.

    Args:
        out: folder for data, recipe, networks and report.html; where it holds an unfinished demo, that one goes on.
        options: device, precision, seed; ``force`` repeats all.
        reporter: where progress goes.

    Returns:
        What was done, with the tables and the report. It reports what was measured, whichever method wins.

    Raises:
        UsageError: the folder holds other things.
        OutputError: it cannot be made.
    """
    from mergekit3d.datasets.phantom import phantom

    out = Path(out)
    recipe = out / "demo.yaml"
    text = files("mergekit3d_recipes").joinpath("demo.yaml").read_text(encoding="utf-8")
    if out.is_dir() and any(out.iterdir()) and not (recipe.exists() or options.force):
        raise UsageError("the folder holds other things than a demo", where=out, todo="pass another --out, or --force to write among them")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, out) from error
    write_text(recipe, text)
    for layout, subjects in (("hcp", SOURCE_SUBJECTS), ("brats", TARGET_SUBJECTS)):
        folder = out / "data" / layout
        if options.force or not (folder / DONE).exists():
            phantom(folder, layout=layout, subjects=subjects, spacing_mm=SPACING_MM, seed=options.seed or 0, force=True, reporter=reporter)
            write_text(folder / DONE, "")
    return run_loaded(load_recipe(recipe, out=out), options=replace(options, out=None), reporter=reporter)


DONE = ".complete"
"""Marks a folder of generated subjects that are all there."""
