"""Fall of the learning rate, and stopping."""

from __future__ import annotations

import pytest

from mergekit3d.training.schedule import SCHEDULES, Convergence
from mergekit3d.training.settings import TrainingSettings


def after(losses, settings):
    state = Convergence()
    for loss in losses:
        state = state.after(loss, settings)
    return state


def test_the_rate_is_halved_after_ten_epochs_without_a_better_loss():
    """As in the paper: nine epochs change nothing, the tenth halves, ten more halve again."""
    settings = TrainingSettings()
    rates = [after([1.0] + [2.0] * waited, settings).plateau_rate for waited in (9, 10, 19, 20)]
    assert [1, 0.5, 0.5, 0.25] == rates


def test_a_better_loss_starts_the_count_again():
    """Both counts are of epochs since the best."""
    settings = TrainingSettings(plateau_patience=2, patience=3)
    state = after([1.0, 2.0, 0.9, 1.0], settings)
    assert (1, 1, 0.9, 1.0) == (state.waited, state.plateau_waited, state.best, state.plateau_rate)
    assert not state.converged(settings)


def test_an_equal_loss_is_no_better():
    """Training that stands still stops."""
    settings = TrainingSettings(patience=2)
    assert after([1.0, 1.0, 1.0], settings).converged(settings)


def test_without_patience_training_never_stops():
    """`patience: null`."""
    settings = TrainingSettings(patience=None)
    assert not after([1.0] + [2.0] * 1000, settings).converged(settings)


def test_smoothing_averages_exponentially():
    """0.9 of the past: 1, then 0.9 + 0.1 * 0 = 0.9, then 0.81 + 0.1 * 2 = 1.01."""
    state = after([1.0, 0.0, 2.0], TrainingSettings(smoothing=0.9))
    assert 1.01 == pytest.approx(state.smoothed)
    assert 0.9 == pytest.approx(state.best)


@pytest.mark.parametrize(
    ("name", "rates"),
    [("polynomial", [1, 0.5**0.9, 0.25**0.9]), ("cosine", [1, 0.5, (1 - 0.5**0.5) / 2]), ("constant", [1, 1, 1]), ("plateau", [0.5] * 3)],
)
def test_a_schedule_is_its_formula(name, rates):
    """At the start, at half and at three quarters of the epochs."""
    settings = TrainingSettings(epochs=8)
    assert rates == pytest.approx([SCHEDULES.get(name)(epoch, settings, Convergence(plateau_rate=0.5)) for epoch in (0, 4, 6)])
