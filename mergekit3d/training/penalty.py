"""A quadratic pull back to the weights that a training starts from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Penalty:
    """1/2 strength sum_i w_i (theta_i - start_i)^2, whose gradient strength w (theta - start) is added in closed form, without a graph.

    Args:
        parameters: as they are at the start, which is remembered.
        weights: w, one tensor a parameter, broadcastable to it; None for 1.
        strength: of the whole.

    Source: EWC (Kirkpatrick et al., PNAS 2017, eq. 3) with the Fisher diagonal for w; L2-SP (Li, Grandvalet, Davoine, ICML 2018) and
    L2-transfer (Lee et al., NeurIPS 2017, section 4) with 1; Lee et al. leave the 1/2 out, so that their strength is half of this one.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], weights: Sequence[Tensor | None], strength: float) -> None:
        both = list(zip(parameters, weights, strict=True))
        self.strength = strength
        self._plain = [(parameter, parameter.detach().clone()) for parameter, weight in both if weight is None]
        self._weighted = [
            (parameter, parameter.detach().clone(), weight.to(parameter).expand_as(parameter).contiguous())
            for parameter, weight in both
            if weight is not None
        ]

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the penalty's gradient to that of the loss; a parameter without a gradient has not moved."""
        plain = [(part[0], part[1], part[0].grad) for part in self._plain if part[0].grad is not None]
        if plain:
            parameters, starts, gradients = map(list, zip(*plain, strict=True))
            moved = torch._foreach_sub(parameters, starts)  # noqa: SLF001  one pass over all; torch has no public name for it
            torch._foreach_add_(gradients, moved, alpha=self.strength)
        weighted = [(*part, part[0].grad) for part in self._weighted if part[0].grad is not None]
        if weighted:
            parameters, starts, weights, gradients = map(list, zip(*weighted, strict=True))
            moved = torch._foreach_sub(parameters, starts)  # noqa: SLF001
            torch._foreach_addcmul_(gradients, moved, weights, value=self.strength)

    @torch.no_grad()
    def value(self) -> float:
        """The penalty at the weights as they stand, summed in float64."""
        squares = [(parameter.double() - start.double()).square().sum() for parameter, start in self._plain]
        squares += [((parameter.double() - start.double()).square() * weight).sum() for parameter, start, weight in self._weighted]
        return 0.5 * self.strength * float(torch.stack(squares).sum())
