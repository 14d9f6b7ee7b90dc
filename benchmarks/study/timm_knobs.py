"""What helps T-IMM, one knob at a time: rates of delta and of the private tensors, Fisher estimator and scale, granularity, length.

    python benchmarks/study/timm_knobs.py --labels LABELS [--out knobs] [--spacing-mm 4] [--seeds 0 1 2] [--arms NAME ...] [--test]

LABELS is a folder of label maps in FreeSurfer ids. Renders the subjects, trains M1 and M2 by knobs.yaml and takes their Fisher
diagonals; then, for every seed, a draw of 4 training and 16 validation subjects and every arm: `adapt` and `finetune`, or `finetune`
alone. Prints the validation Dice after the last epoch, and each arm's difference from the first T-IMM and from IMM with as many steps,
paired by seed. No subject that another benchmark tests on is among these. What is done already is kept. With --test the same on 40
other subjects, to test what was chosen: 4 train, 2 validate the adaptation, and the Dice is that of 20 that decide nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import yaml

import mergekit3d
from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.split import split_subjects
from mergekit3d.options import Options
from mergekit3d.paired import student_interval

RECIPE = Path(__file__).with_name("knobs.yaml")
SUBJECTS = {"hcp": ("hcp", 20, 0), "development": ("brats", 40, 1), "testing": ("brats", 40, 2)}  # folder: layout, number, seed
ALL_STEPS = "finetune.epochs=6"  # as many as an adaptation and the fine-tuning after it have
REFERENCE, CONTROL = "T-IMM", "IMM, 120 steps"


@dataclass(frozen=True)
class Arm:
    """One way to use the sources: overrides of the recipe, and the sources' variant."""

    init: str
    overrides: tuple[str, ...] = ()
    sources: str = "sampled"


ARMS = {
    REFERENCE: Arm("timm"),
    CONTROL: Arm("imm", (ALL_STEPS,)),
    "IMM, 80 steps": Arm("imm"),
    "none, 120 steps": Arm("none", (ALL_STEPS,)),
    "M1, 120 steps": Arm("m1", (ALL_STEPS,)),
    "M2, 120 steps": Arm("m2", (ALL_STEPS,)),
    "ratios held at 1/2": Arm("timm", ("adapt.ratio_learning_rate=1e-9",)),
    "rate of delta 0.005": Arm("timm", ("adapt.ratio_learning_rate=0.005",)),
    "rate of delta 0.2": Arm("timm", ("adapt.ratio_learning_rate=0.2",)),
    "Fisher of one trace": Arm("timm", ("adapt.normalise_fisher=true",)),
    "Fisher from true labels": Arm("timm", sources="true"),
    "one ratio a network": Arm("timm", ("merge.granularity=model",)),
    "one ratio a kernel": Arm("timm", ("merge.granularity=kernel",)),
    "adaptation 80, fine-tuning 40 steps": Arm("timm", ("adapt.epochs=8", "finetune.epochs=2")),
    "adaptation 20, fine-tuning 100 steps": Arm("timm", ("adapt.epochs=2", "finetune.epochs=5")),
    "private tensors at 3e-3": Arm("timm", ("adapt.learning_rate=3e-3",)),
    "private tensors at 3e-3, ratios held at 1/2": Arm("timm", ("adapt.learning_rate=3e-3", "adapt.ratio_learning_rate=1e-9")),
    "IMM, 120 steps, private tensors at 3e-3": Arm("imm", (ALL_STEPS, "finetune.learning_rates={private: 3e-3}")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("knobs"))
    parser.add_argument("--spacing-mm", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--test", action="store_true", help="on the subjects that nothing was chosen by")
    parser.add_argument("--markdown", type=Path, help="write the table into this file too")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    for folder, (layout, subjects, seed) in SUBJECTS.items():
        if (folder != "testing" or chosen.test) and not (chosen.out / folder).exists():
            options = {"layout": layout, "subjects": subjects, "labels": chosen.labels, "spacing_mm": chosen.spacing_mm, "seed": seed}
            mergekit3d.phantom(chosen.out / folder, **options)
    recipes = make_sources(chosen.out)
    dice: dict[str, dict[int, list[float]]] = {}
    for seed in chosen.seeds:
        for name in chosen.arms:
            folder = chosen.out / ("test" if chosen.test else "runs") / f"seed-{seed}" / name.replace("/", " over ")
            splits = test_splits(chosen.out, seed) if chosen.test else (f"target.split.seed={seed}",) * 2
            dice.setdefault(name, {})[seed] = run_arm(recipes[ARMS[name].sources], ARMS[name], folder, seed, splits)
            print(f"seed {seed}: {name}: {fmean(dice[name][seed]):.3f}", flush=True)
    text = table(dice)
    print(text)
    if chosen.markdown is not None:
        chosen.markdown.write_text(text, encoding="utf-8")


def make_sources(out: Path) -> dict[str, Path]:
    """Train the sources, take both kinds of Fisher diagonals; a recipe of the target for each kind."""
    content = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    target = {key: content.pop(key) for key in ("target", "adapt", "finetune")}
    recipe = out / "sources.yaml"
    recipe.write_text(yaml.safe_dump({**content, "merge": {"method": "imm"}, "name": "sources"}), encoding="utf-8")
    mergekit3d.run(recipe)
    recipes = {}
    for estimator in ("sampled", "true"):
        sources = [{"name": name, **source_files(out, name, estimator)} for name in ("m1", "m2")]
        recipes[estimator] = out / f"{estimator}.yaml"
        merged = {**content, **target, "sources": sources, "cache": "prepared", "name": estimator}
        recipes[estimator].write_text(yaml.safe_dump(merged), encoding="utf-8")
    return recipes


def source_files(out: Path, name: str, estimator: str) -> dict[str, str]:
    """Checkpoint and Fisher diagonal of a source, which is taken here of the subjects that it was trained on."""
    checkpoint = out / "sources" / name / "train" / "best.safetensors"
    sidecar = out / f"{name}.{estimator}.fisher.safetensors"
    if not sidecar.exists():
        subjects = own_subjects(out, name)
        mergekit3d.fisher(checkpoint, out / "hcp", estimator=estimator, subjects_file=subjects, options=Options(out=sidecar))
    return {"checkpoint": str(checkpoint.relative_to(out)), "fisher": sidecar.name}


def own_subjects(out: Path, name: str) -> Path:
    """A file of the names that a source was trained on."""
    split = json.loads((out / "sources" / name / "train" / "split.json").read_text(encoding="utf-8"))
    listed = out / f"{name}.subjects.txt"
    listed.write_text("\n".join(split["train"]) + "\n", encoding="utf-8")
    return listed


def test_splits(out: Path, seed: int) -> tuple[str, str]:
    """Overrides for adaptation and fine-tuning: one training set, and validation subjects that the other never sees."""
    names = [subject.name for subject in find_dataset(out / "testing", "auto").subjects]
    split = split_subjects(names, train=4, validation=2, test=20, seed=seed)
    overrides = []
    for stage, validation in (("adapt", split.validation), ("finetune", split.test)):
        listed = out / f"testing-{seed}-{stage}.json"
        listed.write_text(json.dumps({"train": list(split.train), "validation": list(validation)}), encoding="utf-8")
        overrides.append(f"target={{data: testing, modalities: [t1, t1ce, t2, flair], regions: brats, split: {listed.name}}}")
    return overrides[0], overrides[1]


def run_arm(recipe: Path, arm: Arm, out: Path, seed: int, splits: tuple[str, str]) -> list[float]:
    """Adapt where the arm does, fine-tune, and return the validation Dice of every region after the last epoch."""
    log = out / "finetune" / "log.csv"
    options = Options(out=out, seed=seed, force=True)
    if not (out / "done").exists():
        if arm.init == "timm":
            mergekit3d.adapt(recipe, overrides=(splits[0], *arm.overrides), options=options)
        mergekit3d.finetune(recipe, overrides=(splits[1], *arm.overrides, f"finetune.init={arm.init}"), options=options)
        (out / "done").touch()
    with log.open(encoding="utf-8", newline="") as lines:
        last = list(csv.DictReader(lines))[-1]
    return [float(value) for key, value in last.items() if key.startswith("validation_dice_")]


def table(dice: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    """Every arm: Dice by region and in the mean of the seeds, and paired differences."""
    means = {name: {seed: fmean(regions) for seed, regions in row.items()} for name, row in dice.items()}
    lines = [f"| | validation Dice | by seed | ET / TC / WT | less {REFERENCE} | less {CONTROL} |", "|---|---|---|---|---|---|"]
    for name, row in means.items():
        by_region = " ".join(f"{fmean(column):.2f}" for column in zip(*dice[name].values(), strict=True))
        apart = [difference(row, means[other]) if other in means and other != name else "" for other in (REFERENCE, CONTROL)]
        seeds = " ".join(f"{value:.3f}" for value in row.values())
        lines.append(f"| {name} | {fmean(row.values()):.3f} | {seeds} | {by_region} | {apart[0]} | {apart[1]} |")
    return "\n".join([*lines, ""])


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> str:
    """Mean of the paired differences, and half the width of its 95 % interval by Student's t."""
    values = [one[seed] - other[seed] for seed in one]
    low, high = student_interval(values)
    return f"{fmean(values):+.3f}" + (f" +- {(high - low) / 2:.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
