"""Networks: how to build one, tell it from a bare state dict, and which of its tensors belong to a task.

To add one: a description beside this file (no torch at its top) that makes an `Architecture` and registers it, its import in
`_load`, and the network under ``networks/``. Any `torch.nn.Module` works without that, by its import path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergekit3d.architectures.ends import Shapes, norms_and_heads, stems
from mergekit3d.checkpoints.checkpoint import Checkpoint
from mergekit3d.errors import InputError, RecipeError
from mergekit3d.merging.partitions import Partitions
from mergekit3d.registry import Registry, did_you_mean

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NetworkSpec:
    """One network, ready to be built.

    Args:
        name: registered name, or import path of a `torch.nn.Module`.
        in_channels: modalities.
        out_channels: regions, or classes with the background.
        arguments: further keyword arguments of the network.
    """

    name: str
    in_channels: int
    out_channels: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain data for metadata."""
        return {"name": self.name, "in_channels": self.in_channels, "out_channels": self.out_channels, **self.arguments}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> NetworkSpec:
        """The specification that `as_json` wrote."""
        arguments = {key: value for key, value in content.items() if key not in ("name", "in_channels", "out_channels")}
        return cls(str(content["name"]), int(content["in_channels"]), int(content["out_channels"]), arguments)


@dataclass(frozen=True)
class Argument:
    """A keyword argument of a network.

    Args:
        wanted: what it must be, in words.
        fits: whether a value is that.
    """

    wanted: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Architecture:
    """A family of networks.

    Args:
        name: the recipe's ``architecture``.
        build: makes the network of a specification.
        infer: tells the specification from the shapes of a state dict; None where it is another network's.
        partitions: default patterns of shared and private tensors.
        stems: names of the weights whose axis 1 runs over the modalities.
        multiple_of: input sizes must be a multiple of this.
        arguments: keyword arguments that a recipe may give, by name; None for any.
        decisive: those of them that a state dict tells, so that a recipe cannot say otherwise.
        retarget: shapes of a state dict changed to the inputs and outputs of a specification, without torch; None: the network
            is built on the meta device.
        initial_biases: where biases begin that do not begin at 0, by name.
        zero_information: globs of biases whose information is exactly 0, since a norm follows.
    """

    name: str
    build: Callable[[NetworkSpec], nn.Module]
    infer: Callable[[Shapes], NetworkSpec | None]
    partitions: Callable[[Shapes], Partitions]
    stems: Callable[[Shapes], tuple[str, ...]]
    multiple_of: Callable[[NetworkSpec], int]
    arguments: Mapping[str, Argument] | None = None
    decisive: tuple[str, ...] = ()
    retarget: Callable[[Shapes, NetworkSpec], dict[str, tuple[int, ...]]] | None = None
    initial_biases: Mapping[str, float] = field(default_factory=dict)
    zero_information: tuple[str, ...] = ()


ARCHITECTURES: Registry[Architecture] = Registry("architecture")


def register(architecture: Architecture) -> Architecture:
    """Add an architecture to the registry under its own name."""
    return ARCHITECTURES.register(architecture.name)(architecture)


def _load() -> None:
    from mergekit3d.architectures import isensee2017, nnunet  # noqa: F401  importing registers


def architecture(name: str) -> Architecture:
    """The architecture of a registered name, or of the import path of a `torch.nn.Module` (``monai.UNet`` for MONAI's).

    Raises:
        RecipeError: no such name.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES.get(name)
    if "." in name:
        from mergekit3d.architectures.imported import imported_architecture

        return imported_architecture(name)
    todo = f"{did_you_mean(name, ARCHITECTURES)}; or give an import path such as monai.UNet"
    raise RecipeError("unknown architecture", where=name, todo=todo)


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that a network does not take.

    Raises:
        RecipeError: unknown, or of a value that it cannot have.
    """
    known = architecture(name).arguments
    for key, value in arguments.items():
        where = f"architecture.{key}"
        if key in ("in_channels", "out_channels"):
            raise RecipeError("the channels of a network follow from its task", where=where, todo="leave it out")
        if known is not None and key not in known:
            raise RecipeError("unknown argument of the architecture", where=where, todo=did_you_mean(key, known))
        if known is not None and not known[key].fits(value):
            raise RecipeError(f"cannot build {name}", where=where, wanted=known[key].wanted, found=value)


def infer_network(shapes: Shapes) -> NetworkSpec | None:
    """The network that a bare state dict belongs to, told from names and shapes; None where no registered one fits."""
    for name in ARCHITECTURES:
        spec = ARCHITECTURES.get(name).infer(shapes)
        if spec is not None:
            return spec
    return None


def network_of(checkpoint: Checkpoint) -> NetworkSpec | None:
    """The network of a checkpoint: from its metadata, else told from its tensors, else None."""
    if checkpoint.metadata is not None and checkpoint.metadata.architecture is not None:
        return NetworkSpec.from_json(checkpoint.metadata.architecture)
    return infer_network(checkpoint.shapes)


def check_shapes(spec: NetworkSpec, shapes: Shapes, where: object) -> None:
    """Compare a state dict with the network that it is meant for.

    Raises:
        InputError: tensors are missing, unknown or of another shape; the first is named, with the count.
    """
    expected = network_shapes(spec)
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    differing = [name for name in expected if name in shapes and tuple(shapes[name]) != expected[name]]
    if not (missing or unknown or differing):
        return
    count = len(missing) + len(unknown) + len(differing)
    if differing:
        name = differing[0]
        details = {"wanted": f"{name} {list(expected[name])}", "found": f"{list(shapes[name])} ({count} tensors differ)"}
    elif missing:
        details = {"wanted": f"a tensor {missing[0]}", "found": f"none of that name ({count} tensors differ)"}
    else:
        details = {"wanted": "no further tensors", "found": f"{unknown[0]} ({count} tensors differ)"}
    raise InputError(f"the checkpoint is of another network than {spec.name}", where=where, todo="name the right architecture", **details)


def network_shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a network, in its own order, without allocating it where that can be helped."""
    import torch

    build = architecture(spec.name).build
    try:
        with torch.device("meta"):
            network = build(spec)
    except (RuntimeError, NotImplementedError):  # some networks look at values while they are built
        network = build(spec)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def build_network(spec: NetworkSpec) -> nn.Module:
    """The network of a specification, with torch's own initialisation."""
    return architecture(spec.name).build(spec)


def built(**content: Any) -> nn.Module:
    """The network of a specification given as keyword arguments: what a MONAI bundle of ours names."""
    return build_network(NetworkSpec.from_json(content))


def multiple_of(content: Mapping[str, Any]) -> int:
    """What input sizes of a network are a multiple of, by its specification as plain data: for MONAI bundles of ours."""
    spec = NetworkSpec.from_json(content)
    return architecture(spec.name).multiple_of(spec)


def default_partitions(spec: NetworkSpec | None, shapes: Shapes) -> Partitions:
    """Which tensors are private where nobody says: those that a registered network names, else norms and heads.

    No import path is followed.
    """
    known = _registered(spec)
    return norms_and_heads(shapes) if known is None else known.partitions(shapes)


def stems_of(spec: NetworkSpec | None, shapes: Shapes) -> tuple[str, ...]:
    """Weights whose axis 1 runs over the modalities, under all their names; no import path is followed."""
    known = _registered(spec)
    return stems(shapes) if known is None else known.stems(shapes)


def _registered(spec: NetworkSpec | None) -> Architecture | None:
    return ARCHITECTURES.get(spec.name) if spec is not None and spec.name in ARCHITECTURES else None


_load()
