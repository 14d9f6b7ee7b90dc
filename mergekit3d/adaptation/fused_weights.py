"""The shared weights of a network as a function of delta: eq. 2 and 3 forward, their closed-form gradient backward.

The shared parameters are views of one flat buffer that the fusion fills before each forward pass; the gradient of delta follows from
the gradients that the backward pass leaves on them, without a graph through the fusion. Only delta and the private tensors are ever
optimised.

Source: Geyer, Corinzia, Wegmayr, MIDL 2019, adaptation stage. What differs: gradients in closed form, which is exact and spares
the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from mergekit3d.adaptation.blocks import Block, make_block
from mergekit3d.adaptation.penalties import RatioPenalty
from mergekit3d.merging.fusion import relative_fisher
from mergekit3d.merging.ratios import delta_gradient, mixing_ratios
from mergekit3d.plan.ratios import GroupRatios

SMALL_ENTRIES = 4096
"""A tensor of fewer is computed together with others."""


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


class FusedWeights:
    """Shared parameters of a network, fused from N sources by ratios that can be learned.

    A step is `fuse`, any number of forward and backward passes, `backward`. Where several processes each take a part of a step's
    samples, the sum of their gradients of delta is that of the whole step, since it is linear in the gradients of the weights.

    Args:
        network: the network, on its device; its parameters of the names given become views of one buffer.
        tensors: the shared tensors, in the network's order; not kept.
        by_kernel: one ratio an output channel in place of one a group.
        initial_ratios: where the ratios of each group start, one number a source, or one list over output channels; None: uniform.
        penalty: on the ratios, which `add_penalty` adds to the gradient of delta.

    Attributes:
        delta: (sources, ratios) parameter, the unconstrained form of the ratios (eq. 3).
        columns: the ratios of every group.
        buffer: the shared weights, flat.
    """

    def __init__(
        self,
        network: nn.Module,
        tensors: Sequence[SharedTensor],
        *,
        by_kernel: bool = False,
        initial_ratios: Mapping[str, GroupRatios] | None = None,
        penalty: RatioPenalty | None = None,
    ) -> None:
        self.by_kernel, self.penalty = by_kernel, penalty
        self.groups = list(dict.fromkeys(tensor.group for tensor in tensors))
        widths = {tensor.group: tensor.thetas.shape[1] if by_kernel else 1 for tensor in reversed(tensors)}
        starts = dict(zip(self.groups, accumulate((widths[group] for group in self.groups), initial=0), strict=False))
        self.columns = {group: slice(starts[group], starts[group] + widths[group]) for group in self.groups}
        self._parameters = [network.get_parameter(tensor.name) for tensor in tensors]
        first = self._parameters[0]
        sources = tensors[0].thetas.shape[0]
        self.delta = nn.Parameter(torch.zeros(sources, sum(widths.values()), device=first.device, dtype=first.dtype))
        for group, row in (initial_ratios or {}).items():
            start = delta_of_ratios(torch.tensor(row, dtype=torch.float64)).to(self.delta)
            self.delta.data[:, self.columns[group]] = start if start.ndim > 1 else start[:, None]
        self._ratios = self.ratios()
        self._blocks, self._members = self._make_blocks(tensors)

    def _make_blocks(self, tensors: Sequence[SharedTensor]) -> tuple[list[Block], list[list[nn.Parameter]]]:
        """A block for every large tensor, and one for all small ones together, since every operation costs some time of its own."""
        small = [number for number, parameter in enumerate(self._parameters) if parameter.numel() < SMALL_ENTRIES]
        members = [[number] for number in range(len(tensors)) if number not in small] + ([small] if small else [])
        first = self._parameters[0]
        self.buffer = torch.zeros(sum(parameter.numel() for parameter in self._parameters), device=first.device, dtype=first.dtype)
        blocks, start = [], 0
        for block in members:
            size = sum(self._parameters[number].numel() for number in block)
            rows = (tensors[block[0]].thetas.shape[1] if self.by_kernel else 1) if block is not small else size
            place = self.buffer[start : start + size].view(rows, -1)
            blocks.append(self._make_block([tensors[number] for number in block], place))
            for number in block:
                parameter = self._parameters[number]
                parameter.data = self.buffer[start : start + parameter.numel()].view(parameter.shape)
                start += parameter.numel()
        return blocks, [[self._parameters[number] for number in block] for block in members]

    def _make_block(self, tensors: Sequence[SharedTensor], weights: Tensor) -> Block:
        """A block of some tensors, one after the other; weights: (rows, entries) of the buffer."""
        columns = torch.cat(
            [self._columns_of(tensor, weights.shape[0] if len(tensors) == 1 else tensor.thetas[0].numel()) for tensor in tensors]
        )

        def together(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat([part.flatten() for part in parts]).to(weights).view_as(weights)

        sources = range(len(self.delta))
        thetas = [together([tensor.thetas[source] for tensor in tensors]) for source in sources]
        phis = None
        if tensors[0].fishers is not None:
            known = [tensor.fishers for tensor in tensors if tensor.fishers is not None]
            phis = relative_fisher([together([fishers[source] for fishers in known]) for source in sources])
        return make_block(weights, thetas, phis, columns.to(weights.device))

    def _columns_of(self, tensor: SharedTensor, rows: int) -> Tensor:
        """Which ratio each of so many equal parts of a tensor uses."""
        own = self.columns[tensor.group]
        return torch.arange(own.start, own.stop).repeat_interleave(rows // (own.stop - own.start))

    def ratios(self) -> Tensor:
        """The mixing ratios as they stand, (sources, ratios), detached."""
        ratios: Tensor = mixing_ratios(self.delta.detach())
        return ratios

    def ratios_by_group(self, delta: Tensor | None = None) -> dict[str, list[float] | list[list[float]]]:
        """The ratios of every group, one number a source (by kernel: one list a source), as ratios.json holds them.

        Args:
            delta: of an earlier time; left out: as it stands.
        """
        ratios = mixing_ratios(self.delta.detach().cpu() if delta is None else delta.cpu())
        if self.by_kernel:
            return {group: ratios[:, columns].tolist() for group, columns in self.columns.items()}
        return {group: ratios[:, columns.start].tolist() for group, columns in self.columns.items()}

    @torch.no_grad()
    def fuse(self) -> None:
        """Fill the network's shared parameters from the ratios as they stand, and drop their gradients."""
        self._ratios = self.ratios()
        for block in self._blocks:
            block.fuse(self._ratios)
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def backward(self) -> None:
        """Set the gradient of delta from the gradients that the backward passes since `fuse` left on the shared parameters.

        It is linear in them: where several processes have a part of a step each, theirs of delta add up to that of the step, with some
        thousand times less to send than those of the shared parameters.
        """
        gradient = torch.zeros_like(self.delta)
        for block, members in zip(self._blocks, self._members, strict=True):
            parts = [torch.zeros_like(part).flatten() if part.grad is None else part.grad.flatten() for part in members]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            block.add_ratio_gradient(whole.view(len(block.columns), -1), self._ratios, gradient)
        self.delta.grad = delta_gradient(self.delta.detach(), self._ratios, gradient)

    @torch.no_grad()
    def add_penalty(self) -> None:
        """Add the gradient of the penalty, where there is one, to that of delta."""
        if self.penalty is not None and self.delta.grad is not None:
            self.delta.grad += delta_gradient(self.delta.detach(), self._ratios, self.penalty.gradient(self._ratios))


def delta_of_ratios(ratios: Tensor) -> Tensor:
    """A delta whose mixing ratios are those given: eq. 3 inverted, with the largest sigmoid at 1/2 (so that uniform is 0).

    Args:
        ratios: (sources, ...) positive; a ratio of 0 is taken as 1e-6 of the largest.

    Returns:
        delta, of the same shape.
    """
    relative = (ratios / ratios.amax(dim=0, keepdim=True)).clamp_min(1e-6)
    return torch.logit(relative / 2)
