"""The live line beside the progress bar: loss, Dice, time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mergekit3d.training.state import Progress

MOST_REGIONS = 4
"""More of them would not fit into a line."""


@dataclass
class LiveLine:
    """What to say about a training under way.

    Args:
        region_names: of the validation's regions.
        epochs: at most.
        clock: seconds, monotonic.
    """

    region_names: Sequence[str]
    epochs: int
    clock: Callable[[], float] = time.monotonic

    def start(self, epoch: int) -> None:
        """Time counts from here, with so many epochs done."""
        self.began, self.first_epoch = self.clock(), epoch

    def text(self, progress: Progress) -> str:
        """Mean loss of the epoch, Dice of the last validation, and the time left at most, judged by the epochs so far."""
        row = progress.rows[-1] if progress.rows else {}
        losses = progress.losses or [row.get("train_loss", math.nan)]
        parts = [f"loss {sum(losses) / len(losses):.3f}"]
        if not math.isnan(row.get("validation_dice", math.nan)):
            regions = [f"{name} {row[f'validation_dice_{name}']:.2f}" for name in self.region_names]
            detail = f" ({', '.join(regions)})" if 1 < len(regions) <= MOST_REGIONS else ""
            parts.append(f"dice {row['validation_dice']:.3f}{detail}")
        done = progress.epoch - self.first_epoch
        if done > 0:
            left_s = (self.clock() - self.began) / done * (self.epochs - progress.epoch)
            parts.append(f"at most {_duration(left_s)} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
