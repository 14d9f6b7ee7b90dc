"""What a training may be held to: for every tensor of its start that is not random, how strongly each of its entries counts.

By l2 every entry counts 1 (L2-SP; Li, Grandvalet, Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
Networks", ICML 2018). By fisher it counts its Fisher information (EWC; Kirkpatrick et al., "Overcoming catastrophic forgetting in
neural networks", PNAS 2017): a trained network's own diagonal; of a fusion, sum_t a_i^t F_i^t, the precision of the posterior whose
mode eq. 2 is (Lee et al., NeurIPS 2017, section 3.2). Input channels that no source has are free, and so is what `adapt` trained,
by fisher: nobody has estimated its information.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mergekit3d.checkpoints import Checkpoint, TaskSpec, open_checkpoint
from mergekit3d.engine.values import channel_of, read_fisher, sources_with
from mergekit3d.merging.partitions import BUFFERS
from mergekit3d.plan.fusion import FusionPlan
from mergekit3d.plan.network import Start, by_modality
from mergekit3d.plan.outcomes import ADAPTED, COPIED, EXPANDED, FUSED, RANDOM, ZERO, TensorPlan
from mergekit3d.plan.sources import open_fisher
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.recipe.models import SourceModel

FISHER = "fisher"


@dataclass(frozen=True)
class Anchors:
    """How strongly the entries of a start count.

    Args:
        weights: by tensor, of its shape or one that broadcasts to it, float32; None for 1 everywhere. Tensors left out are free.
        digests: of the Fisher diagonals that they come from.
    """

    weights: Mapping[str, np.ndarray | None]
    digests: tuple[str, ...] = ()


def fusion_anchors(plan: FusionPlan, by: str) -> Anchors:
    """The anchors of a fusion.

    Args:
        plan: of the fusion; by fisher, of a method that opened the sources' Fisher diagonals.
        by: l2 or fisher.
    """
    weigh = _summed_fisher if by == FISHER else _known_channels
    weights = {
        tensor.entry.name: weigh(plan, tensor)
        for tensor in plan.owners
        if tensor.outcome not in (RANDOM, ZERO)
        and tensor.entry.name.rpartition(".")[2] not in BUFFERS
        and (by != FISHER or tensor.has_fisher or (tensor.outcome == COPIED and tensor.origin != ADAPTED))
    }
    used = [source.fisher.digest for source in plan.sources if source.fisher is not None] if by == FISHER else []
    return Anchors(weights, tuple(used))


def _summed_fisher(plan: FusionPlan, tensor: TensorPlan) -> np.ndarray:
    """sum_t a_i^t F_i^t; of a tensor copied from one source, that source's F."""
    name = tensor.entry.name
    if tensor.outcome == COPIED:
        return next(read_fisher(source, name) for source in plan.sources if source.name == tensor.origin).astype(np.float32)
    assert tensor.group is not None
    row = plan.ratios.layers[tensor.group]
    total = np.zeros(tensor.entry.shape)
    if tensor.outcome == FUSED:
        for source, ratio in zip(plan.sources, row, strict=True):
            total += _by_channel(ratio, total.ndim) * read_fisher(source, name)
        return total.astype(np.float32)
    assert plan.task is not None
    for channel, modality in enumerate(plan.task.modalities):
        for index, source in sources_with(plan, modality, row):
            part = channel_of(read_fisher(source, name), source, modality)
            total[:, channel] += _by_channel(row[index], part.ndim) * part
    return total.astype(np.float32)


def _by_channel(ratio: object, axes: int) -> np.ndarray:
    """A ratio, or one an output channel, that broadcasts to a tensor of so many axes."""
    values = np.asarray(ratio, np.float64)
    return values.reshape(-1, *[1] * (axes - 1)) if values.ndim else values


def _known_channels(plan: FusionPlan, tensor: TensorPlan) -> np.ndarray | None:
    """1 for the input channels that a source has, 0 for the others; None where the tensor is known whole."""
    if tensor.outcome != EXPANDED:
        return None
    assert plan.task is not None
    assert tensor.group is not None
    row = plan.ratios.layers[tensor.group]
    return _mask([bool(sources_with(plan, modality, row)) for modality in plan.task.modalities], len(tensor.entry.shape))


def _mask(known: list[bool], axes: int) -> np.ndarray:
    return np.array(known, np.float32).reshape(1, -1, *[1] * (axes - 2))


def checkpoint_anchors(loaded: LoadedRecipe, path: Path, fisher: Path | None, start: Start, task: TaskSpec, by: str) -> Anchors:
    """The anchors of a checkpoint.

    Args:
        loaded: the recipe.
        path: the checkpoint that the start comes from.
        fisher: its Fisher diagonal; None for the one beside it.
        start: what became of its tensors.
        task: of the network to train.
        by: l2 or fisher.

    Raises:
        InputError: by fisher, the diagonal is missing, damaged or of other weights.
    """
    checkpoint = open_checkpoint(path)
    diagonal = None
    if by == FISHER:
        model = SourceModel(name="start", checkpoint=path.absolute(), fisher=None if fisher is None else fisher.absolute())
        diagonal = open_fisher(loaded, model, checkpoint)
    source = None if checkpoint.metadata is None else checkpoint.metadata.task
    weights = {
        name: _of_checkpoint(name, start, diagonal, source, task)
        for name in checkpoint.owners
        if start.outcomes.get(name) in (COPIED, EXPANDED) and name.rpartition(".")[2] not in BUFFERS
    }
    if diagonal is not None:
        diagonal.check_steady()
    return Anchors(weights, () if diagonal is None else (diagonal.digest,))


def _of_checkpoint(name: str, start: Start, diagonal: Checkpoint | None, source: TaskSpec | None, task: TaskSpec) -> np.ndarray | None:
    shape = start.values[name].shape
    if start.outcomes[name] == COPIED:
        return None if diagonal is None else diagonal.read(name).astype(np.float32)
    assert source is not None
    if diagonal is None:
        return _mask([modality in source.modalities for modality in task.modalities], len(shape))
    return by_modality(diagonal, name, np.zeros(shape, np.float32), source, task)
