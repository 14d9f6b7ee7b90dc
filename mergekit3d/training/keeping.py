"""What a training leaves on the disk while it is under way: its snapshot, log.csv and a picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mergekit3d.errors import MergeKit3DError
from mergekit3d.progress import Reporter
from mergekit3d.training.events import write_events
from mergekit3d.training.log import write_log
from mergekit3d.training.processes import ProcessGroup
from mergekit3d.training.snapshot import SNAPSHOT_NAME
from mergekit3d.training.state import Progress, Trained, load_progress, save_progress

LOG_NAME = "log.csv"
DRAW_EVERY_S = 180.0


@dataclass
class Keeper:
    """Writes the files of a training under way, and knows when they are due.

    Args:
        folder: of log.csv and the snapshot.
        trained: what a snapshot holds beside the progress.
        identity: digest of what decides the result; a snapshot of another one is refused.
        snapshot_minutes: time between snapshots.
        draw: draws a picture into the folder, from its log.csv; None: nothing is drawn.
        reporter: is warned where that fails.
        processes: that share the training; the first one writes, and reads for all.
    """

    folder: Path
    trained: Trained
    identity: str
    snapshot_minutes: float
    draw: Callable[[Path], None] | None
    reporter: Reporter
    processes: ProcessGroup

    def __post_init__(self) -> None:
        self.snapshot = self.folder / SNAPSHOT_NAME
        self.saved = self.drawn = self.clock = time.monotonic()

    def load(self) -> Progress | None:
        """Put weights and optimizer back as the snapshot has them; None where there is none.

        Raises:
            InputError: the snapshot is damaged, or of another network.
            UsageError: it is of another identity.
        """
        return load_progress(self.snapshot, self.trained, identity=self.identity, processes=self.processes)

    def save(self, progress: Progress) -> None:
        """Write the snapshot.

        Raises:
            OutputError: the file system refused.
        """
        self.count_seconds(progress)
        save_progress(self.snapshot, self.trained, progress, identity=self.identity)
        self.saved = time.monotonic()

    def save_if_due(self, progress: Progress) -> None:
        """Write the snapshot where the last one is old enough."""
        if self.processes.is_first and time.monotonic() - self.saved >= 60 * self.snapshot_minutes:
            self.save(progress)

    def forget(self) -> None:
        """Remove the snapshot."""
        if self.processes.is_first:
            self.snapshot.unlink(missing_ok=True)

    def count_seconds(self, progress: Progress) -> None:
        """Add the time since the last call to the epoch's."""
        now = time.monotonic()
        progress.seconds += now - self.clock
        self.clock = now

    def write_log(self, progress: Progress) -> None:
        """Write log.csv, and the same for TensorBoard.

        Raises:
            OutputError: the file system refused.
        """
        write_log(self.folder / LOG_NAME, progress.rows)
        write_events(self.folder, progress.rows)

    def draw_if_due(self) -> None:
        """Draw where the last picture is old enough."""
        if self.processes.is_first and time.monotonic() - self.drawn >= DRAW_EVERY_S:
            self.draw_now()

    def draw_now(self) -> None:
        """Draw; a picture that cannot be drawn is no reason to lose a training."""
        self.drawn = time.monotonic()
        try:
            if self.draw is not None:
                self.draw(self.folder)
        except MergeKit3DError as error:
            self.reporter.warn(f"no picture of the learning curve: {error}")
