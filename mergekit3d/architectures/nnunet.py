"""nnU-Net v2's networks, built from what their plans tell, by the package dynamic-network-architectures (the extra ``nnunet``).

A checkpoint names classes, and an import runs code: only those of that package and of `torch.nn` are followed.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergekit3d.architectures import Architecture, NetworkSpec, register
from mergekit3d.architectures.ends import Shapes, norms_and_heads, stems
from mergekit3d.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGE = "dynamic_network_architectures"
TRUSTED = (f"{PACKAGE}.", "torch.nn.")
MOVED_TO = f"{PACKAGE}.architectures.unet"
HEAD = re.compile(r"(?:.*\.)?seg_layers\.\d+\.(weight|bias)")


def build(spec: NetworkSpec) -> nn.Module:
    """The network of a specification.

    Its output is that of full resolution; in training those of all levels, where nnU-Net's trainer had deep supervision.
    nnU-Net's arrays have the axes of the plans; ours are x, y, z. The network takes and gives ours.

    Raises:
        RecipeError: the package is missing, or the plans name a class of another one.
    """
    given = dict(spec.arguments["arguments"])
    for key in spec.arguments["imported"]:
        if given.get(key) is not None:
            given[key] = _located(given[key])
    given["deep_supervision"] = False
    network_class = _located(spec.arguments["class_name"])
    try:
        network: nn.Module = network_class(input_channels=spec.in_channels, num_classes=spec.out_channels, **given)
    except (TypeError, ValueError, AssertionError, LookupError, AttributeError, ArithmeticError) as error:
        found = f"{type(error).__name__}: {error}"[:200]
        raise RecipeError("cannot build the network", where=spec.arguments["class_name"], found=found) from error
    if spec.arguments.get("deep_supervision") and hasattr(getattr(network, "decoder", None), "deep_supervision"):
        network.register_forward_pre_hook(_supervised_in_training)
    turn_axes(network, spec.arguments["axes"])
    return network


def _supervised_in_training(network: nn.Module, _: object) -> None:
    network.decoder.deep_supervision = network.training  # type: ignore[union-attr]


def turn_axes(network: nn.Module, axes: Sequence[int]) -> None:
    """Let a network that was trained on axes in another order take and give x, y, z.

    Args:
        network: changed in place; its tensors stay.
        axes: for each spatial axis of the network, which of x, y, z (0, 1, 2) it is.
    """
    if list(axes) == [0, 1, 2]:
        return
    from torch import Tensor

    there = (0, 1, *(2 + axis for axis in axes))
    back = tuple(there.index(axis) for axis in range(5))

    def turned(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0].permute(there), *arguments[1:])

    def returned(_: nn.Module, __: tuple[Tensor, ...], output: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        return output.permute(back) if isinstance(output, Tensor) else [level.permute(back) for level in output]

    network.register_forward_pre_hook(turned)
    network.register_forward_hook(returned)


def _located(name: str) -> Any:
    """A class of the trusted packages by its import path.

    Raises:
        RecipeError: another package, or no such class.
    """
    from torch import nn

    if not isinstance(name, str) or not name.startswith(TRUSTED):
        raise RecipeError("the network's code is not trusted", where=name, wanted=f"a class of {PACKAGE} or torch.nn")
    module_name, _, class_name = name.rpartition(".")
    for module in (module_name, MOVED_TO):
        try:
            found = getattr(importlib.import_module(module), class_name, None)
        except ImportError as error:
            if module == MOVED_TO or importlib.util.find_spec(PACKAGE) is None:
                todo = "install it: pip install --no-deps dynamic-network-architectures"
                raise RecipeError("cannot build the network of nnU-Net", where=name, wanted=f"the package {PACKAGE}", todo=todo) from error
            continue
        if isinstance(found, type) and issubclass(found, nn.Module):
            return found
    raise RecipeError("no such network", where=name, wanted="a torch.nn.Module")


def retarget(shapes: Shapes, spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of a state dict changed to the inputs and outputs of a specification.

    Args:
        shapes: shape of every tensor by name, under all its names.
        spec: of the network that is wanted.
    """
    taking, changed = stems(shapes), {}
    for name, shape in shapes.items():
        size = tuple(shape)
        if HEAD.fullmatch(name):
            size = (spec.out_channels, *size[1:])
        elif name in taking:
            size = (size[0], spec.in_channels, *size[2:])
        changed[name] = size
    return changed


def multiple_of(spec: NetworkSpec) -> int:
    """The least size that every stride of the network divides."""
    strides = spec.arguments["arguments"]["strides"]
    per_axis = [stride if isinstance(stride, Sequence) else [stride] * 3 for stride in strides]
    return math.lcm(*(math.prod(int(stride[axis]) for stride in per_axis) for axis in range(3)))


NNUNET = register(
    Architecture(
        name="nnunet",
        build=build,
        infer=lambda _: None,
        partitions=norms_and_heads,
        stems=stems,
        multiple_of=multiple_of,
        retarget=retarget,
    )
)
