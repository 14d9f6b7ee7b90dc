"""When the learning rate falls and when training stops: plain numbers that a snapshot can hold.

Source: Keras' ReduceLROnPlateau and EarlyStopping, which the paper's code uses: an epoch counts as better where its validation loss
is below the best so far; after `patience` epochs without, the rate falls, or training stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from mergekit3d.registry import Registry
from mergekit3d.training.settings import TrainingSettings


@dataclass(frozen=True)
class Convergence:
    """How far the validation loss has come.

    Args:
        smoothed: exponential average of the validation loss; None before the first.
        best: lowest average so far.
        waited: epochs since the best.
        plateau_waited: epochs since the best or the last fall of the rate.
        plateau_rate: learning rate as a part of the first, by the plateaus so far.
    """

    smoothed: float | None = None
    best: float | None = None
    waited: int = 0
    plateau_waited: int = 0
    plateau_rate: float = 1.0

    def after(self, validation_loss: float, settings: TrainingSettings) -> Convergence:
        """What follows from one more epoch's validation loss."""
        past = validation_loss if self.smoothed is None else self.smoothed
        smoothed = settings.smoothing * past + (1 - settings.smoothing) * validation_loss
        if self.best is None or smoothed < self.best:
            return replace(self, smoothed=smoothed, best=smoothed, waited=0, plateau_waited=0)
        moved = replace(self, smoothed=smoothed, waited=self.waited + 1, plateau_waited=self.plateau_waited + 1)
        if moved.plateau_waited >= settings.plateau_patience:
            return replace(moved, plateau_waited=0, plateau_rate=self.plateau_rate * settings.plateau_factor)
        return moved

    def converged(self, settings: TrainingSettings) -> bool:
        """Whether the patience is spent."""
        return settings.patience is not None and self.waited >= settings.patience


Schedule = Callable[[int, TrainingSettings, Convergence], float]
"""Learning rate of an epoch (from 0) as a part of the first."""

SCHEDULES: Registry[Schedule] = Registry("schedule")


@SCHEDULES.register("plateau")
def plateau(epoch: int, settings: TrainingSettings, convergence: Convergence) -> float:  # noqa: ARG001  one signature for all
    """Falls by `plateau_factor` after `plateau_patience` epochs without a better validation loss."""
    return convergence.plateau_rate


@SCHEDULES.register("polynomial")
def polynomial(epoch: int, settings: TrainingSettings, convergence: Convergence) -> float:  # noqa: ARG001
    """(1 - epoch / epochs) ** 0.9, as in nnU-Net."""
    return float((1 - epoch / settings.epochs) ** 0.9)


@SCHEDULES.register("cosine")
def cosine(epoch: int, settings: TrainingSettings, convergence: Convergence) -> float:  # noqa: ARG001
    """Half a cosine, from 1 towards 0."""
    return 0.5 * (1 + math.cos(math.pi * epoch / settings.epochs))


@SCHEDULES.register("constant")
def constant(epoch: int, settings: TrainingSettings, convergence: Convergence) -> float:  # noqa: ARG001
    """Does not fall."""
    return 1.0
