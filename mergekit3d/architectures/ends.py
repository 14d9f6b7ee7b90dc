"""Where a network meets its task, told from names and shapes alone: its heads put out the classes, its stems take the modalities.

Heads and norms belong to a task and are private by default, whatever the network; all else is shared. That goes for position
embeddings and tables of relative positions too: they tell of the grid, not of the task.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergekit3d.merging.partitions import Partitions, kinds, layer_of

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Family:
    """Networks whose tensors go by the same names.

    Args:
        sign: glob on names that those of this family alone have.
        heads: globs on the tensors that belong to the outputs, those of deep supervision too, under all their names.
        stems: globs on the weights whose axis 1 runs over the modalities, under all their names.
    """

    sign: str
    heads: tuple[str, ...]
    stems: tuple[str, ...]


FAMILIES: Mapping[str, Family] = {
    "nnU-Net": Family(
        "*seg_layers.*",
        ("seg_layers.*", "*.seg_layers.*"),
        ("*encoder.stages.0.0.convs.0.*.weight", "*encoder.stem.convs.0.*.weight"),
    ),
    "DynUNet": Family(
        "input_block.*",
        ("output_block.*", "deep_supervision_heads.*", "*.super_head.*"),
        tuple(f"{block}.{conv}.conv.weight" for block in ("input_block", "skip_layers.downsample") for conv in ("conv1", "conv3")),
    ),
    "UNet": Family(
        "model.1.submodule.*", ("model.2.*",), ("model.0.conv.weight", "model.0.conv.unit0.conv.weight", "model.0.residual.weight")
    ),
    "AttentionUnet": Family("model.1.attention.*", ("model.2.*",), ("model.0.conv.0.conv.weight",)),
    "BasicUNet": Family("conv_0.*", ("final_conv.*",), ("conv_0.conv_0.conv.weight",)),
    "BasicUNetPlusPlus": Family("conv_0_0.*", ("final_conv_0_*",), ("conv_0_0.conv_0.conv.weight",)),
    "SegResNet": Family("convInit.*", ("conv_final.*", "vae_conv_final.*"), ("convInit.conv.weight",)),
    "SegResNetDS": Family("encoder.conv_init.*", ("up_layers.*.head.*",), ("encoder.conv_init.weight",)),
    "UNETR": Family(
        "vit.*",
        ("out.*",),
        ("vit.patch_embedding.patch_embeddings.weight", "encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight"),
    ),
    "SwinUNETR": Family(
        "swinViT.*",
        ("out.*",),
        ("swinViT.patch_embed.proj.weight", "encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight"),
    ),
    "VNet": Family("in_tr.*", ("out_tr.*",), ("in_tr.conv_block.conv.weight",)),
    "FlexibleUNet": Family("segmentation_head.*", ("segmentation_head.*",), ("encoder.conv1.weight", "encoder._conv_stem.weight")),
}
"""nnU-Net's networks, and MONAI's (1.6) by their classes; the outputs of a head may come with layers of its own (UNet, VNet)."""

HEADS = ("seg_layers", "seg_outputs", "output_block", "deep_supervision_heads", "segmentation_head", "seg_head", "conv_final", "final_conv")
"""What the heads of other networks in wide use go by."""


def family_of(shapes: Shapes) -> Family | None:
    """The family that a state dict is of: with its sign, a head and a stem; None where it is of none."""

    def has(globs: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, glob) for glob in globs for name in shapes)

    return next((known for known in FAMILIES.values() if has((known.sign,)) and has(known.heads) and has(known.stems)), None)


def stems(shapes: Shapes) -> tuple[str, ...]:
    """Weights whose axis 1 runs over the modalities, in order and under all their names; of an unknown network, the first convolution."""
    family = family_of(shapes)
    if family is not None:
        return tuple(name for name in shapes if len(shapes[name]) > 2 and any(fnmatch.fnmatchcase(name, glob) for glob in family.stems))
    first = first_convolution(shapes)
    return () if first is None else (first,)


def norms_and_heads(shapes: Shapes) -> Partitions:
    """Default partitions of a network by its names: norms (with running statistics) and heads are private.

    Heads of unknown networks are told by their usual names (`HEADS`); where there are none, the last layer of the state dict stands
    for them.
    """
    family = family_of(shapes)
    if family is not None:
        heads = [glob for glob in family.heads if any(fnmatch.fnmatchcase(name, glob) for name in shapes)]
        return Partitions(private=("kind:norm", *heads))
    found = [head for head in HEADS if any(head in name.split(".") for name in shapes)]
    heads = [f"{head}.*" for head in found if any(name.startswith(f"{head}.") for name in shapes)]
    heads += [f"*.{head}.*" for head in found if any(f".{head}." in name for name in shapes)]
    weights = _weights(shapes)
    if not heads and weights:
        heads = [f"{layer_of(weights[-1])}.*"]
    return Partitions(private=("kind:norm", *heads))


def first_convolution(shapes: Shapes) -> str | None:
    """The first convolution's weight in the order of the state dict."""
    kind_of = kinds(shapes)
    return next((name for name in shapes if kind_of[name] == "conv" and name.endswith("weight")), None)


def channels_of(shapes: Shapes) -> tuple[int, int]:
    """Inputs and outputs of a network that nothing else is known of, from its stem and its head.

    Where its names tell neither, its first and last layers with a weight stand for them.
    """
    weights, family = _weights(shapes), family_of(shapes)
    if not weights:
        return 1, 1
    if family is None:
        heads = [name for name in weights if not set(HEADS).isdisjoint(name.split("."))]
    else:
        heads = [name for name in weights if any(fnmatch.fnmatchcase(name, glob) for glob in family.heads)]
    # A transposed convolution has its outputs on axis 1; its bias tells.
    last = (heads or weights)[-1]
    return shapes[weights[0]][1], shapes.get(f"{layer_of(last)}.bias", shapes[last])[0]


def _weights(shapes: Shapes) -> list[str]:
    kind_of = kinds(shapes)
    return [name for name in shapes if kind_of[name] in ("conv", "linear") and name.endswith("weight")]
