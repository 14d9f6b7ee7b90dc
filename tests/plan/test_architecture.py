"""The network that user, checkpoint and task say together."""

from __future__ import annotations

import pytest

from mergekit3d.architectures import NetworkSpec
from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.errors import InputError
from mergekit3d.plan.architecture import resolve_network
from mergekit3d.recipe.load import architecture_of
from tests.builders import save_source, spec_of, task_of

BRATS = task_of(("t1", "t1ce", "t2", "flair"), {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)})
UNET = {"name": "monai.UNet", "spatial_dims": 3, "channels": [2, 4], "strides": [2]}


def test_nobody_says_it():
    """No network, whatever the task."""
    assert resolve_network(None, None, task=BRATS) is None


@pytest.mark.parametrize(("channels", "task"), [((2, 5), None), ((4, 3), BRATS)], ids=["checkpoint", "task"])
def test_task_decides_on_the_channels(channels, task):
    """Where there is none, the checkpoint does."""
    known = NetworkSpec("isensee2017", 2, 5, {"depth": 3})

    assert NetworkSpec("isensee2017", *channels, {"depth": 3}) == resolve_network(None, known, task=task)


def test_arguments_of_the_user_go_over_those_of_the_checkpoint():
    """What the user leaves out stays."""
    given = architecture_of({"name": "isensee2017", "dropout": 0.2})

    assert spec_of(dropout=0.2, leaky_slope=0.3) == resolve_network(given, spec_of(dropout=0.1, leaky_slope=0.3))


def test_tensors_tell_the_channels_of_a_network_that_only_the_user_knows(tmp_path):
    """They are those of the first and last layer."""
    save_source(tmp_path / "m.safetensors", spec=NetworkSpec("monai.UNet", 4, 3, {key: UNET[key] for key in UNET if key != "name"}))
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")

    found = resolve_network(architecture_of(UNET), None, checkpoint=checkpoint)

    assert (4, 3) == (found.in_channels, found.out_channels)


def test_tensors_that_say_otherwise_are_named(tmp_path):
    """Before the network is built."""
    save_source(tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="does not fit the network: .*wanted depth 4, found 3"):
        resolve_network(architecture_of({"name": "isensee2017", "depth": 4}), spec_of(), checkpoint=checkpoint)
