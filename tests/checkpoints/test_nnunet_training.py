"""T-IMM over nnU-Net's checkpoints, and back: what adapt and finetune write is nnU-Net's again where its plans fit."""

from __future__ import annotations

import json

import pytest
import torch

from mergekit3d import adapt, convert, finetune, fisher, fuse
from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.errors import UsageError
from mergekit3d.options import Options
from tests.builders import nnunet_plans, save_nnunet, write_recipe

pytestmark = [pytest.mark.needs_nnunet, pytest.mark.usefixtures("one_thread")]

CPU = Options(device="cpu", precision="fp32")
TARGET = """
  data: {data}/hcp
  modalities: [t1, t2]
  regions: {{lower: [2, 3], upper: [12, 16]}}
  split: {{train: 1, validation: 1, test: 0}}
"""
RECIPE = """
version: 1
name: timm
sources: [{{name: m1, checkpoint: m1.pth}}, {{name: m2, checkpoint: m2.pth}}]
merge: {{method: timm}}
target: {target}
adapt: {{epochs: 1, patch_size: [16, 16, 16]}}
finetune: {{epochs: 1, patch_size: [16, 16, 16]}}
"""
REGIONS = {"background": 0, "lower": [2, 3], "upper": [12, 16]}


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_data):
    """HCP folders that all of these tests read."""
    return make_data(tmp_path_factory.mktemp("data"))


def trained(folder, data, labels, target=TARGET):
    """The fine-tuned checkpoint of two sources of nnU-Net's, of one recipe that names nothing but them and the target."""
    for number in (1, 2):
        names = {"0": "T1", "1": "T2"}
        save_nnunet(folder / f"m{number}.pth", seed=number, labels=labels, channel_names=names)
        fisher(folder / f"m{number}.pth", data / "hcp", draws=1, max_subjects=1, patch_size=[16, 16, 16], options=CPU)
    recipe = write_recipe(folder, RECIPE.format(target=target.format(data=data)), "timm.yaml")
    adapt(recipe, options=CPU)
    fuse(recipe, options=CPU)
    return finetune(recipe, options=CPU).best


def test_what_is_trained_for_the_sources_outputs_is_nnunets_again(tmp_path, data):
    """By the name of the file, with plans, dataset.json, trainer and mirroring of the source; every name of a tensor is there."""
    best = trained(tmp_path, data, REGIONS)
    result = convert(best, tmp_path / "best.pth")
    source, written = (torch.load(tmp_path / name, weights_only=False) for name in ("m2.pth", "best.pth"))

    assert "nnunet" == result.written
    assert source["network_weights"].keys() == written["network_weights"].keys()
    assert source["init_args"]["plans"] == written["init_args"]["plans"]
    assert ("nnUNetTrainer", (0, 1, 2)) == (written["trainer_name"], written["inference_allowed_mirroring_axes"])
    assert len(open_checkpoint(tmp_path / "m1.pth").aliases) == len(open_checkpoint(best).aliases)


def test_other_outputs_need_the_plans_of_their_data_set(tmp_path, data):
    """One line says so; the folder in nnUNet_preprocessed is enough."""
    best = trained(tmp_path, data, {"background": 0, "other": [2, 3], "upper": [12, 16]})
    with pytest.raises(UsageError) as caught:
        convert(best, tmp_path / "best.pth", to="nnunet")
    planned = tmp_path / "Dataset002_Target"
    planned.mkdir()
    (planned / "nnUNetPlans.json").write_text(json.dumps(nnunet_plans()))
    dataset = {"channel_names": {"0": "T1", "1": "T2"}, "labels": REGIONS, "regions_class_order": [1, 2], "file_ending": ".nii.gz"}
    (planned / "dataset.json").write_text(json.dumps(dataset))
    convert(best, tmp_path / "best.pth", to="nnunet", like=planned)

    wanted = "wanted t1 + t2 to other [2, 3], upper [12, 16], found t1 + t2 to lower [2, 3], upper [12, 16]"
    assert f"the network is of another task than its plans: {tmp_path / 'best.pth'}: {wanted}; pass --like" in str(caught.value)
    assert "pt" == convert(best, tmp_path / "plain.pth").written
    assert REGIONS == torch.load(tmp_path / "best.pth", weights_only=False)["init_args"]["dataset_json"]["labels"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda plans: plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(conv_bias=False),
            "wanted conv_bias False",
        ),
        (lambda plans: plans.pop("transpose_forward"), "cannot read the plans"),
        (lambda plans: plans.update(configurations={}), "cannot read the plans"),
    ],
    ids=["network", "key", "configuration"],
)
def test_plans_that_do_not_fit(tmp_path, change, said):
    """The first argument of the network that differs, or what is missing in the plans; nothing is written."""
    save_nnunet(tmp_path / "m.pth")
    plans = nnunet_plans()
    change(plans)
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plans))
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "T1", "1": "T1Gd"}, "labels": {"background": 0, "csf": 1, "gm": 2}, "file_ending": ".nii.gz"})
    )
    with pytest.raises(UsageError, match=said):
        convert(tmp_path / "m.pth", tmp_path / "x" / "back.pth", to="nnunet", like=tmp_path)
    assert not (tmp_path / "x" / "back.pth").exists()


def test_training_from_a_file_of_other_modalities(tmp_path, data):
    """Its first convolution goes by the modalities' names, under all names that nnU-Net gives it."""
    source = save_nnunet(tmp_path / "m.pth", channel_names={"0": "T1", "1": "T2"})["network_weights"]
    target = TARGET.format(data=data).replace("[t1, t2]", "[t2]")
    training = "finetune: {init: m.pth, epochs: 1, patch_size: [16, 16, 16], learning_rate: 1.0e-12}"
    recipe = write_recipe(tmp_path, f"version: 1\nname: file\ntarget: {target}\n{training}\n")
    tuned = open_checkpoint(finetune(recipe, options=CPU).best)
    name = "encoder.stages.0.0.convs.0.conv.weight"

    assert (2, 1, 3, 3, 3) == tuned.shapes[name] == tuned.shapes[f"decoder.{name}"]
    torch.testing.assert_close(source[name][:, 1:], torch.from_numpy(tuned.read(name).copy()))
