"""Networks by import path: MONAI's by a short name, anyone's where the user's recipe asks for it, never a checkpoint's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mergekit3d.architectures import NetworkSpec, architecture, build_network, imported, infer_network, network_shapes
from mergekit3d.architectures.imported import allow_import
from mergekit3d.checkpoints.monai_networks import DEFAULT_MULTIPLE
from mergekit3d.errors import RecipeError
from mergekit3d.merging.partitions import assign
from tests.builders import write_recipe

UNET = {"spatial_dims": 3, "channels": [2, 4, 8], "strides": [2, 2], "num_res_units": 1}


@pytest.fixture(autouse=True)
def _nothing_is_trusted(monkeypatch):
    monkeypatch.setattr(imported, "_allowed", set())


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's own."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_networks.py").write_text(
        "from pathlib import Path\n"
        "from torch import nn\n"
        "Path(__file__).with_name('ran').touch()\n"
        "class Tiny(nn.Sequential):\n"
        "    def __init__(self, in_channels, num_classes, width=2):\n"
        "        super().__init__(nn.Conv3d(in_channels, width, 3, padding=1), nn.BatchNorm3d(width), nn.Conv3d(width, num_classes, 1))\n"
        "CONSTANT = 3\n"
    )
    return tmp_path


def test_monai_network_with_arguments():
    """`monai.UNet`: channels come from the task, the rest from the recipe."""
    network = build_network(NetworkSpec("monai.UNet", 2, 5, UNET))

    assert "monai.networks.nets.unet" == type(network).__module__
    assert (1, 5, 4, 8, 4) == tuple(network.eval()(torch.zeros(1, 2, 4, 8, 4)).shape)
    assert 4 == architecture("monai.UNet").multiple_of(NetworkSpec("monai.UNet", 2, 5, UNET))


def test_shapes_and_default_partitions():
    """The first convolutions take the modalities; norms and the last layer are private."""
    described = architecture("monai.UNet")
    shapes = network_shapes(NetworkSpec("monai.UNet", 2, 5, {**UNET, "norm": ["instance", {"affine": True}]}))
    partition_of = assign(described.partitions(shapes), shapes)

    found = described.stems(shapes)
    assert ("model.0.conv.unit0.conv.weight", "model.0.residual.weight") == found
    assert {(2, "shared")} == {(shapes[name][1], partition_of[name]) for name in found}
    last = [name for name in shapes if name.endswith("weight") and len(shapes[name]) > 2][-1]
    assert 5 in shapes[last][:2]
    assert "private" == partition_of[last]
    assert all(partition_of[name] == "private" for name in shapes if ".N." in name)


def test_full_path_of_a_monai_network():
    """Is trusted as well."""
    spec = NetworkSpec("monai.networks.nets.UNet", 1, 1, UNET)

    assert network_shapes(NetworkSpec("monai.UNet", 1, 1, UNET)) == network_shapes(spec)


def test_network_that_looks_at_values_while_built():
    """Some cannot be built without memory; they are built with it."""
    shapes = network_shapes(NetworkSpec("monai.SwinUNETR", 1, 2, {"feature_size": 12}))

    assert (2, 12, 1, 1, 1) == shapes["out.conv.conv.weight"]


def test_import_path_is_refused_unless_a_recipe_names_it(own_module):
    """A checkpoint's metadata may name anything; nothing of it is imported."""
    with pytest.raises(RecipeError) as caught:
        build_network(NetworkSpec("own_networks.Tiny", 2, 3))

    told = "the network's code is not trusted: own_networks.Tiny; name it as architecture in the recipe to import it"
    assert told == str(caught.value)
    assert not (own_module / "ran").exists()


def test_recipe_trusts_the_path_that_it_names(own_module):
    """Then it is built, with its own word for the outputs."""
    from mergekit3d.recipe import load_recipe

    path = write_recipe(own_module, "version: 1\narchitecture: {name: own_networks.Tiny, width: 3}\n")
    model = load_recipe(path).architecture
    network = build_network(NetworkSpec(model.name, 2, 4, model.arguments))

    assert (3, 2, 3, 3, 3) == tuple(network[0].weight.shape)
    assert (4, 3, 1, 1, 1) == tuple(network[2].weight.shape)
    with pytest.raises(RecipeError, match="not trusted"):
        build_network(NetworkSpec("own_networks.Other", 2, 4))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("monai.UNt", "no such network: monai.UNt: wanted a torch.nn.Module; did you mean 'Unet'?"),
        ("own_networks.Tny", "no such network: own_networks.Tny: wanted a torch.nn.Module; did you mean 'Tiny'?"),
        ("own_networks.CONSTANT", "no such network: own_networks.CONSTANT: wanted a torch.nn.Module; known: Tiny"),
        ("no_such_package.Net", "cannot import the network: no_such_package.Net: found No module named 'no_such_package'"),
        (".Net", "cannot import the network: .Net: found Empty module name"),
        ("..Net", "cannot import the network: ..Net: found "),
    ],
)
@pytest.mark.usefixtures("own_module")
def test_wrong_names(name, told):
    """What is there instead, or what was meant."""
    allow_import(name)
    with pytest.raises(RecipeError) as caught:
        build_network(NetworkSpec(name, 1, 1))
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({}, "missing 3 required positional arguments"),
        ({**UNET, "depth": 3}, "unexpected keyword argument 'depth'"),
        ({**UNET, "spatial_dims": 4}, "tuple index out of range"),
        ({**UNET, "act": "nope"}, "Unsupported option"),
    ],
)
def test_wrong_arguments(arguments, found):
    """One line, with what the network said."""
    with pytest.raises(RecipeError) as caught:
        build_network(NetworkSpec("monai.UNet", 1, 1, arguments))
    assert str(caught.value).startswith("cannot build the network: monai.UNet: found ")
    assert found in str(caught.value)
    assert str(caught.value).endswith("; check its keyword arguments")


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        (8, {"strides": [2, 2, 2]}),
        (4, {"strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]]}),
        (24, {"strides": [2], "multiple_of": 24}),
        (DEFAULT_MULTIPLE, {}),
    ],
)
def test_multiple_of(expected, arguments):
    """From the strides, or as the recipe says, or large enough for most."""
    assert expected == architecture("monai.UNet").multiple_of(NetworkSpec("monai.UNet", 1, 1, arguments))


def test_multiple_of_is_not_handed_to_the_network():
    """It is a word to this program."""
    assert isinstance(build_network(NetworkSpec("monai.UNet", 1, 1, {**UNET, "multiple_of": 16})), nn.Module)


def test_bare_state_dict_is_not_guessed():
    """Only registered networks are told from names and shapes."""
    assert infer_network(network_shapes(NetworkSpec("monai.UNet", 1, 1, UNET))) is None


def test_network_that_gives_a_list_gives_its_finest_output():
    """In training all of them, the finest first, which BasicUNet++ has last; nnU-Net's and DynUNet's are in that order."""
    network = build_network(NetworkSpec("monai.BasicUNetPlusPlus", 1, 2, {"features": [2] * 6, "deep_supervision": True}))
    image = torch.randn(1, 1, 32, 32, 32)
    finest = []
    network.final_conv_0_4.register_forward_hook(lambda _, __, output: finest.append(output))

    levels = network.train()(image)
    assert [(1, 2, 32, 32, 32)] * 4 == [tuple(level.shape) for level in levels]
    assert torch.equal(finest[0], levels[0])
    assert torch.equal(network.eval()(image), finest[1])
