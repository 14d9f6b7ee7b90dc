"""The network and the task of a checkpoint whose Fisher diagonal is asked for: what it says itself, else what the user says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mergekit3d.architectures import NetworkSpec, check_shapes, network_of
from mergekit3d.checkpoints import Checkpoint, TaskSpec, unsaid
from mergekit3d.errors import InputError, UsageError
from mergekit3d.plan.architecture import resolve_network
from mergekit3d.recipe.models import ArchitectureModel

if TYPE_CHECKING:
    from mergekit3d.datasets import Dataset

Regions = str | Mapping[str, tuple[int, ...]] | None
CHANNEL_MODALITIES = {1: ("t1",), 2: ("t1", "t2"), 4: ("t1", "t1ce", "t2", "flair")}
"""What a bare checkpoint of so many inputs was most likely trained on, if the data set has these modalities."""


def network_of_source(checkpoint: Checkpoint, given: ArchitectureModel | None = None) -> NetworkSpec:
    """The network of a checkpoint: what it says itself, or what its tensors tell, with the arguments given.

    Inputs and outputs of a network that only the user knows are those of its first and last layer.

    Raises:
        InputError: nothing tells the network, or the checkpoint is of another one than the one given.
        RecipeError: unknown keyword arguments.
    """
    network = resolve_network(given, network_of(checkpoint), checkpoint=checkpoint)
    if network is None:
        todo = "pass --architecture, for example '{name: monai.UNet, spatial_dims: 3, channels: [16, 32, 64], strides: [2, 2]}'"
        raise InputError("the network cannot be told from the tensors", where=checkpoint.path, todo=todo)
    return network


def task_of_source(
    checkpoint: Checkpoint, spec: NetworkSpec, dataset: Dataset, modalities: Sequence[str] | None, regions: Regions, estimator: str
) -> TaskSpec:
    """The task of a checkpoint: what it says, else what the flags and the data tell.

    Raises:
        InputError: modalities or regions do not agree with the network.
        UsageError: nothing tells the modalities, or the regions of true labels.
    """
    from mergekit3d.datasets.labels import output_set
    from mergekit3d.datasets.subject import canonical_modality

    told, why = None if checkpoint.metadata is None else checkpoint.metadata.task, unsaid(checkpoint)
    if why is not None:
        raise InputError("the task of the checkpoint cannot be said", where=checkpoint.path, found=why)
    if told is not None and regions is None:
        return told if modalities is None else replace(told, modalities=tuple(map(canonical_modality, modalities)))
    known = sorted({modality for subject in dataset.subjects for modality in subject.images})
    chosen = (
        tuple(map(canonical_modality, modalities)) if modalities is not None else _guess_modalities(checkpoint, spec.in_channels, known)
    )
    if regions is None:
        if estimator == "true":
            raise UsageError("the checkpoint does not say its regions", where=checkpoint.path, todo="pass --regions, for example hcp-1-7")
        outputs: dict[str, tuple[int, ...]] = {f"output-{channel}": (channel,) for channel in range(1, spec.out_channels + 1)}
    else:
        outputs = output_set(regions) if isinstance(regions, str) else dict(regions)
    if len(outputs) != spec.out_channels:
        raise InputError(
            "regions and network do not agree",
            where=checkpoint.path,
            wanted=f"{spec.out_channels} outputs",
            found=f"{len(outputs)} regions",
        )
    return TaskSpec(chosen, outputs)


def check_network(spec: NetworkSpec, checkpoint: Checkpoint, task: TaskSpec) -> None:
    """Refuse tensors or modalities that are not the network's.

    Raises:
        InputError: the first that differs.
    """
    check_shapes(spec, checkpoint.shapes, checkpoint.path)
    if spec.in_channels != len(task.modalities):
        found = f"{len(task.modalities)} modalities ({', '.join(task.modalities)})"
        raise InputError(
            "modalities and network do not agree",
            where=checkpoint.path,
            wanted=f"{spec.in_channels}",
            found=found,
            todo="pass --modalities",
        )


def _guess_modalities(checkpoint: Checkpoint, inputs: int, known: Sequence[str]) -> tuple[str, ...]:
    """The modalities of a bare checkpoint, where data and number of inputs leave one answer."""
    guess = CHANNEL_MODALITIES.get(inputs, ())
    if len(known) == inputs and set(guess) == set(known):
        return guess
    raise UsageError(
        "the checkpoint does not say its modalities",
        where=checkpoint.path,
        wanted=f"{inputs} of {', '.join(known)}",
        todo="pass --modalities in the order of its input channels",
    )
