"""What a step minimises, in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from mergekit3d.training.loss import dice_loss
from mergekit3d.training.objective import Objective, prediction_entropy


def test_entropy_of_sigmoids_is_that_of_coins():
    """log 2 at a logit of 0, -p log p - q log q elsewhere, nothing where the network is certain."""
    p = 0.9
    logits = torch.tensor([0.0, math.log(p / (1 - p)), 200.0, -200.0]).view(1, 1, 4, 1, 1)
    expected = (math.log(2) - p * math.log(p) - (1 - p) * math.log(1 - p)) / 4

    assert expected == pytest.approx(float(prediction_entropy(logits, False)), rel=1e-5)


def test_entropy_of_a_softmax_is_that_of_a_die():
    """log C for equal logits; 0 where the network is certain."""
    logits = torch.zeros(1, 6, 2, 1, 1)
    logits[:, 3, 1] = 300

    assert math.log(6) / 2 == pytest.approx(float(prediction_entropy(logits, True)), rel=1e-6)


def test_gradient_is_finite_where_the_network_is_certain():
    """No log of 0 is taken."""
    for exclusive in (False, True):
        logits = torch.tensor([[-300.0, 300.0]]).view(1, 2, 1, 1, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(prediction_entropy(logits, exclusive), logits)
        assert bool(torch.isfinite(gradient).all())


def test_objectives_are_weighed():
    """Of one batch: the loss, the entropy, or both of the same prediction."""
    logits = torch.randn(1, 2, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    targets = (logits > 0.5).float()
    loss, entropy = float(dice_loss(logits, targets, False)), float(prediction_entropy(logits, False))

    assert loss == pytest.approx(float(Objective().of(dice_loss)(logits, targets, False)))
    assert entropy == pytest.approx(float(Objective(0, 1).of(dice_loss)(logits, None, False)))
    assert 2 * loss + 0.5 * entropy == pytest.approx(float(Objective(2, 0.5).of(dice_loss)(logits, targets, False)))


def test_pairs_give_the_same_mean():
    """A batch with targets counts for the loss, one without for the entropy; the mean of the two is their weighted sum."""
    logits = torch.randn(2, 1, 2, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    targets = (logits[0] > 0.5).float()
    of_batch = Objective(2, 0.5, in_pairs=True).of(dice_loss)
    mean = (float(of_batch(logits[0], targets, False)) + float(of_batch(logits[1], None, False))) / 2

    assert 2 * float(dice_loss(logits[0], targets, False)) + 0.5 * float(prediction_entropy(logits[1], False)) == pytest.approx(mean)
