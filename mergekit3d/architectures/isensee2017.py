"""Isensee 2017, described without torch; the network itself is in ``networks/isensee2017.py``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mergekit3d.architectures import Architecture, Argument, NetworkSpec, check_arguments, register
from mergekit3d.architectures.ends import Shapes
from mergekit3d.architectures.initialise import FOREGROUND_LOGIT
from mergekit3d.merging.partitions import Partitions

if TYPE_CHECKING:
    from torch import nn

INPUT_WEIGHT = "encoder.0.input.conv.weight"


def build(spec: NetworkSpec) -> nn.Module:
    """The network of a specification.

    Raises:
        RecipeError: an argument that it does not take.
    """
    check_arguments("isensee2017", spec.arguments)
    from mergekit3d.architectures.networks.isensee2017 import Isensee2017

    return Isensee2017(spec.in_channels, spec.out_channels, **spec.arguments)


def infer(shapes: Shapes) -> NetworkSpec | None:
    """Inputs, outputs, base filters, depth and heads from a state dict; leaky slope and dropout leave no trace in it.

    Args:
        shapes: shape of every tensor by name.

    Returns:
        The specification, or None where the tensors are of another network.
    """
    if any(len(shapes.get(name, ())) != 5 for name in (INPUT_WEIGHT, "segmentation.0.weight")):
        return None
    base_filters, in_channels = shapes[INPUT_WEIGHT][:2]
    depth, heads = _count(r"encoder\.(\d+)\.", shapes), _count(r"segmentation\.(\d+)\.", shapes)
    if depth is None or heads is None:
        return None
    arguments = {"base_filters": base_filters, "depth": depth, "segmentation_levels": heads}
    return NetworkSpec("isensee2017", in_channels, shapes["segmentation.0.weight"][0], arguments)


def _count(pattern: str, names: Iterable[str]) -> int | None:
    """How many parts are numbered; None where a number is left out."""
    numbers = {found.group(1) for name in names if (found := re.match(pattern, name))}
    return len(numbers) if numbers == {str(number) for number in range(len(numbers))} else None


def _whole(lowest: int, highest: int | None = None) -> Argument:
    wanted = f"a whole number of {lowest} or more" if highest is None else f"a whole number from {lowest} to {highest}"
    return Argument(wanted, lambda value: type(value) is int and lowest <= value and (highest is None or value <= highest))


def _fraction() -> Argument:
    return Argument("a number from 0 to 1", lambda value: type(value) in (int, float) and 0 <= value <= 1)


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
        stems=lambda shapes: (INPUT_WEIGHT,) if INPUT_WEIGHT in shapes else (),
        multiple_of=lambda spec: int(2 ** (spec.arguments.get("depth", 5) - 1)),
        arguments={
            "base_filters": _whole(1),
            "depth": _whole(2, 12),
            "segmentation_levels": _whole(1),
            "dropout": _fraction(),
            "leaky_slope": _fraction(),
        },
        decisive=("base_filters", "depth"),
        retarget=retarget,
        initial_biases={"segmentation.0.bias": FOREGROUND_LOGIT},  # the finest head alone: the heads are summed
        zero_information=("encoder.*.conv.bias", "decoder.*.conv.bias"),
    )
)
