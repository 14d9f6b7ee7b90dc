"""Which samples of an optimizer step one of several processes takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mergekit3d.volumes.orientation import Shape


@dataclass(frozen=True)
class Share:
    """One process's share of every step.

    The samples of a step stand in one row, those of all its batches, and each process takes a stretch of it: as few batches as can be
    are cut, and stretches differ by one sample at most. Where there are fewer samples than processes, the last processes get none.

    Args:
        rank: number of the process, from 0.
        size: number of processes.
        accumulate: batches a step.
        shapes: voxels of the whole volume of each subject, by its number; needed where several whole volumes make a batch, as all
            are padded to the largest, also those of other processes.
    """

    rank: int = 0
    size: int = 1
    accumulate: int = 1
    shapes: Mapping[int, Shape] = field(default_factory=dict)

    def of_step(self, samples: range) -> range:
        """The samples of this process among those of a step."""
        start, stop = (-(-len(samples) * rank // self.size) for rank in (self.rank, self.rank + 1))
        return samples[start:stop]

    def of_batch(self, batch: int, batch_size: int, samples: int) -> range:
        """The samples of this process in a batch.

        Args:
            batch: number of the batch in its epoch, from 0.
            batch_size: samples a batch.
            samples: of the epoch; the last batch may be smaller.
        """
        first = batch // self.accumulate * self.accumulate
        begin, end, after = (min(index * batch_size, samples) for index in (batch, batch + 1, first + self.accumulate))
        own = self.of_step(range(first * batch_size, after))
        return range(max(begin, own.start), min(end, own.stop))


WHOLE = Share()
