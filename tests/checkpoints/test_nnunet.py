"""nnU-Net's checkpoints: read with network and task, written so that nnU-Net reads them."""

from __future__ import annotations

import json
from copy import deepcopy

import numpy as np
import pytest
import torch

from mergekit3d import convert, fuse, verify
from mergekit3d.architectures import network_of
from mergekit3d.checkpoints import TaskSpec, allowed_mirroring, open_checkpoint, recognised_format
from mergekit3d.errors import InputError, UsageError
from mergekit3d.fisher_source import task_of_source
from mergekit3d.options import Options
from mergekit3d.prediction import load_predictor
from tests.builders import NNUNET_LABELS, assert_mutants_are_refused, nnunet_plans, nnunet_state, save_nnunet, save_source, write_recipe


def task(path):
    return open_checkpoint(path).metadata.task


def test_network_and_task_are_told_by_the_file(tmp_path):
    """Class, arguments and axes from the plans; channels, labels, spacing (in x, y, z) and normalisation too. Subjects are not kept."""
    save_nnunet(tmp_path / "checkpoint_best.pth")
    checkpoint = open_checkpoint(tmp_path / "checkpoint_best.pth")
    network = network_of(checkpoint)

    assert ("nnunet", 2, 3) == (network.name, network.in_channels, network.out_channels)
    assert "dynamic_network_architectures.architectures.unet.PlainConvUNet" == network.arguments["class_name"]
    assert [2, 1, 0] == network.arguments["axes"]
    assert TaskSpec(("t1", "t1ce"), {"csf": (1,), "gm": (2,)}, True, "zscore-image", (1.5, 2.0, 3.0)) == checkpoint.metadata.task
    assert "nnunet" == recognised_format(tmp_path / "checkpoint_best.pth").name
    assert "DOE" not in json.dumps(checkpoint.metadata.as_json())
    assert (44, 16) == (len(checkpoint.entries), len(checkpoint.owners))


def test_regions_are_sigmoids_in_their_order(tmp_path):
    """The background and the label to ignore are no outputs."""
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "ignore": 4}
    save_nnunet(tmp_path / "m.pth", labels=labels)

    assert {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)} == task(tmp_path / "m.pth").outputs
    assert not task(tmp_path / "m.pth").exclusive
    assert 3 == network_of(open_checkpoint(tmp_path / "m.pth")).out_channels


def test_labels_go_by_their_ids(tmp_path):
    """The order in dataset.json is not that of the outputs."""
    save_nnunet(tmp_path / "m.pth", labels={"gm": 2, "background": 0, "csf": 1})

    assert ["csf", "gm"] == list(task(tmp_path / "m.pth").outputs)


@pytest.mark.parametrize(
    ("change", "labels", "why"),
    [
        ({"normalization_schemes": ["CTNormalization"] * 2}, None, "the normalisation CTNormalization"),
        ({"normalization_schemes": ["RGBTo01Normalization"] * 2}, None, "the normalisation RGBTo01Normalization"),
        (
            {"normalization_schemes": ["ZScoreNormalization", "NoNormalization"]},
            None,
            "normalisations that differ between the channels",
        ),
        ({"use_mask_for_norm": [True, False]}, None, "normalisations that differ between the channels"),
        ({}, {"background": 0, "a": 1, "b": 5}, r"labels that are not 0, 1, 2 ... \(0, 1, 5\)"),
    ],
    ids=["CT", "RGB", "mixed", "masks", "gaps"],
)
def test_task_that_cannot_be_said_is_none(tmp_path, change, labels, why):
    """The tensors open all the same, and can be merged; predict and fisher tell why not."""
    save_nnunet(tmp_path / "m.pth", plans=nnunet_plans(**change), labels=labels)
    checkpoint = open_checkpoint(tmp_path / "m.pth")

    assert task(tmp_path / "m.pth") is None
    assert network_of(checkpoint) is not None
    with pytest.raises(InputError, match=f"does not say what it predicts: .*found {why}; predict with nnUNetv2_predict"):
        load_predictor(tmp_path / "m.pth", Options(device="cpu"))
    with pytest.raises(InputError, match=f"the task of the checkpoint cannot be said: .*found {why}"):
        task_of_source(checkpoint, network_of(checkpoint), None, None, None, "sampled")


@pytest.mark.parametrize(
    ("expected", "scheme", "masked"),
    [
        ("zscore", "ZScoreNormalization", True),
        ("zscore-image", "ZScoreNormalization", False),
        ("none", "NoNormalization", False),
        ("rescale", "RescaleTo01Normalization", False),
    ],
)
def test_normalisation_is_that_of_the_plans(tmp_path, expected, scheme, masked):
    """A z-score is that of the foreground where they say so, else that of the whole image."""
    save_nnunet(tmp_path / "m.pth", plans=nnunet_plans(normalization_schemes=[scheme] * 2, use_mask_for_norm=[masked] * 2))

    assert expected == task(tmp_path / "m.pth").normalisation


@pytest.mark.parametrize("change", [{"patch_size": [16, 16]}, {"previous_stage": "3d_lowres"}], ids=["2d", "cascade"])
def test_network_that_takes_more_or_less_than_volumes_is_none(tmp_path, change):
    """2D networks, and the second stage of a cascade."""
    save_nnunet(tmp_path / "m.pth", plans=nnunet_plans(**change))

    assert network_of(open_checkpoint(tmp_path / "m.pth")) is None


def test_configuration_inherits(tmp_path):
    """From another one of the plans."""
    plans = nnunet_plans()
    plans["configurations"] = {"base": plans["configurations"]["3d_fullres"], "3d_fullres": {"inherits_from": "base", "spacing": [1, 1, 1]}}
    save_nnunet(tmp_path / "m.pth", plans=plans)

    assert (1.0, 1.0, 1.0) == task(tmp_path / "m.pth").spacing_mm


def test_plans_from_before_version_2_5(tmp_path):
    """They tell the network piece by piece."""
    plans = nnunet_plans()
    configuration = plans["configurations"]["3d_fullres"]
    arguments = configuration.pop("architecture")["arch_kwargs"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 2,
        "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_kernel_sizes": arguments["kernel_sizes"],
        "pool_op_kernel_sizes": arguments["strides"],
    }
    save_nnunet(tmp_path / "m.pth", plans=plans)

    assert arguments == network_of(open_checkpoint(tmp_path / "m.pth")).arguments["arguments"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda plans: plans.pop("transpose_forward"),
        lambda plans: plans.update(configurations={}),
        lambda plans: plans["configurations"].update({"3d_fullres": {"inherits_from": "3d_fullres"}}),
        lambda plans: plans.update(transpose_forward=[0, 0, 1]),
        lambda plans: plans["configurations"]["3d_fullres"].update(spacing=["x", "y", "z"]),
        lambda plans: plans["configurations"]["3d_fullres"].update(spacing=[float("nan"), 1.0, 1.0]),
        lambda plans: plans["configurations"]["3d_fullres"].update(architecture=7),
    ],
    ids=["key", "configuration", "circle", "axes", "words", "nan", "number"],
)
def test_plans_of_another_form(tmp_path, damage):
    """The tensors open; network and task are unknown."""
    plans = nnunet_plans()
    damage(plans)
    save_nnunet(tmp_path / "m.pth", plans=plans)
    checkpoint = open_checkpoint(tmp_path / "m.pth")

    assert checkpoint.metadata is None
    assert 44 == len(checkpoint.entries)


def test_round_trip_is_what_nnunet_reads(tmp_path):
    """Every tensor bit for bit under every name, plans, data set and mirroring; loaded as nnU-Net does, aliases share their storage."""
    written = save_nnunet(tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "m.safetensors")
    result = convert(tmp_path / "m.safetensors", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)

    assert "nnunet" == result.written
    assert list(written["network_weights"]) == list(back["network_weights"])
    assert all(torch.equal(tensor, back["network_weights"][name]) for name, tensor in written["network_weights"].items())
    assert 16 == len({tensor.data_ptr() for tensor in back["network_weights"].values()})
    assert written["init_args"]["plans"] == back["init_args"]["plans"]
    assert written["init_args"]["dataset_json"]["labels"] == back["init_args"]["dataset_json"]["labels"]
    assert ("3d_fullres", 0) == (back["init_args"]["configuration"], back["init_args"]["fold"])
    assert ("nnUNetTrainer", (0, 1, 2)) == (back["trainer_name"], back["inference_allowed_mirroring_axes"])
    assert b"DOE" not in (tmp_path / "back.pth").read_bytes()
    assert verify(tmp_path / "back.pth").digest == open_checkpoint(tmp_path / "m.pth").digest


def test_merge_becomes_a_model_folder(tmp_path):
    """With one recipe: `merge.out` in a folder fold_0 is a checkpoint of nnU-Net, plans.json and dataset.json stand above it."""
    states = [save_nnunet(tmp_path / f"m{number}.pth", seed=number)["network_weights"] for number in (1, 2)]
    sources = "[{name: a, checkpoint: m1.pth}, {name: b, checkpoint: m2.pth}]"
    merge = "{method: mean-imm, out: fold_0/checkpoint_final.pth}"
    recipe = write_recipe(
        tmp_path, f"version: 1\nname: model\nsources: {sources}\npartitions: {{private: [], shared: ['*']}}\nmerge: {merge}\n"
    )
    fused = torch.load(fuse(recipe).out, weights_only=True)
    folder = tmp_path / "model"

    assert nnunet_plans() == json.loads((folder / "plans.json").read_text()) == fused["init_args"]["plans"]
    assert {"0": "T1", "1": "T1Gd"} == json.loads((folder / "dataset.json").read_text())["channel_names"]
    for name, tensor in fused["network_weights"].items():
        np.testing.assert_allclose(tensor, (states[0][name] + states[1][name]) / 2, atol=1e-6)
    assert 16 == len({tensor.data_ptr() for tensor in fused["network_weights"].values()})
    assert verify(folder).digest == verify(folder / "fold_0" / "checkpoint_final.pth").digest


def test_folder_is_written_and_read(tmp_path):
    """Asked for by name; files that stand there already are not touched."""
    save_nnunet(tmp_path / "m.pth")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "plans.json").write_text("{}")
    convert(tmp_path / "m.pth", tmp_path / "model", to="nnunet", force=True)

    assert "{}" == (tmp_path / "model" / "plans.json").read_text()
    assert (tmp_path / "model" / "fold_0" / "checkpoint_final.pth").is_file()
    assert open_checkpoint(tmp_path / "m.pth").digest == open_checkpoint(tmp_path / "model").digest


def test_folder_with_several_folds(tmp_path):
    """Which one to take is the user's choice."""
    for fold in (0, 1):
        (tmp_path / f"fold_{fold}").mkdir()
        save_nnunet(tmp_path / f"fold_{fold}" / "checkpoint_final.pth")
    for name in ("plans.json", "dataset.json"):
        (tmp_path / name).write_text("{}")

    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path)
    said = "wanted one fold with a checkpoint, found fold_0/checkpoint_final.pth, fold_1/checkpoint_final.pth; name one of them"
    assert f"cannot choose a checkpoint: {tmp_path}: {said}" == str(caught.value)


def test_template_gives_what_the_checkpoint_lost(tmp_path):
    """`--like`: the plans of the checkpoint that a training started from."""
    save_nnunet(tmp_path / "m.pth")
    torch.save(nnunet_state(seed=5), tmp_path / "trained.pt")
    convert(tmp_path / "trained.pt", tmp_path / "back.pth", to="nnunet", like=tmp_path / "m.pth")

    assert nnunet_plans() == torch.load(tmp_path / "back.pth", weights_only=True)["init_args"]["plans"]


def test_plans_to_take_over_are_chosen_by_their_file(tmp_path):
    """Where nnUNet_preprocessed has several, as after `nnUNetv2_move_plans_between_datasets`; the error tells how."""
    save_nnunet(tmp_path / "m.pth")
    planned = tmp_path / "Dataset002_Other"
    planned.mkdir()
    for name in ("nnUNetPlans", "nnUNetPlans_003"):
        (planned / f"{name}.json").write_text(json.dumps({**nnunet_plans(), "plans_name": name}))
    dataset = {"channel_names": {"0": "T1", "1": "T1Gd"}, "labels": NNUNET_LABELS, "file_ending": ".nii.gz", "name": "Other"}
    (planned / "dataset.json").write_text(json.dumps(dataset))
    found = "found nnUNetPlans.json, nnUNetPlans_003.json; pass --like with the file of plans itself"
    with pytest.raises(UsageError, match=found):
        convert(tmp_path / "m.pth", tmp_path / "back.pth", to="nnunet", like=planned)
    convert(tmp_path / "m.pth", tmp_path / "back.pth", to="nnunet", like=planned / "nnUNetPlans_003.json")
    written = torch.load(tmp_path / "back.pth", weights_only=False)["init_args"]

    assert ("nnUNetPlans_003", "Other") == (written["plans"]["plans_name"], written["dataset_json"]["name"])


@pytest.mark.parametrize(
    ("state", "like", "said"),
    [
        (None, None, "the checkpoint does not come from nnU-Net"),
        (None, "m2.pt", "the template is no checkpoint of nnU-Net"),
        (nnunet_state(outputs=4), "m.pth", "wanted 2 inputs and 3 outputs, as its plans tell, found 2 inputs and 4 outputs"),
        (nnunet_state(inputs=1), "m.pth", "wanted 2 inputs and 3 outputs, as its plans tell, found 1 inputs and 3 outputs"),
    ],
    ids=["no plans", "no template", "outputs", "inputs"],
)
def test_what_nnunet_would_not_load_is_refused(tmp_path, state, like, said):
    """Nothing is written."""
    save_nnunet(tmp_path / "m.pth")
    save_source(tmp_path / "m2.pt")
    torch.save(nnunet_state() if state is None else state, tmp_path / "trained.pt")
    with pytest.raises(UsageError) as caught:
        convert(tmp_path / "trained.pt", tmp_path / "back.pth", to="nnunet", like=None if like is None else tmp_path / like)

    assert said in str(caught.value)
    assert not (tmp_path / "back.pth").exists()


@pytest.mark.parametrize("fold", ["../../x", "", "0/1"])
def test_fold_is_no_path(tmp_path, fold):
    """A file cannot choose where a folder is written."""
    save_nnunet(tmp_path / "m.pth")
    content = torch.load(tmp_path / "m.pth", weights_only=False)
    content["init_args"] = {**deepcopy(content["init_args"]), "fold": fold}
    torch.save(content, tmp_path / "odd.pth")

    assert open_checkpoint(tmp_path / "odd.pth").metadata is None


def test_mutants_raise_nothing_but_input_errors(tmp_path):
    """And never give other values: torch's archive has checksums, which are looked at."""
    save_nnunet(tmp_path / "m.pth")
    assert_mutants_are_refused(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("expected", "axes", "transposed"),
    [((0, 1, 2), (0, 1, 2), [0, 1, 2]), ((0, 1), (1, 2), [0, 1, 2]), ((2,), (1,), [1, 0, 2]), ((), None, [0, 1, 2])],
    ids=["all", "two", "transposed", "none"],
)
def test_axes_that_it_may_be_mirrored_along(tmp_path, expected, axes, transposed):
    """In our order, x first; nnU-Net's arrays have z first, and the plans may order them otherwise. A merge keeps them."""
    plans = nnunet_plans()
    plans["transpose_forward"] = plans["transpose_backward"] = transposed
    for number in (1, 2):
        save_nnunet(tmp_path / f"m{number}.pth", seed=number, plans=plans, inference_allowed_mirroring_axes=axes)
    sources = "[{name: a, checkpoint: m1.pth}, {name: b, checkpoint: m2.pth}]"
    fused = fuse(write_recipe(tmp_path, f"version: 1\nsources: {sources}\nmerge: {{method: mean-imm, out: fused.safetensors}}\n")).out

    assert expected == allowed_mirroring(open_checkpoint(tmp_path / "m1.pth")) == allowed_mirroring(open_checkpoint(fused))


def test_mirroring_of_others(tmp_path):
    """A network that mergekit3d trained says nothing of it."""
    save_source(tmp_path / "m1.safetensors")

    assert allowed_mirroring(open_checkpoint(tmp_path / "m1.safetensors")) is None
