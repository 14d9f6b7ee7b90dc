"""T-IMM over networks that are not Isensee 2017: the checkpoints are all that a recipe tells of them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from mergekit3d import adapt, finetune, fisher, fuse
from mergekit3d.architectures import NetworkSpec, build_network, default_partitions
from mergekit3d.checkpoints import open_checkpoint, save_tensors
from mergekit3d.errors import InputError
from mergekit3d.merging.partitions import assign
from mergekit3d.options import Options
from tests.builders import metadata_of, task_of, write_recipe

CPU = Options(device="cpu", precision="fp32")
STAGES = {"spatial_dims": 3, "channels": [4, 6], "strides": [2]}
DYNUNET = {"spatial_dims": 3, "kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2] * 2, "filters": [4, 6, 8]}
NETWORKS = {
    "DynUNet": ("monai.DynUNet", {**DYNUNET, "deep_supervision": True, "deep_supr_num": 1, "res_block": True}),
    "UNet": ("monai.UNet", {**STAGES, "num_res_units": 1, "norm": "batch"}),
    "SegResNet": ("monai.SegResNet", {"spatial_dims": 3, "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "multiple_of": 4}),
}
TASKS = {
    "m1": task_of(("t1", "t2"), {"wm": (2, 41), "gm": (3, 42)}, exclusive=True),
    "m2": task_of(("t1", "t2"), {"wm": (2, 41), "ventricles": (4, 43), "putamen": (12, 51)}, exclusive=True),
}
RECIPE = """
version: 1
name: timm
sources: [{{name: m1, checkpoint: m1.pt}}, {{name: m2, checkpoint: m2.pt}}]
merge: {{method: timm}}
target:
  data: {data}/brats
  modalities: [t2, flair, t1]
  regions: brats
  split: {{train: 1, validation: 1, test: 0}}
adapt: {{epochs: 1, patch_size: [16, 16, 16]}}
finetune: {{epochs: 1, patch_size: [16, 16, 16]}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_data):
    """HCP and BraTS folders that all of these tests read."""
    return make_data(tmp_path_factory.mktemp("data"))


def save_sources(folder, name, arguments):
    """Two networks of one architecture, the second near the first, as its state dict names them."""
    torch.manual_seed(0)
    shared = None
    for source, task in TASKS.items():
        spec = NetworkSpec(name, len(task.modalities), task.channels, arguments)
        network = build_network(spec)
        own = network.state_dict()
        if shared is not None:
            network.load_state_dict({key: shared[key] if shared[key].shape == own[key].shape else own[key] for key in own})
        shared = network.state_dict()
        save_tensors(folder / f"{source}.pt", shared, metadata_of(spec, task))


@pytest.mark.parametrize(("name", "arguments"), NETWORKS.values(), ids=NETWORKS)
def test_whole_method(tmp_path, data, one_thread, name, arguments):
    """Fisher, ratios, fusion, fine-tuning; other classes and modalities, heads of deep supervision, stems in several places."""
    save_sources(tmp_path, name, arguments)
    recipe = write_recipe(tmp_path, RECIPE.format(data=data), "timm.yaml")
    for source in TASKS:
        fisher(tmp_path / f"{source}.pt", data / "hcp", draws=1, max_subjects=1, patch_size=[16, 16, 16], options=CPU)
    adapted = adapt(recipe, options=CPU)
    fused = open_checkpoint(fuse(recipe, options=CPU).out)
    tuned = open_checkpoint(finetune(recipe, options=CPU).best)
    source, adapted = open_checkpoint(tmp_path / "m1.pt"), open_checkpoint(adapted.checkpoint)

    private = Counter(assign(default_partitions(None, source.shapes), source.shapes).values())["private"]
    assert private > 0
    assert set(source.aliases) == set(adapted.aliases) == set(fused.aliases) == set(tuned.aliases)
    assert adapted.digest == fused.digest
    for found in (fused, tuned):
        network = build_network(NetworkSpec.from_json(found.metadata.architecture))
        assert (name, 3, 3) == tuple(found.metadata.architecture[key] for key in ("name", "in_channels", "out_channels"))
        assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == dict(found.shapes)
    fisher(tuned.path, data / "brats", draws=1, max_subjects=1, patch_size=[16, 16, 16], options=CPU)


def test_volumes_that_a_network_does_not_take(tmp_path, data, one_thread):
    """It was made for one size: one line says so, in place of what its layers raise."""
    arguments = {"img_size": [16, 16, 16], "feature_size": 2, "hidden_size": 12, "mlp_dim": 4, "num_heads": 2}
    save_sources(tmp_path, "monai.UNETR", arguments)
    with pytest.raises(InputError, match=r"^the network does not take these volumes: wanted another size than 32 x 32 x 32, found .*; set"):
        fisher(tmp_path / "m1.pt", data / "hcp", draws=1, max_subjects=1, options=CPU)
