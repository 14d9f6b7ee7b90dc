"""Isensee 2017, described without torch; the network itself is in ``networks/isensee2017.py``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mergekit3d.architectures import Architecture, NetworkSpec, Shapes, register
from mergekit3d.merging.partitions import Partitions

if TYPE_CHECKING:
    from torch import nn

INPUT_WEIGHT = "encoder.0.input.conv.weight"


def build(spec: NetworkSpec) -> nn.Module:
    """The network of a specification."""
    from mergekit3d.architectures.networks.isensee2017 import Isensee2017

    return Isensee2017(spec.in_channels, spec.out_channels, **spec.arguments)


def infer(shapes: Shapes) -> NetworkSpec | None:
    """Inputs, outputs, base filters, depth and heads from a state dict; leaky slope and dropout leave no trace in it.

    Args:
        shapes: shape of every tensor by name.

    Returns:
        The specification, or None where the tensors are of another network.
    """
    if INPUT_WEIGHT not in shapes or "segmentation.0.weight" not in shapes or len(shapes[INPUT_WEIGHT]) != 5:
        return None
    base_filters, in_channels = shapes[INPUT_WEIGHT][:2]
    depth = 1 + max(int(found.group(1)) for name in shapes if (found := re.match(r"encoder\.(\d+)\.", name)))
    heads = 1 + max(int(found.group(1)) for name in shapes if (found := re.match(r"segmentation\.(\d+)\.", name)))
    arguments = {"base_filters": base_filters, "depth": depth, "segmentation_levels": heads}
    return NetworkSpec("isensee2017", in_channels, shapes["segmentation.0.weight"][0], arguments)


def retarget(shapes: Shapes, spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """Shapes with the inputs and outputs of a specification; nothing else depends on them."""
    changed = {name: tuple(shape) for name, shape in shapes.items()}
    changed[INPUT_WEIGHT] = (changed[INPUT_WEIGHT][0], spec.in_channels, *changed[INPUT_WEIGHT][2:])
    for name in changed:
        if name.startswith("segmentation."):
            changed[name] = (spec.out_channels, *changed[name][1:])
    return changed


ISENSEE2017 = register(
    Architecture(
        name="isensee2017",
        build=build,
        infer=infer,
        partitions=lambda _: Partitions(private=("kind:norm", "segmentation.*")),
        input_weight=lambda shapes: INPUT_WEIGHT if INPUT_WEIGHT in shapes else None,
        multiple_of=lambda spec: int(2 ** (spec.arguments.get("depth", 5) - 1)),
        arguments=("base_filters", "depth", "segmentation_levels", "dropout", "leaky_slope"),
        retarget=retarget,
        zero_information=("encoder.*.conv.bias", "decoder.*.conv.bias"),
    )
)
