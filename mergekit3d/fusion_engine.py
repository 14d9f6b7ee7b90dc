"""Carrying out a fusion plan: one output tensor at a time, in pieces small enough for the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mergekit3d.architectures import architecture
from mergekit3d.architectures.initialise import initial_tensor
from mergekit3d.checkpoints import TensorEntry
from mergekit3d.merging.partitions import kinds
from mergekit3d.plan.fusion import COPIED, EXPANDED, FUSED, ZERO, FusionPlan, TensorPlan
from mergekit3d.plan.ratios import GroupRatios
from mergekit3d.plan.sources import Source

PIECE_ENTRIES = 1 << 17


def tensor_values(plan: FusionPlan) -> Callable[[TensorEntry], np.ndarray]:
    """A function that computes any output tensor of a plan; see `write_stream`."""
    by_name = {tensor.entry.name: tensor for tensor in plan.tensors}
    kind_of = kinds(plan.shapes)
    biases = {} if plan.network is None else architecture(plan.network.name).initial_biases

    def values(entry: TensorEntry) -> np.ndarray:
        tensor = by_name[entry.name]
        if tensor.outcome == FUSED:
            return _fused(plan, tensor)
        if tensor.outcome == COPIED:
            return _copied(plan, tensor)
        random = initial_tensor(entry.name, entry.shape, kind_of[entry.name], plan.seed, biases)
        if tensor.outcome == ZERO:
            return np.zeros_like(random)
        return _expanded(plan, tensor, random) if tensor.outcome == EXPANDED else random

    return values


def _fused(plan: FusionPlan, tensor: TensorPlan) -> np.ndarray:
    name = tensor.entry.name
    thetas = [widened(source.checkpoint.read(name)) for source in plan.sources]
    fishers = [_fisher(source, name) for source in plan.sources] if plan.method.uses_fisher else None
    assert tensor.group is not None
    return combine(plan, thetas, fishers, plan.ratios.layers[tensor.group])


def combine(plan: FusionPlan, thetas: Sequence[np.ndarray], fishers: Sequence[np.ndarray] | None, ratios: GroupRatios) -> np.ndarray:
    """One tensor of several sources combined by the plan's method, piece by piece.

    Args:
        plan: whose method combines.
        thetas: weights, one array a source, of one shape and dtype.
        fishers: Fisher diagonals, or None.
        ratios: one number a source, or one list over the output channels a source.

    Returns:
        The combined weights, of the same shape and dtype.
    """
    active = [index for index, ratio in enumerate(ratios) if np.any(np.asarray(ratio) > 0)]
    thetas = [thetas[index] for index in active]
    chosen = None if fishers is None else [fishers[index].astype(thetas[0].dtype, copy=False) for index in active]
    shape = thetas[0].shape
    kernels = [np.asarray(ratios[index], thetas[0].dtype) for index in active]
    columns = [kernel.reshape(-1, *[1] * (len(shape) - 1)) if kernel.ndim else kernel for kernel in kernels]
    if all(kernel.ndim == 0 for kernel in kernels):
        # One ratio for the whole tensor: its axes do not matter, so that pieces can be of any size.
        thetas = [theta.reshape(-1) for theta in thetas]
        chosen = None if chosen is None else [fisher.reshape(-1) for fisher in chosen]
    result = np.empty(thetas[0].shape, thetas[0].dtype)
    rows = max(1, PIECE_ENTRIES * len(result) // max(result.size, 1)) if result.ndim else 1
    for start in range(0, len(result) if result.ndim else 1, rows):
        piece = slice(start, start + rows) if result.ndim else ...
        result[piece] = plan.method.combine(
            [theta[piece] for theta in thetas],
            None if chosen is None else [fisher[piece] for fisher in chosen],
            [column[piece] if column.ndim else column for column in columns],
        )
    return result.reshape(shape)


def _expanded(plan: FusionPlan, tensor: TensorPlan, random: np.ndarray) -> np.ndarray:
    """Input channels matched by modality name: each is fused over the sources that have it, and random where none has."""
    name, group = tensor.entry.name, tensor.group
    assert plan.task is not None
    assert group is not None
    values = random
    for channel, modality in enumerate(plan.task.modalities):
        having = [
            (index, source)
            for index, source in enumerate(plan.sources)
            if source.task is not None and modality in source.task.modalities and plan.ratios.layers[group][index] != 0
        ]
        if not having:
            continue
        positions = [source.task.modalities.index(modality) for _, source in having if source.task is not None]
        thetas = [
            np.ascontiguousarray(widened(source.checkpoint.read(name))[:, at]) for (_, source), at in zip(having, positions, strict=True)
        ]
        fishers = None
        if plan.method.uses_fisher:
            fishers = [np.ascontiguousarray(_fisher(source, name)[:, at]) for (_, source), at in zip(having, positions, strict=True)]
        row: Any = [plan.ratios.layers[group][index] for index, _ in having]
        values[:, channel] = combine(plan, thetas, fishers, row)
    return values


def _copied(plan: FusionPlan, tensor: TensorPlan) -> np.ndarray:
    for source in plan.sources:
        if source.name == tensor.origin:
            return source.checkpoint.read(tensor.entry.name)
    assert plan.adapted is not None
    return plan.adapted.read(tensor.entry.name)


def _fisher(source: Source, name: str) -> np.ndarray:
    assert source.fisher is not None
    return widened(source.fisher.read(name))


def widened(values: np.ndarray) -> np.ndarray:
    """float32 or wider: fusion never computes in half precision."""
    return values.astype(np.float32) if values.dtype.itemsize < 4 else values
