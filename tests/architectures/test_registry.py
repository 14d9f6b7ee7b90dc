"""From a name or a checkpoint to a network."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit3d.architectures import (
    ARCHITECTURES,
    NetworkSpec,
    architecture,
    check_arguments,
    check_shapes,
    network_of,
    network_shapes,
)
from mergekit3d.architectures.ends import norms_and_heads
from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.errors import InputError, RecipeError
from tests.builders import metadata_of, random_state, save, save_source, spec_of


def test_registered_networks():
    """Isensee 2017 is the network of the paper; nnU-Net's are told by their plans."""
    assert ["isensee2017", "nnunet"] == list(ARCHITECTURES)
    assert "isensee2017" == architecture("isensee2017").name


def test_misspelt_network():
    """The nearest one, and the way to any other."""
    with pytest.raises(RecipeError) as caught:
        architecture("isense2017")
    todo = "did you mean 'isensee2017'?; or give an import path such as monai.UNet"
    assert f"unknown architecture: isense2017; {todo}" == str(caught.value)


def test_specification_round_trips():
    """Through the plain data of metadata."""
    spec = NetworkSpec("monai.UNet", 2, 3, {"channels": [2, 4]})

    assert {"name": "monai.UNet", "in_channels": 2, "out_channels": 3, "channels": [2, 4]} == spec.as_json()
    assert spec == NetworkSpec.from_json(spec.as_json())


def test_network_of_a_checkpoint_comes_from_its_metadata(tmp_path):
    """With what leaves no trace in the tensors."""
    spec = spec_of(leaky_slope=0.3, dropout=0.1)
    save_source(tmp_path / "m1.safetensors", spec=spec)

    assert spec == network_of(open_checkpoint(tmp_path / "m1.safetensors"))


def test_network_of_a_bare_state_dict_comes_from_its_tensors(tmp_path):
    """As users have them, also as `.pt` under a wrapper's prefix."""
    import torch

    state = random_state(spec_of(4, 3))
    torch.save({f"module.{name}": torch.from_numpy(values) for name, values in state.items()}, tmp_path / "m1.pt")

    assert spec_of(4, 3) == network_of(open_checkpoint(tmp_path / "m1.pt"))


def test_unknown_network(tmp_path):
    """None where nothing fits."""
    save(tmp_path / "m1.safetensors", {"conv.weight": np.ones((1, 1, 1, 1, 1))}, metadata_of())

    assert network_of(open_checkpoint(tmp_path / "m1.safetensors")) is None


def test_shapes_that_fit_pass():
    """Nothing is said."""
    check_shapes(spec_of(), network_shapes(spec_of()), "m1.pt")


@pytest.mark.parametrize(
    ("details", "change"),
    [
        (
            "wanted segmentation.0.weight [3, 2, 1, 1, 1], found [7, 2, 1, 1, 1] (1 tensors differ)",
            {"segmentation.0.weight": (7, 2, 1, 1, 1)},
        ),
        (
            "wanted a tensor encoder.0.input.norm.bias, found none of that name (2 tensors differ)",
            {"encoder.0.input.norm.bias": None, "x": (1,)},
        ),
        ("wanted no further tensors, found x.weight (1 tensors differ)", {"x.weight": (1,)}),
    ],
)
def test_other_shapes_are_told(details, change):
    """The first that differs, and how many do."""
    shapes = {name: shape for name, shape in {**network_shapes(spec_of()), **change}.items() if shape is not None}
    with pytest.raises(InputError) as caught:
        check_shapes(spec_of(), shapes, "m1.pt")
    assert f"the checkpoint is of another network than isensee2017: m1.pt: {details}; name the right architecture" == str(caught.value)


@pytest.mark.parametrize(
    ("told", "arguments"),
    [
        ("unknown argument of the architecture: architecture.base_filter; did you mean 'base_filters'?", {"base_filter": 8}),
        ("the channels of a network follow from its task: architecture.in_channels; leave it out", {"in_channels": 4}),
        ("cannot build isensee2017: architecture.depth: wanted a whole number from 2 to 12, found 0", {"base_filters": 8, "depth": 0}),
    ],
)
def test_arguments_are_checked_by_name_and_value(told, arguments):
    """Before anything is built."""
    with pytest.raises(RecipeError) as caught:
        check_arguments("isensee2017", arguments)
    assert told == str(caught.value)


def test_arguments_of_imported_networks_are_their_own_affair():
    """But for the channels."""
    check_arguments("monai.UNet", {"channels": [2, 4], "anything": 1})
    with pytest.raises(RecipeError, match=r"architecture\.out_channels; leave it out"):
        check_arguments("monai.UNet", {"out_channels": 4})


@pytest.mark.parametrize(
    ("expected", "names"),
    [
        (("kind:norm", "*.seg_layers.*"), ["decoder.seg_layers.0.weight", "decoder.stages.0.weight", "encoder.stages.0.weight"]),
        (
            ("kind:norm", "output_block.*", "deep_supervision_heads.*"),
            ["input_block.weight", "output_block.conv.weight", "deep_supervision_heads.0.weight", "skip_layers.next_layer.weight"],
        ),
        (("kind:norm", "model.2.*"), ["model.0.weight", "model.2.weight"]),
        (("kind:norm",), []),
    ],
    ids=["nnU-Net", "DynUNet", "unknown", "empty"],
)
def test_heads_of_unknown_networks_go_by_their_usual_names(expected, names):
    """Wherever they stand in the state dict; else the last layer stands for them."""
    assert expected == norms_and_heads(dict.fromkeys(names, (2, 2, 1, 1, 1))).private
