"""Any `torch.nn.Module` by its import path, with keyword arguments; ``monai.UNet`` is short for MONAI's own networks.

An import runs code, so a path outside MONAI is followed only where the user's own recipe names it (or the program calls
`allow_import`), never because a checkpoint's metadata does.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from mergekit3d.architectures import Architecture, NetworkSpec
from mergekit3d.architectures.ends import norms_and_heads, stems
from mergekit3d.checkpoints.monai_networks import CHANNEL_ARGUMENTS, least_multiple
from mergekit3d.errors import RecipeError
from mergekit3d.registry import did_you_mean

if TYPE_CHECKING:
    from torch import nn

MONAI_NETWORKS = "monai.networks.nets"
LEAST_AXES = 3
FINEST_LAST = frozenset({"BasicUNetPlusPlus"})
LISTS = FINEST_LAST | {"SegResNetVAE"}
"""Networks of MONAI's that give several outputs in evaluation mode, too."""
_allowed: set[str] = set()


def allow_import(name: str) -> None:
    """Trust an import path: the user's recipe named it."""
    _allowed.add(name)


def imported_architecture(name: str) -> Architecture:
    """The architecture behind an import path; the import itself waits until a network is built.

    Args:
        name: ``package.module.Class``, or ``monai.Class`` for a class of `monai.networks.nets`.
    """
    return Architecture(
        name=name,
        build=_build,
        infer=lambda _: None,
        partitions=norms_and_heads,
        stems=stems,
        multiple_of=lambda spec: least_multiple(spec.arguments),
    )


def _build(spec: NetworkSpec) -> nn.Module:
    network_class = _find_class(spec.name)
    arguments = {key: value for key, value in spec.arguments.items() if key != "multiple_of"}
    parameters = inspect.signature(network_class).parameters
    for inputs, outputs in CHANNEL_ARGUMENTS:
        if inputs in parameters and outputs in parameters:
            arguments = {inputs: spec.in_channels, outputs: spec.out_channels, **arguments}
            break
    try:
        network: nn.Module = network_class(**arguments)
    except (TypeError, ValueError, AssertionError, LookupError, AttributeError, ArithmeticError) as error:
        raise RecipeError(
            "cannot build the network", where=spec.name, found=str(error)[:200], todo="check its keyword arguments"
        ) from error
    if not network_class.__module__.startswith(MONAI_NETWORKS) or network_class.__name__ in LISTS:
        network.register_forward_hook(_finest_first)
    return network


def _finest_first(network: nn.Module, _: object, output: Any) -> Any:
    """The outputs of a network that gives several, the finest first; in evaluation mode that one alone.

    What is no volume (a loss of SegResNetVAE's) is left out.
    """
    if not isinstance(output, (list, tuple)):
        return output
    levels = [level for level in output if getattr(level, "ndim", 0) > LEAST_AXES]
    if type(network).__name__ in FINEST_LAST:
        levels.reverse()
    return levels if network.training and len(levels) > 1 else levels[0]


def _find_class(name: str) -> Any:
    from torch import nn

    module_name, _, class_name = name.rpartition(".")
    if module_name == "monai":
        module_name = MONAI_NETWORKS
    if module_name != MONAI_NETWORKS and name not in _allowed:
        raise RecipeError("the network's code is not trusted", where=name, todo="name it as architecture in the recipe to import it")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the latter two of names that begin with a dot
        raise RecipeError("cannot import the network", where=name, found=str(error)) from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        networks = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise RecipeError("no such network", where=name, wanted="a torch.nn.Module", todo=did_you_mean(class_name, networks))
    return found
