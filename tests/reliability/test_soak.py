"""Damage and interruption at random: a few turns of what `make soak` does for as long as asked."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from .soak import Work, mutants, recipes, writers


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A project after training and Fisher."""
    project = Work(tmp_path_factory.mktemp("soak"))
    project.prepare(["train", "fisher"])
    return project


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("train", signal.SIGKILL), ("train", signal.SIGTERM), ("fisher", signal.SIGKILL)])
def test_work_goes_on_to_the_same_bits(work: Work, name: str, number: int) -> None:
    """Stopped in the middle, with whole files alone under final names."""
    assert "stopped" == work.interrupted(name, number, 0.0)


def test_damaged_files_are_refused_or_read_as_they_were(work: Work) -> None:
    """Checkpoints, a Fisher diagonal and a volume; never a traceback."""
    counts = mutants(work.root / "whole", random.Random(1), 80)
    assert 4 * 80 == sum(counts.values())
    assert sum(often for what, often in counts.items() if "refused" in what) > 0.8 * 4 * 80


@pytest.mark.parametrize("turns", [recipes, writers])
def test_recipes_and_writers(tmp_path: Path, turns: Callable[..., object]) -> None:
    """Edited recipes are refused in words, killed writers leave whole files."""
    turns(tmp_path, random.Random(2), 100 if turns is recipes else 5)
