"""Losses of a segmentation, and the Dice that validation reports. All in float32, from logits.

Regions are one sigmoid a channel, which may overlap; exclusive classes are one softmax, with the background in channel 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mergekit3d.registry import Registry

SMOOTH = 1e-5

Loss = Callable[[Tensor, Tensor, bool], Tensor]

LOSSES: Registry[Loss] = Registry("loss")


@LOSSES.register("dice")
def dice_loss(logits: Tensor, targets: Tensor, exclusive: bool) -> Tensor:
    """1 - soft Dice, averaged over samples and channels.

    Args:
        logits: (B, C, X, Y, Z).
        targets: (B, C, X, Y, Z) of 0 and 1 for regions, (B, X, Y, Z) class indices for exclusive classes.
        exclusive: softmax in place of sigmoids; the background is left out of the mean.

    Returns:
        A number, float32.

    Source: ``weighted_dice_coefficient`` of Isensee's Keras code; see `soft_dice`.
    """
    return 1 - soft_dice(probabilities_of(logits, exclusive=exclusive), targets, exclusive=exclusive).mean()


@LOSSES.register("dice-ce")
def dice_cross_entropy_loss(logits: Tensor, targets: Tensor, exclusive: bool) -> Tensor:
    """`dice_loss` plus the cross-entropy (of sigmoids, or of the softmax), averaged over voxels and channels.

    Source: the sum of nnU-Net (Isensee et al. 2021), with weights of 1.
    """
    values = logits.float()
    if exclusive:
        entropy = functional.cross_entropy(values, targets.long())
    else:
        entropy = functional.binary_cross_entropy_with_logits(values, targets.float())
    return dice_loss(logits, targets, exclusive) + entropy


def probabilities_of(logits: Tensor, *, exclusive: bool) -> Tensor:
    """Probabilities (B, C, X, Y, Z), float32: a softmax over channels, or sigmoids."""
    return logits.float().softmax(1) if exclusive else logits.float().sigmoid()


def soft_dice(probabilities: Tensor, targets: Tensor, *, exclusive: bool) -> Tensor:
    """(2 sum p y + s) / (sum p + sum y + s) of every sample and channel, with s = 1e-5.

    Args:
        probabilities: (B, C, X, Y, Z).
        targets: as for `dice_loss`.
        exclusive: the background channel is left out.

    Returns:
        (B, C), or (B, C - 1) for exclusive classes: 1 where prediction and truth are both empty.

    Source: ``weighted_dice_coefficient`` of Isensee's Keras code: 2 (sum y p + s / 2) / (sum y + sum p + s), sums over the voxels of
    one sample; no squares in the denominator.
    """
    truth = _one_hot(targets, probabilities.shape[1]) if exclusive else targets
    if exclusive:
        probabilities, truth = probabilities[:, 1:], truth[:, 1:]
    p, y = probabilities.flatten(2), truth.flatten(2).to(probabilities)
    return (2 * (p * y).sum(2) + SMOOTH) / (p.sum(2) + y.sum(2) + SMOOTH)


@torch.no_grad()
def hard_dice(logits: Tensor, targets: Tensor, *, exclusive: bool) -> Tensor:
    """Dice of the segmentation (probability above 0.5, or the most probable class) with the truth.

    Args:
        logits: (B, C, X, Y, Z).
        targets: as for `dice_loss`.
        exclusive: argmax in place of 0.5; the background is left out.

    Returns:
        (B, C) or (B, C - 1), float64: NaN where both are empty, as in nnU-Net; such an entry says nothing.
    """
    if exclusive:
        classes = range(1, logits.shape[1])
        winner = logits.argmax(1)
        predicted = torch.stack([winner == index for index in classes], 1)
        truth = torch.stack([targets == index for index in classes], 1)
    else:
        predicted, truth = logits > 0, targets > 0
    predicted, truth = predicted.flatten(2), truth.flatten(2)
    both = (predicted & truth).sum(2).double()
    return 2 * both / (predicted.sum(2) + truth.sum(2))


def _one_hot(targets: Tensor, classes: int) -> Tensor:
    return functional.one_hot(targets.long(), classes).movedim(-1, 1)
