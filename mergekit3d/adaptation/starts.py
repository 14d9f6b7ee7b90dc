"""Ratios to start from that even out the scales of the Fisher diagonals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit3d.adaptation.fused_weights import SharedTensor


def inverse_trace_ratios(tensors: Sequence[SharedTensor]) -> dict[str, list[float]]:
    """Ratios that weigh every source as if its Fisher diagonal had the same trace in a group.

    Args:
        tensors: the shared tensors with their Fisher diagonals.

    Returns:
        For every group, a^t proportional to 1 / sum F^t; uniform where a source has no information at all.
    """
    traces: dict[str, Tensor] = {}
    for tensor in tensors:
        if tensor.fishers is not None:
            trace = tensor.fishers.double().flatten(1).sum(dim=1)
            traces[tensor.group] = traces.get(tensor.group, 0) + trace
    rows = {}
    for group, trace in traces.items():
        inverse = torch.ones_like(trace) if bool((trace <= 0).any()) else trace.min() / trace
        rows[group] = [float(value) for value in inverse / inverse.sum()]
    return rows
