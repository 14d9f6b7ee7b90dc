"""From the plan of a fusion to weights that follow learned ratios, and back to what ``fuse`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergekit3d.adaptation.fused_weights import FusedWeights, SharedTensor
from mergekit3d.adaptation.penalties import RatioPenalty
from mergekit3d.adaptation.starts import inverse_trace_ratios
from mergekit3d.engine.combining import widened
from mergekit3d.engine.values import read_fisher, tensor_values
from mergekit3d.errors import RecipeError
from mergekit3d.merging.partitions import BUFFERS
from mergekit3d.plan.fusion import FusionPlan
from mergekit3d.plan.outcomes import FUSED, TensorPlan
from mergekit3d.plan.ratios import GroupRatios, Ratios

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mergekit3d.recipe.models import AdaptModel


def shared_names(plan: FusionPlan) -> set[str]:
    """Names of the tensors that the ratios decide: P. What is expanded or random trains with S, running statistics follow the data."""
    return {tensor.entry.name for tensor in _learned(plan)}


def fused_weights(network: nn.Module, plan: FusionPlan, settings: AdaptModel, start: Ratios) -> FusedWeights:
    """The network's shared parameters as a function of delta.

    Args:
        network: on its device.
        plan: of the fusion.
        settings: trace normalisation and penalty.
        start: the ratios to start from, of every group.

    Raises:
        RecipeError: a buffer is among the shared tensors.
    """
    parameters = {name for name, _ in network.named_parameters()}
    for name in shared_names(plan) - parameters:
        raise RecipeError("a buffer cannot be adapted", where=name, todo="let partitions.private name it")
    tensors = [_shared_tensor(plan, tensor) for tensor in _learned(plan)]
    plan.check_steady()
    groups = {tensor.group for tensor in tensors}
    # A layer of expanded tensors alone has nothing to learn.
    initial: dict[str, GroupRatios] = {group: row for group, row in start.layers.items() if group in groups}
    if settings.normalise_fisher:
        scales = inverse_trace_ratios(tensors)
        initial = {group: _rescaled(row, scales[group]) if group in scales else row for group, row in initial.items()}
    penalty = None if settings.regularise is None else RatioPenalty(settings.regularise.by, settings.regularise.strength)
    return FusedWeights(network, tensors, by_kernel=plan.ratios.granularity == "kernel", initial_ratios=initial, penalty=penalty)


def as_fused(plan: FusionPlan, ratios: Ratios) -> dict[str, Tensor]:
    """The shared tensors, under all names, as the command ``fuse`` writes them, to the bit; those trained with differ by rounding."""
    values = tensor_values(replace(plan, ratios=ratios))
    fused = {tensor.entry.name: torch.from_numpy(values(tensor.entry)) for tensor in _learned(plan)}
    plan.check_steady()
    return fused | {tensor.entry.name: fused[tensor.alias_of] for tensor in plan.tensors if tensor.alias_of in fused}


def log_columns(fused: FusedWeights, sources: Sequence[str]) -> dict[str, float]:
    """Columns of log.csv: the ratio of every group and source (by kernel: its mean), and the penalty where there is one."""
    columns = {
        f"ratio_{group}_{source}": float(np.mean(np.asarray(value)))
        for group, row in fused.ratios_by_group().items()
        for source, value in zip(sources, row, strict=True)
    }
    return columns if fused.penalty is None else {"ratio_penalty": fused.penalty.value(fused.ratios()), **columns}


def _learned(plan: FusionPlan) -> list[TensorPlan]:
    fused = [tensor for tensor in plan.owners if tensor.outcome == FUSED]
    return [tensor for tensor in fused if tensor.entry.name.rpartition(".")[2] not in BUFFERS]


def _rescaled(row: GroupRatios, scales: Sequence[float]) -> GroupRatios:
    scaled: Any = (np.asarray(row).T * np.asarray(scales)).T
    return list((scaled / scaled.sum(axis=0)).tolist())


def _shared_tensor(plan: FusionPlan, tensor: TensorPlan) -> SharedTensor:
    name = tensor.entry.name
    assert tensor.group is not None
    thetas = np.stack([widened(source.checkpoint.read(name)) for source in plan.sources])
    fishers = np.stack([read_fisher(source, name) for source in plan.sources]) if tensor.has_fisher else None
    return SharedTensor(name, tensor.group, torch.from_numpy(thetas), None if fishers is None else torch.from_numpy(fishers))
