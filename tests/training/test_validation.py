"""Validation on whole volumes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mergekit3d.datasets.sampling import Batch
from mergekit3d.errors import InputError
from mergekit3d.training.devices import Runtime
from mergekit3d.training.interruption import Interruption
from mergekit3d.training.loss import dice_loss
from mergekit3d.training.processes import ALONE
from mergekit3d.training.sharing import Sharing
from mergekit3d.training.validation import validate


class Perfect(nn.Module):
    """Its input is the truth, as logits of +-100."""

    def forward(self, x):
        assert not self.training
        return x


def batch(number, truth):
    logits = torch.where(truth > 0, 100.0, -100.0)
    logits[..., -1] = math.nan  # padding
    return Batch(logits, truth, (number,), ((*truth.shape[2:4], truth.shape[4] - 1),))


def scores_of(*batches, after_subject=lambda: None):
    options = {"runtime": Runtime(torch.device("cpu")), "exclusive": False, "patch_size": None, "after_subject": after_subject}
    options["sharing"] = Sharing(ALONE, Interruption())
    return validate(Perfect(), batches, dice_loss, **options)


def test_padding_is_left_out_and_an_empty_region_says_nothing():
    """A perfect prediction of the first region, in one of the two subjects, and of the second region in none."""
    truth = torch.zeros(1, 2, 2, 2, 3, dtype=torch.uint8)
    marked = truth.clone()
    marked[0, 0, 0, 0, 0] = 1
    scores = scores_of(batch(1, truth), batch(2, marked))
    assert 0 == pytest.approx(scores.loss, abs=1e-6)
    assert 1 == scores.dice[0]
    assert math.isnan(scores.dice[1])
    assert 1 == scores.mean_dice


def test_without_subjects_there_are_no_scores():
    """A training without validation."""
    assert scores_of() is None


def test_a_loss_that_is_not_finite_names_the_subject():
    """By number."""
    truth = torch.ones(1, 1, 2, 2, 3)
    bad = batch(7, truth)
    bad.images[...] = math.nan
    with pytest.raises(InputError, match="the loss is not finite: validation, subject 7"):
        scores_of(batch(1, truth), bad)


def test_work_may_be_stopped_after_each_subject():
    """What a signal does."""

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scores_of(batch(1, torch.ones(1, 1, 2, 2, 3)), after_subject=stop)
