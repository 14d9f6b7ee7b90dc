"""The network that a training starts from, and where each of its tensors comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit3d.architectures import NetworkSpec, architecture, build_network, network_of, network_shapes, stems_of
from mergekit3d.architectures.initialise import XAVIER, initial_tensor, initial_tensors
from mergekit3d.checkpoints import Checkpoint, TaskSpec, ancestry_of, check_weights, open_checkpoint, origin_of
from mergekit3d.engine.values import tensor_values
from mergekit3d.errors import InputError, RecipeError
from mergekit3d.merging.partitions import kinds
from mergekit3d.plan.architecture import resolve_network
from mergekit3d.plan.fusion import FusionPlan
from mergekit3d.plan.outcomes import COPIED, EXPANDED, RANDOM
from mergekit3d.recipe.load import LoadedRecipe

if TYPE_CHECKING:
    from torch import nn

DEFAULT_ARCHITECTURE = "isensee2017"


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Args:
        network: architecture with the target's inputs and outputs.
        values: initial value of every tensor, in the network's order.
        outcomes: of every tensor: copied, expanded, fused, random ...
        origin: digests of the files that the values come from, for provenance.
        kept: what the file of another program held beside its tensors; see `Metadata.origin`.
        ancestry: records of the files that the values come from; see `Metadata.ancestry`.
    """

    network: NetworkSpec
    values: Mapping[str, np.ndarray]
    outcomes: Mapping[str, str]
    origin: Mapping[str, Any]
    kept: Mapping[str, Any] = field(default_factory=dict)
    ancestry: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network with these values."""
        import torch

        network = build_network(self.network)
        network.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in self.values.items()})
        return network

    def remark(self) -> str:
        """How many tensors come from where, in one line."""
        return ", ".join(f"{count} {outcome}" for outcome, count in sorted(Counter(self.outcomes.values()).items()))


def network_for(loaded: LoadedRecipe, task: TaskSpec, known: NetworkSpec | None) -> NetworkSpec:
    """The network of a task: the recipe's architecture, else that of a checkpoint, else Isensee 2017.

    Raises:
        RecipeError: unknown keyword arguments, or an architecture that the checkpoint is not of.
    """
    default = NetworkSpec(DEFAULT_ARCHITECTURE, len(task.modalities), task.channels)
    return resolve_network(loaded.architecture, known, task=task) or default


def random_start(spec: NetworkSpec, seed: int, initialisation: str = XAVIER) -> Start:
    """All tensors at random: xavier (as in the paper) or torch."""
    shapes = network_shapes(spec)
    values = initial_tensors(list(shapes), shapes, seed, architecture(spec.name).initial_biases, initialisation)
    return Start(spec, values, dict.fromkeys(values, RANDOM), {})


def checkpoint_start(loaded: LoadedRecipe, path: Path, task: TaskSpec, seed: int) -> Start:
    """A checkpoint's tensors wherever they fit; heads are new where the outputs differ, input channels go by modality.

    Raises:
        InputError: the checkpoint is missing, damaged, not finite, or of another network.
    """
    checkpoint = open_checkpoint(path)
    check_weights(checkpoint)
    known = network_of(checkpoint)
    spec = network_for(loaded, task, known)
    shapes = network_shapes(spec)
    source_task = None if checkpoint.metadata is None else checkpoint.metadata.task
    heads = _heads(spec, shapes)
    same_outputs = (
        source_task is not None
        and list(source_task.outputs.items()) == list(task.outputs.items())
        and source_task.exclusive == task.exclusive
    )
    kind_of, taking = kinds(shapes), stems_of(spec, shapes)
    biases = architecture(spec.name).initial_biases
    values, outcomes = {}, {}
    for name, shape in shapes.items():
        if name not in checkpoint.entries or len(checkpoint.shapes[name]) != len(shape):
            _refuse_other_network(path, spec, name)
        fits = checkpoint.shapes[name] == shape
        random = initial_tensor(name, shape, kind_of[name], seed, biases)
        same_inputs = name not in taking or source_task is None or source_task.modalities == task.modalities
        if fits and same_inputs and (name not in heads or same_outputs or (source_task is None and task.channels == shape[0])):
            values[name], outcome = checkpoint.read(name).astype(random.dtype), COPIED
        elif name in taking and source_task is not None and _channels_fit(checkpoint.shapes[name], shape, source_task):
            values[name], outcome = by_modality(checkpoint, name, random, source_task, task), EXPANDED
        elif (name in taking and source_task is None) or name in heads:
            values[name], outcome = random, RANDOM
        else:
            _refuse_other_shape(path, spec, name, shape, checkpoint.shapes[name])
        outcomes[name] = outcome
    checkpoint.check_steady()
    return Start(spec, values, outcomes, {"init": checkpoint.digest}, origin_of(checkpoint), ancestry_of([checkpoint]))


def fusion_start(plan: FusionPlan) -> Start:
    """The tensors that a fusion gives, computed in memory."""
    if plan.network is None:
        raise RecipeError("the network of the checkpoints is not known", where="architecture", todo="name it in the recipe")
    of_entry = tensor_values(plan)
    shapes = network_shapes(plan.network)
    by_name = {tensor.entry.name: tensor for tensor in plan.tensors}
    # What is copied from a source may still be its file's own bytes, which others can change.
    values = {name: np.require(of_entry(by_name[name].entry), requirements="O") for name in shapes}
    plan.check_steady()
    outcomes = {name: by_name[name].outcome for name in shapes}
    digests = {"sources": [source.checkpoint.digest for source in plan.sources]}
    return Start(plan.network, values, outcomes, digests, plan.origin, ancestry_of(plan.inputs))


def _heads(spec: NetworkSpec, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Tensors whose shape follows the number of outputs."""
    more = network_shapes(NetworkSpec(spec.name, spec.in_channels, spec.out_channels + 1, spec.arguments))
    return {name for name, shape in shapes.items() if more[name] != shape}


def _channels_fit(found: Sequence[int], wanted: Sequence[int], task: TaskSpec) -> bool:
    """Whether an input weight has a channel for each modality and differs from the one wanted in their number alone."""
    return found[1] == len(task.modalities) and found[0] == wanted[0] and tuple(found[2:]) == tuple(wanted[2:])


def by_modality(checkpoint: Checkpoint, name: str, otherwise: np.ndarray, source: TaskSpec, task: TaskSpec) -> np.ndarray:
    """An input weight whose channels go by the modalities' names; those that the checkpoint does not have are as `otherwise`."""
    values, theirs = otherwise.copy(), checkpoint.read(name)
    for channel, modality in enumerate(task.modalities):
        if modality in source.modalities:
            values[:, channel] = theirs[:, source.modalities.index(modality)]
    return values


def _refuse_other_network(path: Path, spec: NetworkSpec, name: str) -> None:
    raise InputError(
        "the checkpoint is of another network", where=path, wanted=f"{spec.name} with a tensor {name}", found="none of that name and rank"
    )


def _refuse_other_shape(path: Path, spec: NetworkSpec, name: str, wanted: tuple[int, ...], found: tuple[int, ...]) -> None:
    raise InputError(
        "the checkpoint does not fit the network",
        where=path,
        wanted=f"{name} {list(wanted)} ({spec.name})",
        found=list(found),
        todo="give the checkpoint's own arguments under architecture (base_filters, depth ...), or leave architecture out",
    )
