"""Figures 3, 4 and 5 of the T-IMM paper from a study's results, one file each and size."""

from __future__ import annotations

from pathlib import Path

from mergekit3d.plots.differences import differences_figure
from mergekit3d.plots.ratios import ratios_figure
from mergekit3d.plots.style import save_figure
from mergekit3d.reporting.evidence import paired
from mergekit3d.reporting.results import StudyResults
from mergekit3d.storage.atomic import write_bytes
from mergekit3d.study import Study, slug

FOLDER = "figures"


def write_figures(study: Study, results: StudyResults) -> list[Path]:
    """Write what there is of the three figures into OUT/figures.

    Figure 3, slices of the truth and the predictions, and Figure 5, the learned ratios, are of the first seed; Figure 4, the Dice
    differences of T-IMM to every other start subject by subject, is of the means over the seeds.

    Args:
        study: whose steps have been carried out.
        results: of `study_results`.

    Returns:
        The files.
    """
    folder = study.loaded.out / FOLDER
    files: list[Path] = []
    sized = len(results.splits) > 1
    for group in study.groups():
        path, slices = _path(folder, 3, group[0].size if sized else ""), study.folder_of(group) / "slices.png"
        if path not in files and slices.exists():
            write_bytes(path, slices.read_bytes())
            files.append(path)
    for split in results.splits:
        compared = paired(results, split)
        if compared is not None:
            files.append(_path(folder, 4, split if sized else ""))
            save_figure(differences_figure(compared), files[-1])
    for adaptation in results.adaptations:
        path = _path(folder, 5, adaptation.split if sized else "")
        if path not in files:
            save_figure(ratios_figure(adaptation.ratios, title=adaptation.split), path)
            files.append(path)
    return files


def _path(folder: Path, number: int, size: str) -> Path:
    return folder / ("-".join(filter(None, (f"figure-{number}", slug(size)))) + ".png")
