"""The learning curve for TensorBoard, where that is installed: log.csv as scalars, written whole every epoch like it.

So a training that goes on after an interruption leaves no step twice; what stood in the file before stays its beginning, and a
TensorBoard that is looking at it reads on.
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Sequence
from pathlib import Path

from mergekit3d.storage.atomic import write_bytes
from mergekit3d.training.log import Row

EVENTS_NAME = "events.out.tfevents.mergekit3d"
AXES = ("epoch", "step", "seconds")


def write_events(folder: Path, rows: Sequence[Row]) -> None:
    """Write the columns of log.csv as scalars by epoch; time runs in the seconds of the training. Without TensorBoard, nothing.

    Args:
        folder: of log.csv.
        rows: one an epoch.

    Raises:
        OutputError: the file system refused.
    """
    if importlib.util.find_spec("tensorboard") is None:
        return
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    file, seconds = io.BytesIO(), 0.0
    writer = RecordWriter(file)
    writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
    for row in rows:
        seconds += row["seconds"]
        values = [
            Summary.Value(tag=name.replace("validation_dice_", "validation_dice/"), simple_value=value)
            for name, value in row.items()
            if name not in AXES and not math.isnan(value)
        ]
        writer.write(Event(wall_time=seconds, step=int(row["epoch"]), summary=Summary(value=values)).SerializeToString())
    write_bytes(folder / EVENTS_NAME, file.getvalue())
