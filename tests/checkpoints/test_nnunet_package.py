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

from mergekit3d import convert, fuse
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
PRETRAINED = """
import sys, torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
plans, file = eval(sys.argv[1]), sys.argv[2]
of = plans["configurations"]["3d_fullres"]["architecture"]
network = get_network_from_plans(of["network_class_name"], of["arch_kwargs"], of["_kw_requires_import"], 2, 9, True, True)
load_pretrained_weights(network, file)
state, loaded = network.state_dict(), torch.load(file, weights_only=True)["network_weights"]
assert state.keys() == loaded.keys()
assert all(torch.equal(state[name], loaded[name]) for name in state if ".seg_layers." not in name)
"""
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
    """`-pretrained_weights` takes every tensor but the heads, under every name, into a network of other heads."""
    save_nnunet(tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "back.pth")

    nnunet(PRETRAINED, nnunet_plans(), tmp_path / "back.pth")


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
    image = torch.randn(1, 2, 8, 12, 4)

    with torch.no_grad():
        assert torch.equal(theirs(image.permute(0, 1, 4, 3, 2)), ours(image).permute(0, 1, 4, 3, 2))
