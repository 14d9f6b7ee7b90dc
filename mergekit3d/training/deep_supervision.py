"""Networks that give several outputs in training, the finest first: nnU-Net's, and MONAI's DynUNet with ``deep_supervision``.

Isensee 2017 needs nothing of this: it adds its heads up to one output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mergekit3d.training.objective import StepLoss


def outputs_of(output: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The logits of every level, (B, C, X, Y, Z) each, the finest first.

    Args:
        output: of a network: logits, a list of them, or, as DynUNet gives them, all in one tensor (B, levels, C, X, Y, Z).
    """
    if isinstance(output, Tensor):
        return [output] if output.ndim == 5 else list(output.unbind(1))
    return list(output)


def over_levels(loss: StepLoss) -> StepLoss:
    """The loss of one output as that of several: weights 1, 1/2, 1/4 ... that sum to 1, without the coarsest level.

    Targets are brought to the size of a level by the nearest voxel.

    Source: nnU-Net (Isensee et al. 2021), whose weights these are.
    """

    def of_all(output: Tensor, targets: Tensor | None, exclusive: bool) -> Tensor:
        levels = outputs_of(output)
        if len(levels) == 1:
            return loss(levels[0], targets, exclusive)
        weights = [0.5**number for number in range(len(levels) - 1)]
        parts = [
            weight / sum(weights) * loss(logits, _resized(targets, logits), exclusive)
            for weight, logits in zip(weights, levels, strict=False)
        ]
        return torch.stack(parts).sum()

    return of_all


def _resized(targets: Tensor | None, logits: Tensor) -> Tensor | None:
    if targets is None or targets.shape[-3:] == logits.shape[-3:]:
        return targets
    lead = targets if targets.ndim == 5 else targets[:, None]
    resized = functional.interpolate(lead.float(), size=logits.shape[-3:], mode="nearest-exact").to(targets.dtype)
    return resized if targets.ndim == 5 else resized[:, 0]
