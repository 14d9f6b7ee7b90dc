"""What a training minimises: the loss on labelled subjects, the entropy of the prediction on unlabelled ones, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mergekit3d.training.loss import Loss

StepLoss = Callable[[Tensor, Tensor | None, bool], Tensor]
"""As `Loss`; the targets may be missing."""


@dataclass(frozen=True)
class Objective:
    """supervised * loss + entropy * H(prediction).

    Args:
        supervised: weight of the loss; 0: labels are not read.
        entropy: weight of the entropy.
        in_pairs: whether the entropy is taken of scans of its own: batches with and without targets take turns, and a step takes
            as many of one as of the other.

    Source: the entropy of the prediction as an objective for merging coefficients is that of Yang et al., "AdaMerging: Adaptive
    Model Merging for Multi-Task Learning", ICLR 2024 (arXiv 2310.02575); here over voxels, and optionally beside the loss.
    """

    supervised: float = 1.0
    entropy: float = 0.0
    in_pairs: bool = False

    def of(self, loss: Loss) -> StepLoss:
        """The objective of one batch; the mean over the batches of a step is that of the step."""
        share = 2 if self.in_pairs else 1

        def of_batch(logits: Tensor, targets: Tensor | None, exclusive: bool) -> Tensor:
            total = torch.zeros((), device=logits.device)
            if self.supervised and targets is not None:
                total = total + share * self.supervised * loss(logits, targets, exclusive)
            if self.entropy and (targets is None or not self.in_pairs):
                total = total + share * self.entropy * prediction_entropy(logits, exclusive)
            return total

        return of_batch


SUPERVISED = Objective()


def prediction_entropy(logits: Tensor, exclusive: bool) -> Tensor:
    """Shannon entropy of the prediction in nats, averaged over samples and voxels (and channels, where each is a sigmoid of its own).

    Args:
        logits: (B, C, X, Y, Z).
        exclusive: one softmax in place of sigmoids.

    Returns:
        A number, float32: at most log 2 for sigmoids, log C for a softmax.
    """
    values = logits.float()
    if exclusive:
        logs = values.log_softmax(1)
        return -(logs.exp() * logs).sum(1).mean()
    return (functional.softplus(values) - values * values.sigmoid()).mean()
