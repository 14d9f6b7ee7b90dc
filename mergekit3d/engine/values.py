"""The tensors of a fusion plan computed in memory, one whole tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mergekit3d.architectures import architecture
from mergekit3d.architectures.initialise import initial_tensor
from mergekit3d.checkpoints import TensorEntry
from mergekit3d.engine.combining import PIECE_ENTRIES, arithmetic_dtype, combiner, cuts, surveys_of, widened
from mergekit3d.merging.partitions import kinds
from mergekit3d.plan.fusion import FusionPlan
from mergekit3d.plan.outcomes import COPIED, EXPANDED, FUSED, ZERO, TensorPlan, modalities_of
from mergekit3d.plan.ratios import GroupRatios
from mergekit3d.plan.sources import Source


def tensor_values(plan: FusionPlan) -> Callable[[TensorEntry], np.ndarray]:
    """A function that computes any output tensor of a plan, in the shape of its entry and a dtype wide enough for it."""
    by_name = {tensor.entry.name: tensor for tensor in plan.tensors}
    kind_of = kinds(plan.shapes)
    biases = {} if plan.network is None else architecture(plan.network.name).initial_biases

    def values(entry: TensorEntry) -> np.ndarray:
        tensor = by_name[entry.name]
        if tensor.alias_of is not None:
            tensor = by_name[tensor.alias_of]
        name, shape = tensor.entry.name, tensor.entry.shape
        if tensor.outcome == FUSED:
            return _fused(plan, tensor)
        if tensor.outcome == COPIED:
            return _copied(plan, tensor)
        random = initial_tensor(name, shape, kind_of[name], plan.seed, biases)
        if tensor.outcome == ZERO:
            return np.zeros_like(random)
        return _expanded(plan, tensor, random) if tensor.outcome == EXPANDED else random

    return values


def read_fisher(source: Source, name: str) -> np.ndarray:
    """A tensor of a source's Fisher diagonal, float32 or wider."""
    assert source.fisher is not None
    return widened(source.fisher.read(name))


def combine(
    plan: FusionPlan,
    name: str,
    thetas: Sequence[np.ndarray],
    fishers: Sequence[np.ndarray] | None,
    base: np.ndarray | None,
    row: GroupRatios,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """One tensor of several sources combined by the plan's method.

    Args:
        plan: whose method combines.
        name: of the tensor.
        thetas: weights, one array a source, all of one shape, float32 or float64.
        fishers: Fisher diagonals, or None for F = 1.
        base: weights of the base, or None.
        row: one number a source, or one list over the output channels a source.
        names: of the sources; by default all of the plan.

    Returns:
        The combined weights, of the same shape.
    """
    shape = thetas[0].shape
    dtype = np.result_type(*thetas)
    of_tensor = combiner(plan, name, shape, dtype, row, names)
    flat = [thetas[index].reshape(-1) for index in of_tensor.active]
    known = None if fishers is None else [fishers[index].reshape(-1) for index in of_tensor.active]
    flat_base = None if base is None else base.reshape(-1)
    surveys = surveys_of(plan, [_reader(theta) for theta in flat], None if flat_base is None else _reader(flat_base))
    of_tensor = replace(of_tensor, surveys=surveys)
    result = np.empty(flat[0].size, dtype)
    for piece in cuts(result.size, PIECE_ENTRIES):
        taken = None if known is None else [fisher[piece] for fisher in known]
        of_base = None if flat_base is None else flat_base[piece]
        result[piece] = of_tensor.combine(piece.start, [theta[piece] for theta in flat], taken, of_base).values
    return result.reshape(shape)


def _reader(values: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: values


def _fused(plan: FusionPlan, tensor: TensorPlan) -> np.ndarray:
    name = tensor.entry.name
    thetas = [widened(source.checkpoint.read(name)) for source in plan.sources]
    fishers = [read_fisher(source, name) for source in plan.sources] if tensor.has_fisher else None
    base = None if plan.base is None else widened(plan.base.checkpoint.read(name))
    assert tensor.group is not None
    return combine(plan, name, thetas, fishers, base, plan.ratios.layers[tensor.group])


def _expanded(plan: FusionPlan, tensor: TensorPlan, random: np.ndarray) -> np.ndarray:
    """Input channels matched by modality name: each is fused over the sources that have it, and random where none has."""
    name, group = tensor.entry.name, tensor.group
    assert plan.task is not None
    assert group is not None
    row = plan.ratios.layers[group]
    values = random.astype(arithmetic_dtype([source.checkpoint.entries[name].dtype for source in plan.sources]))
    for channel, modality in enumerate(plan.task.modalities):
        having = sources_with(plan, modality, row)
        if not having or (plan.base is not None and modality not in modalities_of(plan.base)):
            continue
        thetas = [channel_of(source.checkpoint.read(name), source, modality) for _, source in having]
        fishers = [channel_of(read_fisher(source, name), source, modality) for _, source in having] if tensor.has_fisher else None
        base = None if plan.base is None else channel_of(plan.base.checkpoint.read(name), plan.base, modality)
        ratios: Any = [row[index] for index, _ in having]
        values[:, channel] = combine(plan, f"{name}\0{modality}", thetas, fishers, base, ratios, [source.name for _, source in having])
    return values


def sources_with(plan: FusionPlan, modality: str, row: GroupRatios) -> list[tuple[int, Source]]:
    """The sources, by number, that an input channel is fused from: they have the modality, and a ratio."""
    return [
        (index, source)
        for index, source in enumerate(plan.sources)
        if modality in modalities_of(source) and np.any(np.asarray(row[index]) != 0)
    ]


def channel_of(values: np.ndarray, source: Source, modality: str) -> np.ndarray:
    """The input channel of a modality, (out, X, Y, Z), of a source's tensor."""
    return np.ascontiguousarray(widened(values)[:, modalities_of(source).index(modality)])


def _copied(plan: FusionPlan, tensor: TensorPlan) -> np.ndarray:
    for source in plan.sources:
        if source.name == tensor.origin:
            return source.checkpoint.read(tensor.entry.name)
    assert plan.adapted is not None
    return plan.adapted.read(tensor.entry.name)
