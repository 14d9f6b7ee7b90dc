"""From the files of any run to what its report shows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mergekit3d.checkpoints import Metadata, TaskSpec, write_checkpoint
from mergekit3d.checkpoints.checkpoint import TensorEntry
from mergekit3d.comparison import compare_rows
from mergekit3d.errors import InputError
from mergekit3d.metrics import SubjectMetrics
from mergekit3d.reporting.collect import collect
from mergekit3d.reporting.record import RECORD_NAME, ArmRecord, StudyRecord, read_record, write_record
from mergekit3d.reporting.report import report_html, write_report
from mergekit3d.summaries import write_metrics_csv

LOG = "epoch,train_loss,validation_loss,validation_dice,validation_dice_ET\n1,0.9,0.8,0.2,0.2\n2,0.7,0.6,0.4,0.4\n3,0.6,0.7,0.3,0.3\n"
RATIOS = {"sources": ["m1", "m2"], "granularity": "layer", "layers": {"encoder.0": [0.3, 0.7], "decoder.0": [0.6, 0.4]}}
PATH = "ratio_encoder.0_m1,ratio_encoder.0_m2,ratio_decoder.0_m1,ratio_decoder.0_m2"
TASK = TaskSpec(("t1", "t2"), {"ET": (4,), "WT": (1, 2, 4)}, spacing_mm=(2.0, 2.0, 2.0))
SUBJECT = "SUBJECT-CANARY"


def checkpoint(path, method="finetune", *, kind="checkpoint", **provenance):
    """A sealed checkpoint of two small tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(1, 5, dtype=np.float32)
    tensors = [(TensorEntry(name, "F32", (4,)), values) for name in ("encoder.0.weight", "decoder.0.weight")]
    tool = {"name": "mergekit3d", "version": "0.0.1"}
    metadata = Metadata(kind, {"name": "isensee2017", "in_channels": 2, "out_channels": 2}, TASK, method, {"seed": 7, **provenance}, tool)
    write_checkpoint(path, tensors, metadata)


def stage(folder, method="finetune", **provenance):
    """What a training leaves."""
    checkpoint(folder / "best.safetensors", method, **provenance)
    (folder / "log.csv").write_text(LOG)
    (folder / "split.json").write_text(json.dumps({"train": [f"{SUBJECT}1", f"{SUBJECT}2"], "validation": [f"{SUBJECT}3"], "test": []}))
    (folder / "recipe.yaml").write_text("version: 1\nname: mine\n")


def adaptation(folder):
    """What adapt leaves."""
    stage(folder, "adapt", sources=[{"name": "m1", "checkpoint": "1" * 64, "fisher": "2" * 64}])
    (folder / "ratios.json").write_text(json.dumps(RATIOS))
    header, *rows = LOG.splitlines()
    (folder / "log.csv").write_text("\n".join([f"{header},{PATH}", *(f"{row},0.4,0.6,0.5,0.5" for row in rows)]) + "\n")


def rows(mean, subjects=7):
    return [
        SubjectMetrics(f"{SUBJECT}{index}", region, mean + 0.01 * index + offset, 3.0)
        for index in range(subjects)
        for region, offset in (("ET", -0.1), ("WT", 0.1))
    ]


def evaluation(folder, mean=0.5):
    """What evaluate leaves, as far as a foreign tool would."""
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics_csv(folder / "metrics.csv", rows(mean))


def fusion(folder):
    """What fuse leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"share": {"m1": 0.6, "m2": 0.4}, "distance": {"m1": 0.1, "m2": 0.2}}
    tensors = [{"name": "encoder.0.weight", "outcome": "fused", "partition": "shared", "shape": [4], **figures}]
    content = {"method": "imm", "sources": ["m1", "m2"], "summary": figures, "per_layer": {"encoder.0": figures}, "tensors": tensors}
    (folder / "fused.report.json").write_text(json.dumps(content))


def comparison(folder):
    """What compare leaves, of two files that do not share all subjects."""
    found = compare_rows({"timm": rows(0.6), "none": rows(0.4, subjects=6)})
    (folder / "compare.json").write_text(json.dumps(found.as_json()))


def fisher(folder):
    """What fisher leaves."""
    told = {"trace": [20.0, 1.0], "trace_by_layer": {"encoder.0": [10.0, 1.0]}, "subjects": 5, "checkpoint": "3" * 64}
    checkpoint(folder / "m1.fisher.safetensors", "fisher-sampled", kind="fisher", **told)


def forgetting(folder):
    """What forgetting leaves."""
    content = {"networks": ["m1", "imm", "x"], "tasks": ["m1", "m2"], "dice": [[0.9, 0.1], [0.6, 0.3], [0.95, None]]}
    (folder / "forgetting.json").write_text(json.dumps(content))


SINGLE = {
    "finetune": (
        stage,
        {"data", "training", "provenance"},
        "Fine-tuning",
        "Fine-tuning: 3 epochs; validation Dice 0.400 at the best of them.",
    ),
    "train": (lambda folder: stage(folder, "train"), {"data", "training", "provenance"}, "Training", "Training: 3 epochs"),
    "adapt": (
        adaptation,
        {"data", "ratios", "training", "provenance"},
        "Adaptation of m1 and m2",
        "The mixing ratios after 3 epochs: 2 layers",
    ),
    "fuse": (fusion, {"tensors", "provenance"}, "Fusion", "of the fused weights, m1 weighs 60 %, 10.0 % away"),
    "fisher": (fisher, {"fisher", "provenance"}, "Fisher information", "a Fisher trace of 20 ± 5 % over 5 subjects"),
    "evaluate": (evaluation, {"evaluation", "provenance"}, "Evaluation", "Mean Dice 0.530 (95 % interval"),
    "compare": (comparison, {"differences", "provenance"}, "Comparison", "timm against none: +0.200 Dice on average"),
    "forgetting": (forgetting, {"forgetting", "provenance"}, "Forgetting", "m1 has the highest mean Dice, 0.500, of 2 networks that were"),
}


@pytest.mark.parametrize("command", SINGLE)
@pytest.mark.parametrize("own", [True, False], ids=["its folder", "the folder above"])
def test_every_single_command_has_a_report(tmp_path, command, own):
    """Of its own folder or the one above: its sections and no others, a title, an answer; no subject and no folder is named."""
    make, sections, title, said = SINGLE[command]
    folder = tmp_path / "FOLDER-CANARY" / command
    folder.mkdir(parents=True)
    make(folder)
    results = collect(folder if own else folder.parent)
    page = tmp_path / "report.html"

    assert sections == set(write_report(results, page))
    text = page.read_text(encoding="utf-8")
    assert title == results.title
    assert said in text
    assert "CANARY" not in text
    assert str(tmp_path) not in text


def test_study_is_told_from_its_folders(tmp_path):
    """Without a record: arms in the paper's order, sizes and seeds from the folders, sources, and what belongs to no arm beside them."""
    for seed in (0, 1):
        for name in ("timm", "none", "m2", "imm"):
            arm = tmp_path / "4-percent" / f"seed-{seed}" / name
            stage(arm / "finetune")
            evaluation(arm / "test", 0.6 if name == "timm" else 0.4)
    adaptation(tmp_path / "4-percent" / "seed-0" / "timm" / "adapt")
    fusion(tmp_path / "4-percent" / "seed-0" / "timm")
    stage(tmp_path / "m2" / "train", "train")
    evaluation(tmp_path / "elsewhere")
    results = collect(tmp_path)

    assert [("none", 0), ("m2", 0), ("imm", 0), ("timm", 0)] == [(arm.name, arm.seed) for arm in results.arms][:4]
    assert (["4 %"], [0, 1], ["m2"]) == (results.splits, results.seeds, list(results.sources))
    assert [("m2", 3, 0.4)] == [(training.name, training.epochs, training.validation_dice) for training in results.trainings]
    assert ["T-IMM, seed 0"] == list(results.fusions)
    assert ["elsewhere"] == [found.name for found in results.evaluations]
    assert "Starting from the adaptive merge T-IMM gave the highest mean test Dice" in report_html(results)


def test_unfinished_study_has_the_report_of_what_is_there(tmp_path):
    """An arm that is not tested yet shows its training; one that has not begun shows nothing."""
    arms = [ArmRecord("none", "4 subjects", 0, "none"), ArmRecord("timm", "4 subjects", 0, "timm")]
    write_record(tmp_path, StudyRecord("mine", "Which?", arms, recipe="version: 1\n"))
    stage(tmp_path / "none" / "finetune")
    results = collect(tmp_path)

    assert ("mine", "Which?", []) == (results.title, results.question, list(results.arms))
    assert ["none"] == [training.name for training in results.trainings]


def test_provenance_holds_what_went_in_and_came_out(tmp_path):
    """Digests of inputs from the metadata, of outputs from seals and bytes; seeds, versions, architecture, the recipe."""
    adaptation(tmp_path)
    found = collect(tmp_path).provenance

    assert {"1" * 64, "2" * 64} == set(found.inputs.values())
    assert {"best.safetensors", "log.csv", "ratios.json"} == set(found.digests)
    assert ([7], {"mergekit3d": "0.0.1"}) == (list(found.seeds), dict(found.versions))
    assert "isensee2017 (in_channels 2, out_channels 2)" == found.facts["Architecture"]
    assert "version: 1\nname: mine\n" == found.recipe


def test_data_is_told_by_numbers(tmp_path):
    """Modalities and regions of the task, sizes of the split, the voxel size; no name."""
    stage(tmp_path)
    (subjects,) = collect(tmp_path).subjects

    assert (("t1", "t2"), ("ET", "WT"), 2, 1, 0) == (
        subjects.modalities, subjects.outputs, subjects.train, subjects.validation, subjects.test,
    )  # fmt: skip
    assert "grid resampled to 2 x 2 x 2 mm, zscore" == subjects.remark


def test_notes_of_a_comparison_name_no_subject(tmp_path):
    """That subjects are left out is said, not which, also of files from when compare still named them."""
    comparison(tmp_path)
    path = tmp_path / "compare.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "notes": [*content["notes"], f"imm lacks subject {SUBJECT}6: left out everywhere"]}))
    (found,) = collect(tmp_path).comparisons.values()

    assert "none lacks 1 of 7 subjects: left out everywhere" in found.notes
    assert "imm lacks subjects that others have: left out everywhere" in found.notes
    assert SUBJECT not in str(found.notes)


def test_data_and_hidden_folders_are_not_looked_at(tmp_path):
    """Prepared subjects, data and links to folders are none of the run's results."""
    for folder in ("prepared", "data", ".hidden"):
        evaluation(tmp_path / folder)
    evaluation(tmp_path.parent / "outside")
    (tmp_path / "link").symlink_to(tmp_path.parent / "outside")

    with pytest.raises(InputError, match="nothing to report"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("log.csv", "epoch\n", "cannot read the training log"),
        ("forgetting.json", '{"networks": ["m1"], "tasks": ["m1"], "dice": [[1, 2]]}', "cannot read the forgetting matrix"),
        ("forgetting.json", '{"networks": ["m1"]}', "cannot read the forgetting matrix"),
        ("compare.json", "{}", "cannot read the comparison"),
        (RECORD_NAME, '{"format_version": 2}', "cannot read the study's record"),
        (RECORD_NAME, '{"format_version": 1, "title": "x"}', "cannot read the study's record"),
        (
            RECORD_NAME,
            '{"format_version": 1, "title": "x", "arms": [], "subjects": [], "sources": {"m": "../m"}}',
            "folders within the study",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, said):
    """One clear error, instead of a report with a part silently missing."""
    evaluation(tmp_path)
    (tmp_path / name).write_text(content)

    with pytest.raises(InputError, match=said):
        collect(tmp_path)


def test_record_reads_back(tmp_path):
    """What was written is what is read."""
    record = StudyRecord("mine", arms=[ArmRecord("none", "4", 0, "none")], sources={"m1": "m1/train"}, inputs={"m2": "0" * 64})
    write_record(tmp_path, record)

    assert record == replace(read_record(tmp_path) or record, subjects=())
    assert read_record(tmp_path / "other") is None


def test_sizes_and_seeds_are_told_apart(tmp_path):
    """Forgetting is one table, in the order of the sizes: T-IMM as mean and interval over its seeds, a source as measured once.

    Slices come in that order too, and of fusions the first is shown, with its size and seed.
    """
    arms = []
    for size in ("8", "16"):
        for seed in (0, 1):
            folder = tmp_path / size / f"seed-{seed}"
            arms.append(ArmRecord("timm", f"{size} subjects", seed, f"{size}/seed-{seed}/timm"))
            folder.mkdir(parents=True)
            content = {
                "networks": ["m1", "timm"],
                "tasks": ["m1"],
                "dice": [[0.9], [0.4 + 0.2 * seed]],
                "interval_95": [[[0.8, 1]], [[0, 1]]],
            }
            (folder / "forgetting.json").write_text(json.dumps(content))
            (folder / "slices.png").write_bytes(size.encode())
            fusion(folder / "timm")
    write_record(tmp_path, StudyRecord("study", arms=arms))
    collected = collect(tmp_path)
    found = collected.forgetting

    assert ["8 subjects: task of m1", "16 subjects: task of m1"] == found.rows
    assert [[0.9, pytest.approx(0.5)]] * 2 == found.dice
    assert [(0.8, 1.0), pytest.approx((0.5 - 1.27062, 0.5 + 1.27062), abs=1e-5)] == found.intervals_95[0]
    assert "by Student's t over 2 seeds" in found.note
    assert [b"8", b"16"] == [picture.png for picture in collected.pictures]
    assert ["T-IMM, 8 subjects, seed 0"] == list(collected.fusions)
