"""Losses and Dice against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from mergekit3d.errors import UsageError
from mergekit3d.training.loss import LOSSES, SMOOTH, dice_cross_entropy_loss, dice_loss, hard_dice, soft_dice


def volume(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, 1, -1, 1, 1)


def test_soft_dice_is_twice_the_overlap_over_the_sum():
    """(2 (0.8 + 0.4) + s) / (0.8 + 0.4 + 0.3 + 2 + s)."""
    found = soft_dice(volume(0.8, 0.4, 0.3), volume(1, 1, 0), exclusive=False)
    assert (2 * 1.2 + SMOOTH) / (1.5 + 2 + SMOOTH) == pytest.approx(float(found), rel=1e-12)


def test_empty_prediction_of_an_empty_truth_is_perfect():
    """Only the smoothing term is left: s / s."""
    assert float(soft_dice(volume(0, 0), volume(0, 0), exclusive=False)) == 1


def test_dice_loss_averages_over_samples_and_channels():
    """Logits of 0 are probabilities of 1/2: of 4 voxels, k true ones give (k + s) / (2 + k + s)."""
    targets = torch.zeros(2, 2, 4, 1, 1)
    for index, count in enumerate((1, 2, 3, 4)):
        targets[index // 2, index % 2, :count] = 1
    wanted = 1 - sum((count + SMOOTH) / (2 + count + SMOOTH) for count in (1, 2, 3, 4)) / 4
    assert wanted == pytest.approx(float(dice_loss(torch.zeros(2, 2, 4, 1, 1), targets, False)), rel=1e-6)


def test_the_background_of_exclusive_classes_is_left_out():
    """Three classes with probability 1/3 each; of 6 voxels, 2 are of class 1, 3 of class 2 and 1 of the background."""
    targets = torch.tensor([1, 1, 2, 2, 2, 0]).view(1, 6, 1, 1)
    wanted = 1 - ((2 * 2 / 3 + SMOOTH) / (2 + 2 + SMOOTH) + (2 * 3 / 3 + SMOOTH) / (2 + 3 + SMOOTH)) / 2
    assert wanted == pytest.approx(float(dice_loss(torch.zeros(1, 3, 6, 1, 1), targets, True)), rel=1e-6)


@pytest.mark.parametrize(("exclusive", "entropy"), [(False, math.log(2)), (True, math.log(3))])
def test_dice_ce_adds_the_mean_cross_entropy(exclusive, entropy):
    """At logits of 0 the cross-entropy is log 2 a sigmoid, and log C a softmax over C classes."""
    logits = torch.zeros(1, 3, 4, 1, 1)
    targets = torch.tensor([0, 1, 2, 1]).view(1, 4, 1, 1) if exclusive else torch.ones(1, 3, 4, 1, 1)
    added = dice_cross_entropy_loss(logits, targets, exclusive) - dice_loss(logits, targets, exclusive)
    assert entropy == pytest.approx(float(added), rel=1e-6)


@pytest.mark.parametrize("loss", [dice_loss, dice_cross_entropy_loss])
@pytest.mark.parametrize("exclusive", [False, True])
def test_the_gradient_is_that_of_finite_differences(loss, exclusive):
    """Central differences of step 1e-2 on the float32 loss agree within 1e-3 of the largest."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 3, 2, 2, 1), generator=generator, requires_grad=True)
    targets = (
        torch.randint(0, 3, (2, 2, 2, 1), generator=generator) if exclusive else torch.rand((2, 3, 2, 2, 1), generator=generator) > 0.5
    )
    (gradient,) = torch.autograd.grad(loss(logits, targets, exclusive), logits)
    values = logits.detach().double()
    for index in range(values.numel()):
        step = torch.zeros(values.numel(), dtype=torch.float64)
        step[index] = 1e-2
        high, low = (float(loss((values + sign * step.view(values.shape)).float(), targets, exclusive)) for sign in (1, -1))
        assert (high - low) / 2e-2 == pytest.approx(float(gradient.flatten()[index]), abs=1e-3 * float(gradient.abs().max()) + 1e-5)


def test_the_loss_is_float32_whatever_the_logits():
    """Under autocast the logits are bf16, the sums are not."""
    assert dice_loss(torch.zeros(1, 1, 2, 2, 2, dtype=torch.bfloat16), torch.ones(1, 1, 2, 2, 2), False).dtype == torch.float32


def test_hard_dice_thresholds_at_one_half():
    """Probability 1/2 (logit 0) is outside; one of two voxels found, none invented: 2/3. The empty region says nothing."""
    logits = torch.tensor([[1.0, 0.0, -1.0], [-1.0, -1.0, -1.0]]).view(1, 2, 3, 1, 1)
    targets = torch.tensor([[1, 1, 0], [0, 0, 0]]).view(1, 2, 3, 1, 1)
    first, second = hard_dice(logits, targets, exclusive=False)[0].tolist()
    assert 2 / 3 == pytest.approx(first)
    assert math.isnan(second)


def test_hard_dice_of_exclusive_classes_takes_the_most_probable():
    """Class 1 is found in both of its voxels and one more (4/5), class 2 in none of its one."""
    targets = torch.tensor([1, 1, 2, 0]).view(1, 4, 1, 1)
    logits = torch.nn.functional.one_hot(torch.tensor([1, 1, 1, 0]), 3).T.reshape(1, 3, 4, 1, 1).float()
    assert [4 / 5, 0] == pytest.approx(hard_dice(logits, targets, exclusive=True)[0].tolist())


def test_an_unknown_loss_is_refused_with_the_nearest():
    """The registry says what was meant."""
    with pytest.raises(UsageError, match="did you mean 'dice'"):
        LOSSES.get("dicee")
