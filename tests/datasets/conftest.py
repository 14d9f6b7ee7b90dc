from pathlib import Path

import numpy as np
import pytest

from mergekit3d.volumes.nifti import Grid, write_volume


@pytest.fixture
def write():
    """A function that writes an array as NIfTI, 1 mm voxels unless an affine is given."""

    def write(path: Path, data, affine=None) -> Path:
        data = np.asarray(data)
        write_volume(path, data, native=Grid(data.shape, np.eye(4) if affine is None else affine))
        return path

    return write


@pytest.fixture
def touch():
    """A function that makes empty files under a folder; layouts open none."""

    def touch(root: Path, *names: str) -> Path:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    return touch
