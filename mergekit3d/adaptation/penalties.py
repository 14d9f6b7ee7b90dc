"""Penalties on mixing ratios that are far from uniform, with their gradients, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit3d.registry import Registry

Penalty = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From ratios (sources, n) to the penalty of each of the n distributions, and its derivative by the ratios, (sources, n)."""

PENALTIES: Registry[Penalty] = Registry("penalty")


@PENALTIES.register("entropy")
def missing_entropy(ratios: Tensor) -> tuple[Tensor, Tensor]:
    """log T - H(a) = sum_t a^t log(T a^t): 0 for uniform ratios, log T where one source has everything."""
    logs = torch.log(ratios * len(ratios))
    return (ratios * logs).sum(0), logs + 1


@PENALTIES.register("uniform")
def distance_to_uniform(ratios: Tensor) -> tuple[Tensor, Tensor]:
    """sum_t (a^t - 1/T)^2: 0 for uniform ratios, 1 - 1/T where one source has everything."""
    apart = ratios - 1 / len(ratios)
    return apart.square().sum(0), 2 * apart


@dataclass(frozen=True)
class RatioPenalty:
    """A penalty of the mean over all distributions of ratios.

    Args:
        by: a name of `PENALTIES`.
        strength: what it is multiplied by; below 0 it drives ratios apart.
    """

    by: str
    strength: float

    def value(self, ratios: Tensor) -> float:
        """Of ratios (sources, n)."""
        value = self.strength * float(PENALTIES.get(self.by)(ratios)[0].mean())
        assert math.isfinite(value)
        return value

    def gradient(self, ratios: Tensor) -> Tensor:
        """Its derivative by the ratios, of their shape, the ratios taken as free."""
        return self.strength / ratios.shape[1] * PENALTIES.get(self.by)(ratios)[1]
