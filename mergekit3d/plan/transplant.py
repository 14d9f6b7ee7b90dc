"""A trained or merged network that takes up a source's task again: its shared tensors with the source's private ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mergekit3d.architectures import check_shapes, stems_of
from mergekit3d.checkpoints import Checkpoint
from mergekit3d.errors import InputError
from mergekit3d.merging.partitions import SHARED
from mergekit3d.plan.network import Start, by_modality
from mergekit3d.plan.outcomes import COPIED, EXPANDED, FUSED, modalities_of
from mergekit3d.plan.sources import Source


def transplanted(checkpoint: Checkpoint, source: Source, partition_of: Mapping[str, str]) -> Start:
    """The shared tensors of a checkpoint (P of the paper) with the private ones of a source (S).

    Input channels go by the modalities' names; a channel that the checkpoint does not have is the source's.

    Args:
        checkpoint: merged or trained, of the source's architecture; its own inputs and outputs may be others.
        source: with its task and network.
        partition_of: shared or private for every name.

    Returns:
        A network of the source's task. Outcomes: fused (from the checkpoint), expanded (channels by modality), copied (the source's).

    Raises:
        InputError: the source does not say its network, or the checkpoint's tensors are not those of the source.
    """
    spec, own, theirs = source.network, source.checkpoint, checkpoint.entries
    if spec is None:
        raise InputError("the checkpoint does not say what it predicts", where=own.path, wanted="its architecture")
    check_shapes(spec, own.shapes, own.path)
    odd = sorted(set(own.entries) ^ set(theirs))
    if odd:
        found = f"{len(odd)} names differ: {odd[0]}"
        raise InputError(
            "the checkpoint is of another network", where=checkpoint.path, wanted=f"the tensors of {source.name!r}", found=found
        )
    taking = stems_of(spec, own.shapes)
    task = None if checkpoint.metadata is None else checkpoint.metadata.task
    values: dict[str, np.ndarray] = {}
    outcomes: dict[str, str] = {}
    for name, entry in own.entries.items():
        other_inputs = name in taking and task is not None and task.modalities != modalities_of(source)
        if partition_of[name] != SHARED:
            values[name], outcomes[name] = own.read(name).copy(), COPIED
        elif other_inputs and task is not None and source.task is not None and _fits(theirs[name].shape, entry.shape, task.modalities):
            values[name], outcomes[name] = by_modality(checkpoint, name, own.read(name), task, source.task), EXPANDED
        elif theirs[name].shape == entry.shape and not other_inputs:
            values[name], outcomes[name] = checkpoint.read(name).copy(), FUSED
        else:
            raise InputError(
                "the checkpoint does not fit the source",
                where=checkpoint.path,
                wanted=f"{name} {list(entry.shape)}, as in {source.name!r}",
                found=list(theirs[name].shape),
                todo="name it in partitions.private (--private), or give checkpoints of one architecture",
            )
    for file in (own, checkpoint):
        file.check_steady()
    return Start(spec, values, outcomes, {"shared": checkpoint.digest, "private": own.digest})


def _fits(found: tuple[int, ...], wanted: tuple[int, ...], modalities: tuple[str, ...]) -> bool:
    """Whether an input weight has a channel for each of its modalities, and differs from the one wanted in their number alone."""
    return found[1] == len(modalities) and (found[0], *found[2:]) == (wanted[0], *wanted[2:])
