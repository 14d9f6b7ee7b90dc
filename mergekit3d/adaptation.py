"""The shared weights of a network as a function of delta: eq. 2 and 3 forward, their closed-form gradient backward.

The shared parameters are views of one flat buffer that the fusion fills before each forward pass; their gradients gather in a
second flat buffer, from which the gradient of delta follows without a graph through the fusion. Only delta and the private
tensors are ever optimised.

Source: Geyer, Corinzia, Wegmayr, MIDL 2019, adaptation stage. What differs: gradients in closed form, which is exact and spares
the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from mergekit3d.merging.fusion import fuse_relative, ratio_gradient, relative_fisher
from mergekit3d.merging.ratios import delta_gradient, mixing_ratios


@dataclass(frozen=True)
class SharedTensor:
    """One shared tensor of the sources.

    Args:
        name: parameter name in the network.
        group: name of the group whose ratios it uses.
        thetas: weights, (sources, *shape).
        fishers: Fisher diagonals, (sources, *shape); None for F = 1.
    """

    name: str
    group: str
    thetas: Tensor
    fishers: Tensor | None


@dataclass(frozen=True)
class _Segment:
    """A shared tensor's place: rows are output channels where ratios are by kernel, else there is one row."""

    weights: Tensor
    gradient: Tensor
    thetas: tuple[Tensor, ...]
    phis: tuple[Tensor, ...] | None
    columns: slice


class FusedWeights:
    """Shared parameters of a network, fused from N sources by ratios that can be learned.

    Args:
        network: the network, on its device; its parameters of the names given become views of one buffer.
        tensors: the shared tensors, in the network's order.
        by_kernel: one ratio an output channel in place of one a group.
        initial_ratios: where the ratios of each group start, one number a source; None for uniform.

    Attributes:
        delta: (sources, ratios) parameter, the unconstrained form of the ratios (eq. 3).
    """

    def __init__(
        self,
        network: nn.Module,
        tensors: Sequence[SharedTensor],
        *,
        by_kernel: bool = False,
        initial_ratios: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        parameters = dict(network.named_parameters())
        first = next(iter(parameters.values()))
        device, dtype = first.device, first.dtype
        self.groups = list(dict.fromkeys(tensor.group for tensor in tensors))
        widths = {tensor.group: tensor.thetas.shape[1] if by_kernel else 1 for tensor in reversed(tensors)}
        starts = dict(zip(self.groups, accumulate((widths[group] for group in self.groups), initial=0), strict=False))
        self.columns = {group: slice(starts[group], starts[group] + widths[group]) for group in self.groups}
        self.by_kernel = by_kernel
        size = sum(math.prod(tensor.thetas.shape[1:]) for tensor in tensors)
        self.buffer = torch.zeros(size, device=device, dtype=dtype)
        self.gradient = torch.zeros(size, device=device, dtype=dtype)
        self._segments: list[_Segment] = []
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []
        start = 0
        for tensor in tensors:
            parameter = parameters[tensor.name]
            place = slice(start, start + parameter.numel())
            start += parameter.numel()
            parameter.data = self.buffer[place].view(parameter.shape)
            self._gradients.append((parameter, self.gradient[place].view(parameter.shape)))
            self._segments.append(self._segment(tensor, place))
        sources = tensors[0].thetas.shape[0]
        self.delta = nn.Parameter(torch.zeros(sources, sum(widths.values()), device=device, dtype=dtype))
        if initial_ratios is not None:
            for group, row in initial_ratios.items():
                self.delta.data[:, self.columns[group]] = delta_of_ratios(torch.tensor(row, device=device, dtype=dtype))[:, None]
        self._normalisers: list[Tensor | float] = []
        self._ratios = self.ratios()

    def _segment(self, tensor: SharedTensor, place: slice) -> _Segment:
        device, dtype = self.buffer.device, self.buffer.dtype
        rows = tensor.thetas.shape[1] if self.by_kernel else 1
        thetas = tuple(theta.to(device, dtype).reshape(rows, -1) for theta in tensor.thetas)
        phis = None
        if tensor.fishers is not None:
            fishers = [fisher.to(device, dtype).reshape(rows, -1) for fisher in tensor.fishers]
            phis = tuple(relative_fisher(fishers))
        return _Segment(self.buffer[place].view(rows, -1), self.gradient[place].view(rows, -1), thetas, phis, self.columns[tensor.group])

    def ratios(self) -> Tensor:
        """The mixing ratios as they stand, (sources, ratios), detached."""
        ratios: Tensor = mixing_ratios(self.delta.detach())
        return ratios

    def ratios_by_group(self) -> dict[str, list[float] | list[list[float]]]:
        """The ratios of every group, one number a source (by kernel: one list a source), as ratios.json holds them."""
        ratios = self.ratios().cpu()
        if self.by_kernel:
            return {group: ratios[:, columns].tolist() for group, columns in self.columns.items()}
        return {group: ratios[:, columns.start].tolist() for group, columns in self.columns.items()}

    @torch.no_grad()
    def fuse(self) -> None:
        """Fill the network's shared parameters from the ratios as they stand, and clear their gradients."""
        self._ratios = self.ratios()
        self._normalisers = []
        for segment in self._segments:
            fused, normaliser = fuse_relative(segment.thetas, segment.phis, self._rows(segment))
            segment.weights.copy_(fused)
            self._normalisers.append(normaliser)
        self.gradient.zero_()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    def _rows(self, segment: _Segment) -> list[Tensor]:
        columns = self._ratios[:, segment.columns]
        return [row[:, None] if self.by_kernel else row[0] for row in columns]

    @torch.no_grad()
    def backward(self) -> None:
        """Set the gradient of delta from the gradients that the last backward pass left on the shared parameters."""
        gradient = torch.zeros_like(self.delta)
        for segment, normaliser in zip(self._segments, self._normalisers, strict=True):
            summands = ratio_gradient(segment.gradient, segment.weights, segment.thetas, segment.phis, normaliser)
            gradient[:, segment.columns] += torch.stack([summand.sum(dim=1) for summand in summands])
        self.delta.grad = delta_gradient(self.delta.detach(), self._ratios, gradient)


def delta_of_ratios(ratios: Tensor) -> Tensor:
    """A delta whose mixing ratios are those given: eq. 3 inverted, with the largest sigmoid at 1/2 (so that uniform is 0).

    Args:
        ratios: (sources,) positive; a ratio of 0 is taken as 1e-6 of the largest.

    Returns:
        delta, (sources,).
    """
    relative = (ratios / ratios.max()).clamp_min(1e-6)
    return torch.logit(relative / 2)


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
