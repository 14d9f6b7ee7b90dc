"""Drop-transfer: a dropout whose zero point is the weights of the task before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class DropTransfer:
    """In a step, some output channels of every layer take the weights that they had at the start, and the others make up for it.

        theta' = theta_start                                      where the channel is dropped (with probability p)
        theta' = theta / (1 - p) - p / (1 - p) theta_start        elsewhere, so that the expectation of theta' is theta.

    Masks come from torch's generator on the CPU, which the loop seeds for every step.

    Args:
        layers: of each layer, its parameters with the axis that runs over the output channels. As they are now is their start.
        rate: p, above 0 and below 1.

    Source: Lee et al., NeurIPS 2017, section 4, drop-transfer. What differs: a node is an output channel of a convolution, and a
    mask holds for a step as in the equation, where the authors' code draws one a sample.
    """

    def __init__(self, layers: Sequence[Sequence[tuple[nn.Parameter, int]]], rate: float) -> None:
        self.rate = rate
        self._sizes = [layer[0][0].shape[layer[0][1]] for layer in layers]
        self._parameters: list[Tensor] = [parameter for layer in layers for parameter, _ in layer]
        self._places = [(number, axis) for number, layer in enumerate(layers) for _, axis in layer]
        self._starts = [parameter.detach().clone() for parameter in self._parameters]
        self._kept = [torch.empty_like(start) for start in self._starts]
        self._scales: list[Tensor] = []

    @torch.no_grad()
    def drop(self) -> None:
        """Draw the masks of a step and put theta' in the place of theta."""
        masks = (torch.rand(sum(self._sizes)) >= self.rate) / (1 - self.rate)
        by_layer = torch.split(masks.to(self._parameters[0]), self._sizes)
        self._scales = [
            by_layer[number].view([-1 if axis == at else 1 for axis in range(parameter.ndim)])
            for parameter, (number, at) in zip(self._parameters, self._places, strict=True)
        ]
        torch._foreach_copy_(self._kept, self._parameters)
        for parameter, start, scale in zip(self._parameters, self._starts, self._scales, strict=True):
            parameter.sub_(start).mul_(scale).add_(start)

    @torch.no_grad()
    def restore(self) -> None:
        """Put theta back, bit for bit, and turn the gradient of theta' into that of theta: chain rule."""
        torch._foreach_copy_(self._parameters, self._kept)
        for parameter, scale in zip(self._parameters, self._scales, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(scale)


def channel_axes(network: nn.Module, names: Sequence[str]) -> list[list[tuple[nn.Parameter, int]]]:
    """The parameters of layers by name, with the axis of their output channels: 0, but 1 in transposed convolutions.

    Args:
        network: the network.
        names: of weights and biases. Layers that share their parameters count once.

    Returns:
        A list a layer, as `DropTransfer` takes it.
    """
    wanted, seen, layers = set(names), set[int](), []
    for prefix, module in network.named_modules():
        transposed = isinstance(module, TRANSPOSED)
        layer = []
        for leaf, parameter in module.named_parameters(recurse=False):
            if f"{prefix}.{leaf}".lstrip(".") in wanted and id(parameter) not in seen:
                seen.add(id(parameter))
                layer.append((parameter, 1 if transposed and parameter.ndim > 1 else 0))
        if layer:
            layers.append(layer)
    return layers
