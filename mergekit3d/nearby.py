"""Did-you-mean for names of files: what lies beside a file that is not there."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from mergekit3d.registry import nearest

SUFFIXES = (".pt", ".pth", ".ckpt", ".ts", ".zip", ".safetensors", ".yaml", ".yml", ".json", ".csv", ".tsv", ".txt")
"""Of files that mergekit3d writes or that users write for it. Images and folders may bear patients' names: they are never told."""
LOOKED_AT = 2000


def did_you_mean_file(path: Path) -> str | None:
    """What to do about a missing file: the file beside it whose name is most like its own; None where none is alike.

    Args:
        path: a file that is not there.
    """
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, LOOKED_AT) if entry.name.lower().endswith(SUFFIXES) and entry.is_file()]
    except (OSError, ValueError):
        return None
    guess = nearest(path.name, sorted(names))
    return None if guess is None or guess == path.name else f"did you mean '{path.with_name(guess)}'?"
