"""What mergekit3d writes for nnU-Net, in the hands of nnU-Net 2.8 itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from mergekit3d import fuse
from mergekit3d.architectures import build_network, network_of
from mergekit3d.checkpoints import load_tensors, open_checkpoint
from tests.builders import NNUNET_LABELS, nnunet_plans, save_nnunet, write_recipe

pytestmark = [pytest.mark.needs_nnunet, pytest.mark.slow]

TRAINER = """
import sys, torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
plans, dataset, out = [eval(text) for text in sys.argv[1:]]
for seed in (1, 2):
    torch.manual_seed(seed)
    trainer = nnUNetTrainer({**plans, "continue_training": False}, "3d_fullres", 0, dataset, torch.device("cpu"))
    trainer._set_batch_size_and_oversample = lambda: None
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    trainer.num_input_channels = 2
    trainer.network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 2, 3, True)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.logger.log("mean_fg_dice", 0.5, 0)
    trainer.save_checkpoint(f"{out}/m{seed}.pth")
"""
PREDICT = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point; predict_entry_point()"
TRAIN = """
import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as module
initialize = module.nnUNetTrainer.initialize
def shortened(trainer):
    trainer.enable_deep_supervision = False  # nnU-Net divides by 0 where a network has one level alone
    initialize(trainer)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
module.nnUNetTrainer.initialize = shortened
from nnunetv2.run.run_training import run_training_entry
if __name__ == "__main__":
    run_training_entry()
"""
PREPROCESS = "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import preprocess_entry; preprocess_entry()"
DATASET = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": NNUNET_LABELS,
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


@pytest.fixture
def nnunet(tmp_path):
    """Runs Python with nnU-Net's folders below the test's own."""
    folders = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir()

    def run(code, *arguments):
        environment = {**os.environ, **folders, "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
        outcome = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert 0 == outcome.returncode, outcome.stderr[-2000:]

    return run


def test_merge_of_its_checkpoints_predicts(tmp_path, nnunet):
    """Two checkpoints that its trainer saved, fused by one recipe, are a model that `nnUNetv2_predict` runs."""
    nnunet(TRAINER, nnunet_plans(), DATASET, repr(str(tmp_path)))
    model = tmp_path / "nnUNet_results" / "Dataset001_Tiny" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    sources = "[{name: a, checkpoint: m1.pth}, {name: b, checkpoint: m2.pth}]"
    merge = f"{{method: mean-imm, out: '{model}/fold_0/checkpoint_final.pth'}}"
    fuse(
        write_recipe(tmp_path, f"version: 1\nsources: {sources}\npartitions: {{private: [], shared: ['*']}}\nmerge: {merge}\n"),
    )
    for case in ("one", "two"):
        for channel in range(2):
            (tmp_path / "in").mkdir(exist_ok=True)
            values = np.random.default_rng(channel).uniform(50, 100, (20, 18, 16)).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(values, np.diag([-2.0, -2.0, 3.0, 1.0])), tmp_path / "in" / f"{case}_000{channel}.nii.gz")
    flags = ["-d", "1", "-c", "3d_fullres", "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta"]
    nnunet(PREDICT, "-i", tmp_path / "in", "-o", tmp_path / "out", *flags)

    assert nnunet_plans() == json.loads((model / "plans.json").read_text())
    for case in ("one", "two"):
        segmentation = nibabel.load(tmp_path / "out" / f"{case}.nii.gz")
        assert (20, 18, 16) == segmentation.shape
        assert set(np.unique(np.asarray(segmentation.dataobj))) <= {0, 1, 2}


def test_training_starts_from_what_was_written(tmp_path, nnunet):
    """`nnUNetv2_train -pretrained_weights` starts from a merge, in a data set of other labels, and trains an epoch."""
    name, labels = "Dataset002_Other", {"background": 0, "a": 1, "b": 2, "c": 3}
    raw, planned = tmp_path / "nnUNet_raw" / name, tmp_path / "nnUNet_preprocessed" / name
    for folder in (raw / "imagesTr", raw / "labelsTr", planned):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for case in ("one", "two"):
        for channel in range(2):
            image = nibabel.Nifti1Image(rng.uniform(50, 100, (20, 18, 16)).astype(np.float32), np.diag([1.5, 2.0, 3.0, 1.0]))
            nibabel.save(image, raw / "imagesTr" / f"{case}_000{channel}.nii.gz")
        segmentation = nibabel.Nifti1Image(rng.integers(0, 4, (20, 18, 16)).astype(np.uint8), np.diag([1.5, 2.0, 3.0, 1.0]))
        nibabel.save(segmentation, raw / "labelsTr" / f"{case}.nii.gz")
    for folder in (raw, planned):
        (folder / "dataset.json").write_text(json.dumps({**DATASET, "labels": labels}))
    (planned / "nnUNetPlans.json").write_text(json.dumps({**nnunet_plans(), "dataset_name": name}))
    (planned / "dataset_fingerprint.json").write_text("{}")
    for seed in (1, 2):
        save_nnunet(tmp_path / f"m{seed}.pth", seed=seed)
    sources = "[{name: a, checkpoint: m1.pth}, {name: b, checkpoint: m2.pth}]"
    fuse(write_recipe(tmp_path, f"version: 1\nname: x\nsources: {sources}\nmerge: {{method: mean-imm, out: fused.pth}}\n"))
    nnunet(PREPROCESS, "-d", "2", "-c", "3d_fullres", "-np", "1")
    fused, log = tmp_path / "x" / "fused.pth", "training_log_*.txt"
    nnunet(TRAIN, "2", "3d_fullres", "all", "-device", "cpu", "-pretrained_weights", fused)

    folder = tmp_path / "nnUNet_results" / name / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_all"
    assert "Epoch 0" in next(folder.glob(log)).read_text()
    trained = torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]
    start = torch.load(fused, weights_only=True)["network_weights"]
    assert start.keys() == trained.keys()
    moved = [float((trained[key] - start[key]).abs().max()) for key in start if ".seg_layers." not in key]
    # Two steps at a rate of 0.01 move weights of a standard normal start, and none of them far.
    assert 0 < max(moved) < 0.5


def test_network_computes_what_that_of_nnunet_does(tmp_path):
    """On the same voxels, whose axes nnU-Net has the other way round."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    save_nnunet(tmp_path / "m.pth")
    checkpoint = open_checkpoint(tmp_path / "m.pth")
    of = nnunet_plans()["configurations"]["3d_fullres"]["architecture"]
    theirs = get_network_from_plans(of["network_class_name"], of["arch_kwargs"], of["_kw_requires_import"], 2, 3, True, False)
    ours = build_network(network_of(checkpoint))
    for network in (theirs, ours):
        network.load_state_dict(load_tensors(checkpoint))
        network.eval()
    image = torch.randn(1, 2, 8, 12, 4)

    with torch.no_grad():
        assert torch.equal(theirs(image.permute(0, 1, 4, 3, 2)), ours(image).permute(0, 1, 4, 3, 2))
