"""Thousands of damaged files of ours: each is refused in words, or gives the very values that were written.

MERGEKIT3D_MUTANTS sets how many of each format are tried (5000); `python -m tests.reliability.test_mutants` tells the counts.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mergekit3d.checkpoints import FISHER
from mergekit3d.errors import InputError
from mergekit3d.volumes.nifti import Grid, read_image, read_labels, write_volume
from tests.builders import metadata_of, save, task_of

from .soak import SLOWEST_S, mutated, weights_of

pytestmark = pytest.mark.slow

NUMBER = int(os.environ.get("MERGEKIT3D_MUTANTS", "5000"))
STATE = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "a.bias": np.full(3, 0.5, np.float32)}
GRID = Grid((6, 7, 8), np.diag([1.0, 2, 3, 1]))


def voxels_of(read: Callable[[Path], object]) -> Callable[[Path], object]:
    def of(path: Path) -> object:
        volume = read(path)
        return volume.data.tobytes(), volume.data.shape, volume.affine.tobytes()

    return of


def write_checkpoint(path: Path) -> None:
    save(path, STATE, metadata_of(None, task_of(), provenance={"seed": 1}))


def write_fisher(path: Path) -> None:
    save(path, STATE, metadata_of(kind=FISHER, method="fisher-sampled", provenance={"checkpoint": "0" * 64}))


def write_image(path: Path) -> None:
    write_volume(path, np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32), native=GRID)


def write_labels(path: Path) -> None:
    write_volume(path, np.random.default_rng(0).integers(0, 5, GRID.shape), native=GRID)


KINDS = {
    "m.safetensors": (write_checkpoint, weights_of, NUMBER),
    "m.fisher.safetensors": (write_fisher, weights_of, NUMBER // 5),
    "m.pt": (write_checkpoint, weights_of, NUMBER),
    "t1.nii.gz": (write_image, voxels_of(read_image), NUMBER - NUMBER // 5),
    "labels.nii.gz": (write_labels, voxels_of(read_labels), NUMBER // 5),
}


def tried(folder: Path, name: str) -> tuple[int, int, float]:
    """Refused by an error that names the file, read with the same values, and the longest time in s.

    Raises:
        AssertionError: one was accepted with other values; any error but an input error goes up.
    """
    write, read, number = KINDS[name]
    write(folder / name)
    good, whole, generator = (folder / name).read_bytes(), read(folder / name), random.Random(name)
    refused = same = 0
    slowest, path = 0.0, folder / f"damaged-{name}"
    for turn in range(number):
        path.write_bytes(mutated(good, generator))
        began = time.monotonic()
        try:
            found = read(path)
        except InputError as error:
            refused += str(path) in str(error)
        else:
            assert found == whole, f"mutant {turn} of {name} was accepted with other values"
            same += 1
        slowest = max(slowest, time.monotonic() - began)
    return refused, same, slowest


@pytest.mark.parametrize("name", KINDS)
def test_mutants(tmp_path: Path, name: str) -> None:
    """Bytes changed, put in, left out and cut off: none is accepted with other values, shows a traceback, or takes long."""
    refused, same, slowest = tried(tmp_path, name)
    assert KINDS[name][2] == refused + same
    # What may change without a trace is a time stamp of gzip or zip, their flags, and the padding of an archive.
    assert same <= (0.3 if name.endswith(".pt") else 0.04) * KINDS[name][2]
    assert slowest < SLOWEST_S


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        for kind in KINDS:
            before = time.process_time()
            print(kind, KINDS[kind][2], *tried(Path(place), kind), f"{time.process_time() - before:.1f} s")
