"""What is private by default, network by network: heads under all their names, and norms; and which weights take the modalities."""

from __future__ import annotations

import pytest

from mergekit3d.architectures import NetworkSpec, default_partitions, network_shapes, stems_of
from mergekit3d.architectures.ends import FAMILIES, channels_of, family_of, stems
from mergekit3d.merging.partitions import assign, kinds, layer_of
from tests.builders import nnunet_state, spec_of

STAGES = {"spatial_dims": 3, "channels": [6, 8, 16], "strides": [2, 2]}
DYNUNET = {"spatial_dims": 3, "kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3, "filters": [6, 8, 16, 16]}
SEGRESNET = {"spatial_dims": 3, "init_filters": 8, "blocks_down": [1, 1, 1]}
BASIC = {"spatial_dims": 3, "features": [6, 6, 8, 8, 16, 6]}
UNETR = {"img_size": [32, 32, 32], "feature_size": 6, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2}
SWIN = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 4]}
FROM_SKIPS = "skip_layers.next_layer"
NETWORKS = {
    "UNet": ("monai.UNet", STAGES, {"model.2.conv"}),
    "residual UNet": (
        "monai.UNet",
        {**STAGES, "num_res_units": 2, "norm": "batch"},
        {"model.2.0.conv", "model.2.0.adn.A", "model.2.1.conv.unit0.conv"},
    ),
    "DynUNet": ("monai.DynUNet", DYNUNET, {"output_block.conv.conv"}),
    "DynUNet with deep supervision": (
        "monai.DynUNet",
        {**DYNUNET, "deep_supervision": True, "deep_supr_num": 2, "res_block": True},
        {"output_block.conv.conv", *(f"deep_supervision_heads.{level}.conv.conv" for level in range(2))}
        | {f"{FROM_SKIPS}.super_head.conv.conv", f"{FROM_SKIPS}.next_layer.super_head.conv.conv"},
    ),
    "BasicUNet": ("monai.BasicUNet", BASIC, {"final_conv"}),
    "BasicUNetPlusPlus": ("monai.BasicUNetPlusPlus", BASIC, {f"final_conv_0_{level}" for level in range(1, 5)}),
    "SegResNet": ("monai.SegResNet", {**SEGRESNET, "blocks_up": [1, 1]}, {"conv_final.2.conv"}),
    "SegResNetDS": ("monai.SegResNetDS", {**SEGRESNET, "dsdepth": 2}, {"up_layers.0.head", "up_layers.1.head"}),
    "AttentionUnet": ("monai.AttentionUnet", STAGES, {"model.2.conv"}),
    "VNet": ("monai.VNet", {"spatial_dims": 3}, {"out_tr.conv_block.conv", "out_tr.conv2"}),
    "UNETR": ("monai.UNETR", UNETR, {"out.conv.conv"}),
    "SwinUNETR": ("monai.SwinUNETR", SWIN, {"out.conv.conv"}),
    "Isensee 2017": ("isensee2017", spec_of().arguments, {"segmentation.0", "segmentation.1"}),
}


def shapes_of(name, arguments, inputs=2, outputs=3):
    return network_shapes(NetworkSpec(name, inputs, outputs, arguments))


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS, scope="module")
def network(request):
    """A network, the layers of its heads, and what its shapes are: with 2 and 4 inputs, 3 and 4 outputs."""
    name, arguments, heads = request.param
    shapes, wider, more = (shapes_of(name, arguments, *channels) for channels in ((2, 3), (4, 3), (2, 4)))
    return NetworkSpec(name, 2, 3, arguments), heads, shapes, wider, more


def test_heads_and_norms_are_private_and_nothing_else(network):
    """By names, shapes and kinds alone, for the checkpoint that says its network and for the bare state dict."""
    spec, heads, shapes, _, _ = network
    kind_of = kinds(shapes)
    expected = {name for name in shapes if kind_of[name] == "norm" or layer_of(name) in heads}

    for known in (spec, None) if spec.name != "isensee2017" else (spec,):
        partition_of = assign(default_partitions(known, shapes), shapes)
        assert expected == {name for name, partition in partition_of.items() if partition == "private"}


def test_whatever_follows_the_outputs_is_private(network):
    """A new task may have other classes: no shared tensor changes its shape."""
    spec, _, shapes, _, more = network
    partition_of = assign(default_partitions(spec, shapes), shapes)

    assert {"private"} == {partition_of[name] for name in shapes if shapes[name] != more[name]}


def test_stems_are_what_follows_the_inputs(network):
    """Under all their names; their axis 1 is the modality."""
    spec, _, shapes, wider, _ = network
    found = stems_of(spec, shapes)

    assert [name for name in shapes if shapes[name] != wider[name]] == list(found)
    assert {2} == {shapes[name][1] for name in found}
    assert {4} == {wider[name][1] for name in found}


def test_channels_are_told_by_the_ends(network):
    """As the fisher of a bare state dict needs them."""
    _, _, shapes, _, _ = network

    assert (2, 3) == channels_of(shapes)


def test_networks_of_nnunet():
    """Heads of all levels, norms and the first convolution, each under all of its names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in nnunet_state().items()}
    partition_of = assign(default_partitions(None, shapes), shapes)
    blocks = [f"{net}encoder.stages.0.0.convs.0.{layer}" for net in ("", "decoder.") for layer in ("conv", "all_modules.0")]

    private = {layer_of(name) for name, partition in partition_of.items() if partition == "private"}
    norms = {layer for layer in map(layer_of, shapes) if layer.endswith((".norm", ".all_modules.1"))}
    assert norms | {"decoder.seg_layers.0"} == private
    assert {f"{block}.weight" for block in blocks} == set(stems(shapes))


def test_positions_and_slopes_are_shared():
    """Embeddings and tables of positions tell of the grid; the slope of a PReLU is no norm."""
    of_unetr, of_swin = shapes_of("monai.UNETR", UNETR), shapes_of("monai.SwinUNETR", SWIN)
    of_unet = shapes_of("monai.UNet", STAGES)

    assert "shared" == assign(default_partitions(None, of_unetr), of_unetr)["vit.patch_embedding.position_embeddings"]
    table = "swinViT.layers1.0.blocks.0.attn.relative_position_bias_table"
    assert "shared" == assign(default_partitions(None, of_swin), of_swin)[table]
    assert "shared" == assign(default_partitions(None, of_unet), of_unet)["model.0.adn.A.weight"]


def test_every_family_has_a_row():
    """Its networks are told from those of all others."""
    told = {family_of(shapes_of(name, arguments)) for name, arguments, _ in NETWORKS.values()}
    untold = [name for name, family in FAMILIES.items() if family not in told]

    assert ["nnU-Net", "FlexibleUNet"] == untold  # the one above; the other is too large for a test
