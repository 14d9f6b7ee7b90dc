"""``mergekit3d compare``: metrics.csv files against each other, subject by subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mergekit3d.comparison import CompareResult, compare_rows
from mergekit3d.errors import UsageError
from mergekit3d.metrics import SubjectMetrics
from mergekit3d.progress import SILENT, Reporter
from mergekit3d.storage.atomic import real_path, refuse_existing, write_json
from mergekit3d.summaries import read_metrics_csv


def compare(
    files: Sequence[Path | str],
    *,
    names: Sequence[str] | None = None,
    out: Path | str | None = None,
    seed: int = 0,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> CompareResult:
    """Compare the first metrics.csv with every other one.

    Args:
        files: two or more metrics.csv files.
        names: what to call them; by default their names, or those of the folders that tell them apart.
        out: folder for compare.json and compare.png (Figure 4 of the paper); by default the current one.
        seed: of the bootstrap.
        force: write over existing outputs.
        reporter: where messages go.

    Returns:
        With subjects by their numbers among all names, sorted: means, paired differences, intervals and p values.

    Raises:
        UsageError: fewer than two files, names that do not fit, or outputs that exist.
        InputError: a file that is no metrics.csv, or files without a common subject or region.
    """
    from mergekit3d.plots.differences import differences_figure
    from mergekit3d.plots.style import save_figure

    paths = [Path(file) / "metrics.csv" if Path(file).is_dir() else Path(file) for file in files]
    if len(paths) < 2:
        raise UsageError("cannot compare", wanted="two or more metrics.csv files", found=f"{len(paths)}")
    called = names_of(paths) if names is None else list(names)
    if len(called) != len(paths) or len(set(called)) != len(called):
        raise UsageError("the names do not fit the files", wanted=f"{len(paths)} different names", found=", ".join(called))
    folder = Path() if out is None else Path(out)
    table, picture = folder / "compare.json", folder / "compare.png"
    for output in (table, picture):
        refuse_existing(output, force=force)
    result = compare_rows(by_number({name: read_metrics_csv(path) for name, path in zip(called, paths, strict=True)}), seed=seed)
    figure = differences_figure(result)
    write_json(table, result.as_json())
    save_figure(figure, picture)
    reporter.info(f"wrote {table} and {picture}")
    return replace(result, table=table, picture=picture)


def by_number(rows: Mapping[str, Sequence[SubjectMetrics]]) -> dict[str, list[SubjectMetrics]]:
    """The rows with numbers in place of the subjects' names: of all names in all files, sorted, from 1.

    A comparison is for others to see. The numbers are as wide as the largest, so that they sort as the names do.
    """
    subjects = sorted({row.subject for of_file in rows.values() for row in of_file})
    width = len(str(len(subjects)))
    numbers = {subject: f"{number:0{width}d}" for number, subject in enumerate(subjects, start=1)}
    return {name: [replace(row, subject=numbers[row.subject]) for row in of_file] for name, of_file in rows.items()}


def names_of(files: Sequence[Path]) -> list[str]:
    """Short names that tell files apart: their stems, or the folders where the paths differ.

    Raises:
        UsageError: a file is given twice.
    """
    paths = [real_path(file) for file in files]
    if len(set(paths)) < len(paths):
        raise UsageError(
            "a file is given twice", where=next(file for file, path in zip(files, paths, strict=True) if paths.count(path) > 1)
        )
    parts = [_without_common_names((*path.parts[1:-1], path.name.removesuffix(".gz").rpartition(".")[0])) for path in paths]
    while len(parts) > 1 and all(len(of_file) > 1 for of_file in parts) and len({of_file[-1] for of_file in parts}) == 1:
        parts = [of_file[:-1] for of_file in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of_file[-length:]) for of_file in parts]
        if len(set(names)) == len(names) and all(names):
            return names
    return [f"{index}" for index in range(1, len(paths) + 1)]


def _without_common_names(parts: tuple[str, ...]) -> tuple[str, ...]:
    while len(parts) > 1 and parts[-1] in ("metrics", "evaluate"):
        parts = parts[:-1]
    return parts
