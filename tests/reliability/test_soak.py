"""Damage and interruption at random: a few turns of what `make soak` does for as long as asked."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.warm import Warm

from .soak import CHANGES, JOBS, Work, in_a_process, mutants, overwrite_half, recipes, writers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Work:
    """A project after the whole pipeline."""
    project = Work(tmp_path_factory.mktemp("soak"), partial(in_a_process, program=[warm.command]), epochs=3)
    project.prepare(list(JOBS))
    return project


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("name", [name for name in JOBS if name != "finetune"])  # which is trained as train is
def test_work_goes_on_to_the_same_bits(work: Work, name: str, number: int) -> None:
    """Stopped in the middle, with whole files alone under final names; earlier, where the work was done before."""
    assert "stopped" in (work.interrupted(name, number, at) for at in (0.6, 0.4, 0.2, 0.05))


@pytest.mark.parametrize("name", CHANGES)
def test_inputs_that_change_while_they_are_read(work: Work, name: str) -> None:
    """The old result, the new one, or a refusal; never a mix. test_changing_files.py has each fault at each moment."""
    came_of_it = work.changed(name, list(CHANGES[name])[-1], overwrite_half, 0.5)
    assert came_of_it in {"the old result", "the new result", "refused"}


def test_damaged_files_are_refused_or_read_as_they_were(work: Work) -> None:
    """Checkpoints, a Fisher diagonal and a volume; never a traceback."""
    counts = mutants(work.root / "whole", random.Random(1), 25)
    assert 4 * 25 == sum(counts.values())
    assert sum(often for what, often in counts.items() if "refused" in what) > 0.8 * 4 * 25


@pytest.mark.parametrize("turns", [recipes, writers])
def test_recipes_and_writers(tmp_path: Path, turns: Callable[..., object]) -> None:
    """Edited recipes are refused in words, killed writers leave whole files."""
    turns(tmp_path, random.Random(2), 100 if turns is recipes else 5)
