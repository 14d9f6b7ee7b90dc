"""The shell pipeline of the method, as a user types it: on NIfTI files in HCP and BraTS layouts, by recipe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from mergekit3d_cli.app import app

NETWORK = "{name: isensee2017, base_filters: 2, depth: 3}"
TRAINING = "epochs: 2, patience: null, learning_rate: 5e-3, batch_size: 2"
SOURCE = """
version: 1
architecture: {network}
target:
  data: hcp/
  modalities: [t1, t2]
  regions: {regions}
  split: {{skip: {skip}, train: 2, validation: 1, test: 1, seed: 0}}
train: {{init: {init}, {training}}}
"""
TIMM = """
version: 1
name: timm
sources:
  - {name: m1, checkpoint: m1/train/best.safetensors}
  - {name: m2, checkpoint: m2/train/best.safetensors}
partitions:
  private: ["kind:norm", "segmentation.*"]
  shared: ["*"]
merge: {method: timm, ratios: adapt/ratios.json, out: fused.safetensors}
target:
  data: brats/
  modalities: [t1, t1ce, t2, flair]
  regions: {ET: [4], TC: [1, 4], WT: [1, 2, 4]}
  split: {train: 2, validation: 1, test: 2, seed: 0}
adapt: {epochs: 2, patience: 5, batch_size: 2}
finetune: {epochs: 2, patience: null, batch_size: 2}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[[Path], Path]) -> Path:
    """A folder with HCP and BraTS subjects and the recipes of two sources and of T-IMM."""
    root = make_data(tmp_path_factory.mktemp("project"))
    (root / "m1.yaml").write_text(SOURCE.format(network=NETWORK, regions="hcp-1-7", skip=0, init="none", training=TRAINING))
    (root / "m2.yaml").write_text(
        SOURCE.format(network=NETWORK, regions="hcp-8-14", skip=3, init="m1/train/best.safetensors", training=TRAINING)
    )
    (root / "timm.yaml").write_text(TIMM)
    return root


def call(*arguments: object) -> tuple[int, str]:
    """Exit code, and all that a command says."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def trained(project: Path) -> Path:
    """The project after the whole pipeline."""
    for command in (
        ("train", "--recipe", project / "m1.yaml"),
        ("train", "--recipe", project / "m2.yaml"),
        ("fisher", project / "m1/train/best.safetensors", "--data", project / "hcp", "--max-subjects", "3"),
        ("fisher", project / "m2/train/best.safetensors", "--data", project / "hcp", "--estimator", "true", "--max-subjects", "3"),
        ("adapt", "--recipe", project / "timm.yaml"),
        ("fuse", "--recipe", project / "timm.yaml"),
        ("finetune", "--recipe", project / "timm.yaml"),
        ("predict", project / "timm/finetune/best.safetensors", "--data", project / "brats", "--out", project / "predictions"),
        ("evaluate", project / "timm/finetune/best.safetensors", "--data", project / "brats", "--out", project / "evaluation"),
    ):
        code, output = call(*command)
        assert code == 0, output
    return project


def test_pipeline_leaves_the_files_of_the_contract(trained: Path) -> None:
    """Every command of the pipeline writes what it promises."""
    expected = [
        *(
            f"{name}/train/{file}"
            for name in ("m1", "m2")
            for file in ("best.safetensors", "last.safetensors", "log.csv", "progress.png", "split.json")
        ),
        *(f"{name}/train/best.fisher.safetensors" for name in ("m1", "m2")),
        *(f"timm/adapt/{file}" for file in ("ratios.json", "checkpoint.safetensors", "log.csv", "ratios.png")),
        *("timm/fused.safetensors", "timm/fused.report.json"),
        *(f"timm/finetune/{file}" for file in ("best.safetensors", "last.safetensors", "log.csv", "progress.png")),
        *("evaluation/metrics.csv", "evaluation/summary.json", "predictions/Brats18_X_0_1.nii.gz"),
    ]

    assert [] == [name for name in expected if not (trained / name).is_file()]


def test_adapt_and_finetune_prepare_a_subject_once(trained: Path) -> None:
    """Both read the same subjects from OUT/prepared; no file there names one."""
    stored = [path.relative_to(trained) for path in (trained / "timm/prepared").rglob("*.safetensors")]
    split = json.loads((trained / "timm/finetune/split.json").read_text())

    assert len(split["train"]) + len(split["validation"]) == len(stored)
    assert not any("Brats18" in str(path) for path in stored)


def test_fused_weights_are_eq_2_of_the_files_written(trained: Path) -> None:
    """An independent float64 evaluation of eq. 2 on the files agrees with every fused tensor."""
    report = json.loads((trained / "timm/fused.report.json").read_text())
    ratios = json.loads((trained / "timm/adapt/ratios.json").read_text())
    fused = load_file(trained / "timm/fused.safetensors")
    theta, fisher = (
        [
            {name: values.astype(np.float64) for name, values in load_file(trained / f"{source}/train/best{kind}.safetensors").items()}
            for source in ratios["sources"]
        ]
        for kind in ("", ".fisher")
    )
    names = [tensor["name"] for tensor in report["tensors"] if tensor["outcome"] == "fused"]

    assert len(names) > 20
    for name in names:
        alpha = ratios["layers"][name.rpartition(".")[0]]
        weights = [a * f[name] for a, f in zip(alpha, fisher, strict=True)]
        total = sum(weights)
        known = np.maximum(*[f[name] for f in fisher]) > 0
        quotient = sum(w * t[name] for w, t in zip(weights, theta, strict=True)) / np.where(known, total, 1)
        expected = np.where(known, quotient, sum(a * t[name] for a, t in zip(alpha, theta, strict=True)))
        np.testing.assert_allclose(fused[name], expected, rtol=0, atol=2e-6)


def test_fuse_with_learned_ratios_gives_the_adapted_network_bit_for_bit(trained: Path) -> None:
    """What adapt validated is what fuse writes: the same shared tensors from the ratios, the same private ones carried over."""
    adapted, fused = (load_file(trained / name) for name in ("timm/adapt/checkpoint.safetensors", "timm/fused.safetensors"))

    assert list(adapted) == list(fused)
    assert [] == [name for name in fused if not np.array_equal(adapted[name], fused[name])]


def test_ratios_are_a_distribution_of_every_shared_layer(trained: Path) -> None:
    """One ratio a source for each layer, positive, summing to 1, and no longer uniform."""
    ratios = json.loads((trained / "timm/adapt/ratios.json").read_text())
    rows = np.array(list(ratios["layers"].values()))

    assert ["m1", "m2"] == ratios["sources"]
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
    assert (rows > 0).all()
    assert np.abs(rows - 0.5).max() > 1e-3


def test_first_convolution_is_matched_by_modality(trained: Path) -> None:
    """The report says that the first convolution was expanded from two modalities to four."""
    report = json.loads((trained / "timm/fused.report.json").read_text())
    row = next(tensor for tensor in report["tensors"] if tensor["name"] == "encoder.0.input.conv.weight")

    assert [2, 4, 3, 3, 3] == row["shape"]
    assert "matched by modality, random for t1ce, flair" in row["detail"]


def test_predictions_lie_on_the_native_grid(trained: Path) -> None:
    """Shape and affine of a prediction are those of the subject's images, and its labels are BraTS's."""
    prediction = nibabel.load(trained / "predictions/Brats18_X_1_1.nii.gz")
    image = nibabel.load(trained / "brats/HGG/Brats18_X_1_1/Brats18_X_1_1_flair.nii.gz")

    assert image.shape == prediction.shape
    np.testing.assert_array_equal(image.affine, prediction.affine)
    assert set(np.unique(np.asarray(prediction.dataobj))) <= {0, 1, 2, 4}


@pytest.mark.parametrize("init", ["none", "m1", "m2", "imm"])
def test_finetune_starts_from_every_initialisation(trained: Path, init: str, tmp_path: Path) -> None:
    """Fine-tuning runs from random, from each source, and from IMM as well."""
    code, output = call(
        "finetune", "--recipe", trained / "timm.yaml", "--set", f"finetune.init={init}", "--set", "finetune.epochs=1", "--out", tmp_path
    )

    assert 0 == code, output
    assert (tmp_path / "finetune/best.safetensors").is_file()


@pytest.mark.parametrize("init", ["m1", "imm", "timm", "file"])
def test_finetune_by_fisher_holds_every_start_but_random(trained: Path, init: str, tmp_path: Path) -> None:
    """EWC from a source, either merge and a file: a strong pull keeps the weights nearer to the start."""
    if init == "file":
        for kind in ("", ".fisher"):
            shutil.copy(trained / f"m2/train/best{kind}.safetensors", tmp_path / f"start{kind}.safetensors")
    value = str(tmp_path / "start.safetensors") if init == "file" else init
    moved = {}
    for strength in (1e-12, 1e-2):
        out = tmp_path / str(strength)
        how = f"{{init: {value}, epochs: 4, batch_size: 1, regularise: {{strength: {strength}, by: fisher}}}}"
        if init == "timm":
            shutil.copytree(trained / "timm/adapt", out / "adapt")
        code, output = call("finetune", "--recipe", trained / "timm.yaml", "--set", f"finetune={how}", "--out", out)
        assert 0 == code, output
        assert "pulled to their start, mean weight" in output
        header, *_, last = (out / "finetune/log.csv").read_text().splitlines()
        moved[strength] = float(dict(zip(header.split(","), last.split(","), strict=True))["penalty"]) / strength

    assert 0 < moved[1e-2] < 0.5 * moved[1e-12]


def test_finetune_freezes_a_partition(trained: Path, tmp_path: Path) -> None:
    """The fused weights of T-IMM come out bit for bit, with the norms and heads trained at a rate of their own."""
    changes = ("finetune.freeze=[shared]", "finetune.learning_rates={kind:norm: 1e-2}", "finetune.init=imm")
    arguments = [part for change in changes for part in ("--set", change)]
    code, output = call("finetune", "--recipe", trained / "timm.yaml", *arguments, "--out", tmp_path)
    assert 0 == code, output
    ends = load_file(tmp_path / "finetune/last.safetensors")
    code, output = call(
        "fuse", "--recipe", trained / "timm.yaml", "--set", "merge.method=imm", "--set", "merge.ratios=uniform", "--out", tmp_path
    )
    assert 0 == code, output
    fused = load_file(tmp_path / "fused.safetensors")
    held = {name for name in fused if ".conv." in name and name != "encoder.0.input.conv.weight"}

    assert held == {name for name in held if np.array_equal(fused[name], ends[name])}
    assert not np.array_equal(fused["segmentation.0.weight"], ends["segmentation.0.weight"])


def test_train_transfers_by_l2_and_dropout(trained: Path, tmp_path: Path) -> None:
    """Weight transfer, L2-transfer and drop-transfer of sequential IMM, from a file."""
    changes = ("train.regularise={strength: 0.1}", "train.drop_transfer=0.5", "train.epochs=1")
    code, output = call(
        "train", "--recipe", trained / "m2.yaml", *[part for change in changes for part in ("--set", change)], "--out", tmp_path
    )

    assert 0 == code, output
    assert "30 pulled to their start, drop-transfer in 30" in output
    assert float((tmp_path / "train/log.csv").read_text().split()[-1].rpartition(",")[2]) > 0


def test_bare_checkpoint_needs_no_flags(trained: Path, tmp_path: Path) -> None:
    """`mergekit3d fisher m1.pt --data hcp/` works for a bare state dict: network and modalities are told from it and the data."""
    torch.save(
        {name: torch.from_numpy(values.copy()) for name, values in load_file(trained / "m1/train/best.safetensors").items()},
        tmp_path / "m1.pt",
    )
    code, output = call("fisher", tmp_path / "m1.pt", "--data", trained / "hcp", "--max-subjects", "1", "--draws", "1")

    assert 0 == code, output
    diagonal = load_file(tmp_path / "m1.fisher.safetensors")
    assert all((values >= 0).all() for values in diagonal.values())
    assert 0 == np.count_nonzero(diagonal["encoder.1.context.0.conv.bias"])
    assert np.count_nonzero(diagonal["encoder.1.context.0.conv.weight"]) > 0


def test_existing_outputs_are_refused(trained: Path) -> None:
    """A second run of a command refuses to write over the first one's results."""
    for command in ("adapt", "fuse", "finetune"):
        code, output = call(command, "--recipe", trained / "timm.yaml")

        assert (2, True) == (code, "the output exists already" in output)


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ("finetune.epoch=3", 2, "unknown key 'finetune.epoch'"),
        ("sources.m1.checkpoint=nowhere.pt", 65, "no such file"),
        ("target.modalities=[t1, t9]", 65, "no subject has the modality: t9"),
        ("target.regions={ET: [5]}", 2, "label"),
        ("adapt.patch_size=[10, 8, 8]", 2, "multiples of 4"),
        ("merge.method=timmm", 2, "did you mean 'timm'?"),
        ("target.split.train=40", 2, "too few subjects"),
        ("partitions.private=[segmentatoin.*]", 2, "did you mean 'segmentation'?"),
        ("finetune.regularise={strength: 1, by: fischer}", 2, "wrong value of 'finetune.regularise.by'"),
    ],
)
def test_bad_recipes_get_one_clear_line(trained: Path, tmp_path: Path, change: str, code: int, text: str) -> None:
    """What a recipe asks for and cannot have is told in one line, before any work."""
    found, output = call("adapt", "--recipe", trained / "timm.yaml", "--set", change, "--out", tmp_path / "out")
    errors = [line for line in output.splitlines() if line.startswith("error: ")]

    assert code == found, output
    assert text in errors[0]
    assert "Traceback" not in output
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ("finetune={init: imm, freeze: [segmentatoin.*]}", 2, "did you mean 'segmentation'?"),
        ("finetune={init: imm, freeze: ['*']}", 2, "nothing is left to train"),
        ("finetune={init: none, regularise: {strength: 1}}", 2, "nothing to hold on to"),
        ("finetune={init: nowhere.pt, regularise: {strength: 1}}", 2, "nothing to start fine-tuning from"),
    ],
)
def test_bad_constraints_get_one_clear_line(trained: Path, tmp_path: Path, change: str, code: int, text: str) -> None:
    """What fine-tuning cannot hold is told before any work."""
    found, output = call("finetune", "--recipe", trained / "timm.yaml", "--set", change, "--out", tmp_path)

    assert code == found, output
    assert text in output
    assert [] == list(tmp_path.rglob("*.csv"))


def test_subject_without_a_modality_is_named(trained: Path, tmp_path: Path) -> None:
    """A missing file of one subject is told with the subject's number, what it has, and what to do."""
    shutil.copytree(trained / "brats", tmp_path / "brats")
    (tmp_path / "brats/HGG/Brats18_X_1_1/Brats18_X_1_1_t1ce.nii.gz").unlink()
    code, output = call("adapt", "--recipe", trained / "timm.yaml", "--set", f"target.data={tmp_path / 'brats'}", "--out", tmp_path / "out")

    assert 65 == code
    assert "a subject lacks a modality: subject 2: wanted" in output


def test_label_outside_the_map_is_refused(trained: Path, tmp_path: Path) -> None:
    """A BraTS label map with a foreign id is refused with the subject's number and the id."""
    shutil.copytree(trained / "brats", tmp_path / "brats")
    for path in (tmp_path / "brats").rglob("*_seg.nii.gz"):
        image = nibabel.load(path)
        values = np.asarray(image.dataobj).copy()
        values[5, 5, 5] = 7
        nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
    code, output = call("adapt", "--recipe", trained / "timm.yaml", "--set", f"target.data={tmp_path / 'brats'}", "--out", tmp_path / "out")

    assert 65 == code
    assert "a label map holds unknown labels" in output
    assert "found 7 in 1 voxels" in output
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


def test_checkpoint_of_another_network_is_refused(trained: Path, tmp_path: Path) -> None:
    """Sources of different networks are told apart before any work."""
    torch.save({"conv.weight": torch.zeros(2, 2, 3, 3, 3)}, tmp_path / "other.pt")
    code, output = call(
        "fuse",
        "--recipe",
        trained / "timm.yaml",
        "--set",
        "merge.method=mean-imm",
        "--set",
        f"sources.m2.checkpoint={tmp_path / 'other.pt'}",
        "--out",
        tmp_path,
    )

    assert 65 == code
    assert "the sources are of different networks" in output


def test_fisher_of_other_weights_is_refused(trained: Path, tmp_path: Path) -> None:
    """A Fisher diagonal belongs to one checkpoint."""
    fisher = trained / "m1/train/best.fisher.safetensors"
    code, output = call("fuse", "--recipe", trained / "timm.yaml", "--set", f"sources.m2.fisher={fisher}", "--out", tmp_path)

    assert 65 == code
    assert "the Fisher diagonal is of other weights" in output


def test_no_patient_or_folder_is_named_in_checkpoints(trained: Path) -> None:
    """Names of subjects and absolute paths stand in no checkpoint, Fisher file, report or ratio file."""
    files = [path for path in trained.rglob("*") if path.suffix == ".safetensors" or path.name in ("fused.report.json", "ratios.json")]

    assert len(files) > 8
    for path in files:
        content = path.read_bytes()
        assert b"Brats18" not in content
        assert str(trained).encode() not in content


@pytest.mark.parametrize("command", ["adapt", "finetune"])
def test_resume_of_a_finished_run_leaves_it_as_it_is(trained: Path, command: str) -> None:
    """A job that a queue starts once more finds nothing to do, and says how it ended."""
    file = trained / "timm" / command / "log.csv"
    before = file.stat().st_mtime_ns
    code, output = call(command, "--recipe", trained / "timm.yaml", "--resume")

    assert 0 == code, output
    assert "done before" in output
    assert before == file.stat().st_mtime_ns


def test_resume_of_another_recipe_is_refused(trained: Path) -> None:
    """Results of other settings are not taken for this recipe's."""
    code, output = call("finetune", "--recipe", trained / "timm.yaml", "--resume", "--set", "finetune.epochs=9")

    assert 2 == code
    assert "results of another recipe" in output
