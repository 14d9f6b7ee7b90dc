"""T-IMM against IMM, each source alone and a random start, on tumours in rendered real anatomy, over several draws of four subjects.

    python benchmarks/study/timm_study.py --labels LABELS [--out study] [--spacing-mm 4] [--markdown FILE]

LABELS is a folder of label maps in FreeSurfer ids. Renders the subjects, runs study.yaml (what is done already is kept, so that
an interrupted study goes on), and prints mean test Dice of every initialisation for every draw, and the differences to T-IMM, paired by
draw, with 95 % intervals by Student's t over the draws. Each draw has its own training and test subjects, from one set of subjects and
one pair of sources: the intervals tell what another draw of subjects would give, not what other sources would.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import mergekit3d
from mergekit3d.paired import student_interval
from mergekit3d.summaries import read_metrics_csv

RECIPE = Path(__file__).with_name("study.yaml")
METHODS = ("none", "m1", "m2", "imm", "timm")
SUBJECTS = {"hcp": 20, "brats": 24}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("study"))
    parser.add_argument("--spacing-mm", type=float, default=4.0)
    parser.add_argument("--markdown", type=Path, help="write the tables into this file too")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    for layout, subjects in SUBJECTS.items():
        if not (chosen.out / layout).exists():
            mergekit3d.phantom(chosen.out / layout, layout=layout, subjects=subjects, labels=chosen.labels, spacing_mm=chosen.spacing_mm)
    recipe = chosen.out / RECIPE.name
    shutil.copyfile(RECIPE, recipe)
    mergekit3d.run(recipe)
    draws = sorted(path.name for path in (chosen.out / "study").glob("draw-*"))
    dice = {
        draw: {method: mean_dice(chosen.out / "study" / draw / method / "test" / "metrics.csv") for method in METHODS} for draw in draws
    }
    text = tables(dice)
    print(text)
    if chosen.markdown is not None:
        chosen.markdown.write_text(text, encoding="utf-8")


def mean_dice(path: Path) -> float:
    """Mean over regions of the mean over subjects; where truth and prediction are both empty, there is nothing to count."""
    by_region: dict[str, list[float]] = {}
    for metric in read_metrics_csv(path):
        if metric.dice == metric.dice:
            by_region.setdefault(metric.region, []).append(metric.dice)
    return fmean(fmean(values) for values in by_region.values())


def tables(dice: Mapping[str, Mapping[str, float]]) -> str:
    """Both tables in Markdown."""
    lines = ["| draw | " + " | ".join(METHODS) + " |", "|" + "---|" * (len(METHODS) + 1)]
    for draw, row in dice.items():
        lines.append(f"| {draw} | " + " | ".join(f"{row[method]:.3f}" for method in METHODS) + " |")
    means = [interval([row[method] for row in dice.values()]) for method in METHODS]
    lines.append("| mean | " + " | ".join(f"{mean:.3f} +- {half:.3f}" for mean, half in means) + " |")
    lines += ["", "| T-IMM less | difference, 95 % interval | draws in which T-IMM is ahead |", "|---|---|---|"]
    for method in METHODS[:-1]:
        apart = [row["timm"] - row[method] for row in dice.values()]
        mean, half = interval(apart)
        lines.append(
            f"| {method} | {mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f}) | {sum(one > 0 for one in apart)} of {len(apart)} |"
        )
    return "\n".join([*lines, ""])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t."""
    low, high = student_interval(values)
    return fmean(values), (high - low) / 2


if __name__ == "__main__":
    main()
