"""Did-you-mean for names of files: what lies beside a file that is not there."""

from __future__ import annotations

import os
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

KINDS = ((".safetensors", ".pt", ".pth", ".ckpt", ".ts", ".zip"), (".yaml", ".yml"), (".json", ".csv", ".tsv", ".txt"))
"""Endings of checkpoints, recipes and lists. Images and folders may bear patients' names: they are never told."""
LOOKED_AT = 2000
CUTOFF = 0.75


def did_you_mean_file(path: Path) -> str | None:
    """What to do about a missing file: the file beside it whose name is most like its own; None where none is alike.

    Args:
        path: a file that is not there.
    """
    ending = path.suffix.lower()
    suffixes = next((kind for kind in KINDS if ending in kind), sum(KINDS, ()))
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, LOOKED_AT) if entry.name.lower().endswith(suffixes) and entry.is_file()]
    except (OSError, ValueError):
        return None
    # Another ending of the same name first; then names that differ by little: m3.pt is no guess for m4.pth.
    same = [name for name in names if Path(name).stem == path.stem]
    guesses = get_close_matches(path.name, same, n=1, cutoff=0) or get_close_matches(path.name, sorted(names), n=1, cutoff=CUTOFF)
    return f"did you mean '{path.with_name(guesses[0])}'?" if guesses and guesses[0] != path.name else None
