"""Isensee 2017: its size, its names, its shapes, and how it is told from a bare state dict."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from mergekit3d.architectures import NetworkSpec, architecture, build_network, infer_network, network_shapes
from mergekit3d.architectures.isensee2017 import INPUT_WEIGHT, retarget
from mergekit3d.architectures.networks.isensee2017 import Isensee2017
from mergekit3d.errors import RecipeError
from mergekit3d.merging.partitions import assign
from tests.builders import spec_of


@pytest.fixture(scope="module")
def paper_network():
    """The network of the paper, without memory."""
    with torch.device("meta"):
        return Isensee2017(4, 3)


@pytest.mark.parametrize(
    ("parameters", "inputs", "outputs"), [(8_269_561, 4, 3), (8_270_826, 4, 14), (8_269_962, 2, 14), (8_269_530, 1, 14)]
)
def test_parameters_of_the_paper(parameters, inputs, outputs):
    """At base 16 and depth 5."""
    with torch.device("meta"):
        network = Isensee2017(inputs, outputs)

    assert parameters == sum(parameter.numel() for parameter in network.parameters())


def test_layers_of_the_paper(paper_network):
    """30 convolutions = 19 of 3^3 stride 1 + 4 of 3^3 stride 2 + 7 of 1^3; 27 affine instance norms; 114 tensors; all biased."""
    convolutions = [module for module in paper_network.modules() if isinstance(module, nn.Conv3d)]
    norms = [module for module in paper_network.modules() if isinstance(module, nn.InstanceNorm3d)]

    assert {(3, 1): 19, (3, 2): 4, (1, 1): 7} == Counter((module.kernel_size[0], module.stride[0]) for module in convolutions)
    assert 27 == len(norms)
    assert all(norm.affine and not norm.track_running_stats for norm in norms)
    assert all(convolution.bias is not None for convolution in convolutions)
    assert 114 == len(paper_network.state_dict())
    assert [16, 32, 64, 128, 256] == [level.input.conv.out_channels for level in paper_network.encoder]


def test_parts_of_the_paper(paper_network):
    """P: the weights and biases of 27 convolutions. S: three heads and all norms."""
    shapes = {name: tuple(tensor.shape) for name, tensor in paper_network.state_dict().items()}
    partition_of = assign(architecture("isensee2017").partitions(shapes), shapes)
    shared = [name for name in shapes if partition_of[name] == "shared"]

    assert 54 == len(shared)
    assert all(name.rsplit(".", 2)[1] == "conv" for name in shared)


def test_names_are_readable(paper_network):
    """As a recipe names them."""
    names = list(paper_network.state_dict())

    for name in (
        "encoder.1.context.0.conv.weight",
        "decoder.0.localization.1.norm.bias",
        "decoder.3.upsample.conv.bias",
        "segmentation.0.weight",
    ):
        assert name in names
    assert INPUT_WEIGHT == names[0]
    assert ["3", "2", "1", "0"] == list(dict.fromkeys(name.split(".")[1] for name in names if name.startswith("decoder.")))


@pytest.mark.parametrize(("depth", "heads"), [(2, 3), (3, 1), (4, 3)])
def test_logits_have_the_size_of_the_image(depth, heads):
    """For any size that the depth divides, one channel an output."""
    step = 2 ** (depth - 1)
    network = build_network(NetworkSpec("isensee2017", 2, 3, {"base_filters": 2, "depth": depth, "segmentation_levels": heads}))
    logits = network(torch.randn(1, 2, 2 * step, step, 3 * step))

    assert (1, 3, 2 * step, step, 3 * step) == tuple(logits.shape)
    assert step == architecture("isensee2017").multiple_of(spec_of(depth=depth))


def test_context_is_added_to_the_input_of_the_level():
    """With all context weights 0 its norm gives its bias: the level's output is its input convolution's plus a constant."""
    network = build_network(spec_of()).eval()
    level = network.encoder[0]
    for parameter in level.context.parameters():
        nn.init.zeros_(parameter)
    image = torch.randn(1, 2, 8, 8, 8)

    assert torch.equal(level.input(image), level(image))


def test_deep_supervision_sums_the_heads():
    """Heads of coarser levels are added after nearest upsampling."""
    network = build_network(spec_of()).eval()
    image = torch.randn(1, 2, 8, 8, 8)
    both = network(image)
    coarse = network.segmentation[1]
    nn.init.zeros_(coarse.weight)
    nn.init.constant_(coarse.bias, 2.5)
    alone = network(image)
    nn.init.zeros_(coarse.bias)

    assert not torch.equal(both, alone)
    torch.testing.assert_close(alone, network(image) + 2.5)


def test_dropout_is_spatial_and_only_in_training():
    """Whole channels are dropped; evaluation is repeatable."""
    network = build_network(spec_of(dropout=0.9))
    image = torch.randn(1, 2, 8, 8, 8)
    network.eval()
    assert torch.equal(network(image), network(image))

    network.train()
    dropped = network.encoder[1].dropout(torch.ones(1, 50, 2, 2, 2))
    assert {1} == {len(channel.unique()) for channel in dropped[0]}
    assert 0 < int((dropped[0, :, 0, 0, 0] == 0).sum()) < 50


def test_leaky_slope_is_an_argument():
    """It changes the output, not the weights' shapes."""
    states = [build_network(spec_of(leaky_slope=slope)).eval() for slope in (0.01, 0.3)]
    states[1].load_state_dict(states[0].state_dict())
    image = torch.randn(1, 2, 8, 8, 8)

    assert not torch.equal(states[0](image), states[1](image))


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec("isensee2017", 4, 3, {"base_filters": 16, "depth": 5, "segmentation_levels": 3}),
        NetworkSpec("isensee2017", 1, 14, {"base_filters": 8, "depth": 4, "segmentation_levels": 3}),
        NetworkSpec("isensee2017", 2, 7, {"base_filters": 3, "depth": 2, "segmentation_levels": 1}),
        spec_of(5, 1),
    ],
    ids=lambda spec: "-".join(map(str, (spec.in_channels, spec.out_channels, *spec.arguments.values()))),
)
def test_network_is_told_from_a_bare_state_dict(spec):
    """Base filters, inputs, outputs, depth and heads, whatever the order of the tensors."""
    shapes = network_shapes(spec)

    assert spec == infer_network(shapes)
    assert spec == infer_network(dict(sorted(shapes.items())))


@pytest.mark.parametrize(
    "change",
    [
        {INPUT_WEIGHT: None},
        {"segmentation.0.weight": None},
        {INPUT_WEIGHT: (2, 2, 3, 3)},
        {"segmentation.0.weight": ()},
        {"encoder.1000000000.x": (1,)},
        {"segmentation.7.weight": (3, 2, 1, 1, 1)},
    ],
    ids=str,
)
def test_other_state_dicts_are_of_another_network(change):
    """Nothing is guessed from a part of the names, and no network of a million levels is built."""
    shapes = {name: shape for name, shape in {**network_shapes(spec_of()), **change}.items() if shape is not None}

    assert infer_network(shapes) is None


@pytest.mark.parametrize("target", [spec_of(4, 5), spec_of(1, 1), spec_of()])
def test_retargeted_shapes_are_those_of_the_network(target):
    """Told without building it, as fusion does, which imports no torch."""
    assert network_shapes(target) == retarget(network_shapes(spec_of()), target)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("depth", 1, "a whole number from 2 to 12"),
        ("depth", "five", "a whole number from 2 to 12"),
        ("base_filters", 0, "a whole number of 1 or more"),
        ("base_filters", True, "a whole number of 1 or more"),
        ("segmentation_levels", 0, "a whole number of 1 or more"),
        ("dropout", 1.5, "a number from 0 to 1"),
        ("leaky_slope", "no", "a number from 0 to 1"),
    ],
)
def test_arguments_that_no_network_has(key, value, wanted):
    """The key of the recipe is named, not a line of torch."""
    with pytest.raises(RecipeError) as caught:
        build_network(spec_of(**{key: value}))
    assert f"cannot build isensee2017: architecture.{key}: wanted {wanted}, found {value}" == str(caught.value)
