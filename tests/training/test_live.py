"""The live line."""

from __future__ import annotations

import math

import pytest

from mergekit3d.training.live import LiveLine
from mergekit3d.training.state import Progress


@pytest.fixture
def line():
    times = iter([0.0, 30.0])
    live = LiveLine(("ET", "TC"), 11, clock=lambda: next(times))
    live.start(0)
    return live


def test_it_tells_loss_dice_and_time_left(line):
    """One epoch took 30 s, ten are left."""
    row = {"train_loss": 0.4, "validation_dice": 0.63, "validation_dice_ET": 0.5, "validation_dice_TC": 0.76}
    assert "loss 0.350, dice 0.630 (ET 0.50, TC 0.76), at most 5 min left" == line.text(Progress(epoch=1, losses=[0.3, 0.4], rows=[row]))


def test_without_validation_it_tells_the_loss(line):
    """There is no Dice, and in the first epoch no estimate of the time."""
    assert "loss 0.400" == line.text(Progress(rows=[{"train_loss": 0.4, "validation_dice": math.nan}]))


@pytest.mark.parametrize(("left", "text"), [(89, "89 s"), (90, "2 min"), (5400, "1.5 h")])
def test_time_is_told_in_fitting_units(left, text):
    """Seconds, minutes, hours."""
    times = iter([0.0, left / 10])
    live = LiveLine((), 11, clock=lambda: next(times))
    live.start(0)
    assert live.text(Progress(epoch=1, losses=[0.3])).endswith(f"at most {text} left")
