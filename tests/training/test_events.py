"""The learning curve for TensorBoard."""

from __future__ import annotations

import math

import pytest

from mergekit3d.training.events import EVENTS_NAME, write_events

ROWS = [
    {"epoch": 1, "step": 3, "seconds": 2.0, "train_loss": 0.5, "validation_dice": math.nan, "validation_dice_a": 0.25},
    {"epoch": 2, "step": 6, "seconds": 1.0, "train_loss": 0.25, "validation_dice": 0.5, "validation_dice_a": 0.75},
]


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    """It is no dependency."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write_events(tmp_path, ROWS)
    assert [] == list(tmp_path.iterdir())


def test_tensorboard_reads_the_columns(tmp_path):
    """By epoch, with the seconds of the training as time; what is not defined is left out."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_events(tmp_path, ROWS)
    found = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert {"train_loss", "validation_dice", "validation_dice/a"} == set(found.Tags()["scalars"])
    assert [(1, 2.0, 0.5), (2, 3.0, 0.25)] == [(one.step, one.wall_time, one.value) for one in found.Scalars("train_loss")]
    assert [2] == [one.step for one in found.Scalars("validation_dice")]


def test_an_epoch_more_adds_to_the_end_of_the_file(tmp_path):
    """So that a reader goes on where it was."""
    pytest.importorskip("tensorboard")
    write_events(tmp_path, ROWS[:1])
    before = (tmp_path / EVENTS_NAME).read_bytes()
    write_events(tmp_path, ROWS)
    after = (tmp_path / EVENTS_NAME).read_bytes()
    assert after.startswith(before)
    assert len(after) > len(before)
