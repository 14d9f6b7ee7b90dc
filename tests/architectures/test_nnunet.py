"""nnU-Net's networks: built by their own package, from classes that are trusted; retargeted without it."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from mergekit3d.architectures import NetworkSpec, architecture, build_network, network_of, network_shapes
from mergekit3d.architectures.nnunet import turn_axes
from mergekit3d.checkpoints import load_tensors, open_checkpoint
from mergekit3d.errors import RecipeError
from mergekit3d.training.deep_supervision import outputs_of, over_levels
from mergekit3d.training.loss import dice_cross_entropy_loss
from tests.builders import nnunet_plans, nnunet_state, save_nnunet


@pytest.fixture
def spec(tmp_path):
    save_nnunet(tmp_path / "m.pth")
    return network_of(open_checkpoint(tmp_path / "m.pth"))


def shapes_of(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_retarget_changes_inputs_and_heads_under_all_names(spec):
    """So that fusing needs no package of nnU-Net."""
    target = NetworkSpec("nnunet", 4, 5, spec.arguments)

    assert shapes_of(nnunet_state(4, 5)) == architecture("nnunet").retarget(shapes_of(nnunet_state()), target)
    assert shapes_of(nnunet_state()) == architecture("nnunet").retarget(shapes_of(nnunet_state()), spec)


def test_sizes_are_multiples_of_all_strides(spec):
    """The least that every axis divides."""
    assert 2 == architecture("nnunet").multiple_of(spec)


@pytest.mark.parametrize("axes", [[2, 1, 0], [0, 1, 2], [1, 2, 0]], ids=str)
def test_turned_network_sees_its_own_axes(axes):
    """A convolution with a kernel along one of its axes works along that axis of x, y, z; its tensors stay."""
    network, plain = torch.nn.Conv3d(1, 1, (1, 1, 3), padding=(0, 0, 1)), torch.nn.Conv3d(1, 1, (1, 1, 3), padding=(0, 0, 1))
    plain.load_state_dict(network.state_dict())
    turn_axes(network, axes)
    image = torch.randn(1, 1, 4, 5, 6)
    there = (0, 1, *(2 + axis for axis in axes))
    expected = plain(image.permute(there))

    assert torch.equal(expected, network(image).permute(there))
    assert image.shape == network(image).shape


@pytest.mark.parametrize(
    ("key", "name"), [("class_name", "os.system"), ("class_name", "nnunetv2.x.Net"), ("conv_op", "subprocess.Popen"), ("conv_op", 7)]
)
def test_classes_of_other_packages_are_refused(spec, key, name):
    """A checkpoint cannot have anything imported."""
    arguments = {**spec.arguments, "arguments": dict(spec.arguments["arguments"])}
    (arguments if key == "class_name" else arguments["arguments"])[key] = name

    with pytest.raises(RecipeError, match="the network's code is not trusted"):
        build_network(NetworkSpec("nnunet", 2, 3, arguments))


@pytest.mark.skipif(importlib.util.find_spec("dynamic_network_architectures") is not None, reason="the package is installed")
def test_missing_package_is_told(spec):
    """With how to install it."""
    with pytest.raises(RecipeError) as caught:
        build_network(spec)

    assert "wanted the package dynamic_network_architectures; install it: pip install --no-deps dynamic-network-architectures" in str(
        caught.value
    )


@pytest.mark.needs_nnunet
def test_network_is_the_one_of_the_file(tmp_path, spec):
    """Names and shapes are those of the checkpoint; the output is that of full resolution, on the input's grid."""
    checkpoint = open_checkpoint(tmp_path / "m.pth")
    network = build_network(spec)
    network.load_state_dict(load_tensors(checkpoint))

    assert checkpoint.shapes == network_shapes(spec)
    assert (1, 3, 8, 12, 4) == network.eval()(torch.zeros(1, 2, 8, 12, 4)).shape


@pytest.mark.needs_nnunet
@pytest.mark.parametrize(("trainer", "levels"), [("nnUNetTrainer", 2), ("nnUNetTrainerNoDeepSupervision", 1)])
def test_deep_supervision_in_training(tmp_path, trainer, levels):
    """All levels, the finest first, where its trainer had them; alone the finest in evaluation, on our axes."""
    plans, three = nnunet_plans(), [[3, 3, 3]] * 3
    given = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    given |= {"n_stages": 3, "features_per_stage": [2, 4, 4], "kernel_sizes": three, "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
    given |= {"n_conv_per_stage": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1]}
    save_nnunet(tmp_path / "m.pth", plans=plans, trainer_name=trainer)
    network = build_network(network_of(open_checkpoint(tmp_path / "m.pth")))
    image = torch.randn(1, 2, 8, 16, 8)

    trained, evaluated = outputs_of(network.train()(image)), network.eval()(image)
    assert [(1, 3, 8, 16, 8), (1, 3, 4, 8, 8)][:levels] == [tuple(level.shape) for level in trained]
    assert torch.equal(trained[0], evaluated)
    # The coarsest level has no weight in the loss, as in nnU-Net.
    targets = torch.zeros(1, 8, 16, 8, dtype=torch.long)
    assert torch.isfinite(over_levels(dice_cross_entropy_loss)(network.train()(image), targets, exclusive=True))
