"""What all tests share: reproducible property tests, no display, and tests skipped aloud where their device or tool is missing."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

os.environ["MPLBACKEND"] = "Agg"

settings.register_profile("project", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("project")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def one_thread():
    """torch with a single thread: the same sums to the bit, and no waiting for other work on the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def warm():
    """Programs that start at once: `mergekit3d` and `python` in ``warm.programs``, forked from a process that has imported everything."""
    from tests.warm import Warm

    with tempfile.TemporaryDirectory(prefix="m3d") as folder:  # a socket's path has 108 letters at most
        server = Warm(Path(folder))
        yield server
        server.close()


NEEDS = {
    "gpu": (_has_gpu, "no CUDA device here"),
    "needs_nnunet": (lambda: importlib.util.find_spec("nnunetv2") is not None, "nnunetv2 is not installed"),
}


def pytest_collection_modifyitems(items):
    """Skip tests whose device or tool is not there, with the reason; files with slow tests come first, so that no process waits for one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for marker, (is_there, reason) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not is_there():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


VOLUME_SHAPE = (18, 20, 17)
FREESURFER_IDS = (8, 3, 10, 18, 11, 13, 24, 7, 2, 17, 4, 12, 28, 16)
"""One id of each of the paper's 14 classes."""


def _make_subject(rng, ids, names, folder, label):
    """Blocks of the ids within a foreground, on a grid of its own orientation."""
    import nibabel

    inside = np.s_[3:15, 3:17, 3:14]
    labels = np.zeros(VOLUME_SHAPE, np.int16)
    blocks = rng.choice(ids, size=(6, 7, 6)).astype(np.int16)
    labels[inside] = np.kron(blocks, np.ones((2, 2, 2), np.int16))[:, :, :11]
    affine = np.diag([rng.choice([-2.0, 2.0]), 2.0, 2.0, 1.0])
    folder.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(labels, affine), folder / label)
    for name in names:
        image = np.zeros(VOLUME_SHAPE, np.float32)
        image[inside] = 100 + labels[inside] + rng.normal(0, 5, labels[inside].shape)
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / name)


@pytest.fixture(scope="session")
def make_data():
    """A function that writes 7 HCP and 5 BraTS subjects into the folders hcp/ and brats/ of a folder, and returns it."""

    def make(root: Path) -> Path:
        rng = np.random.default_rng(0)
        for number in range(7):
            names = ["T1w_acpc_dc_restore.nii.gz", "T2w_acpc_dc_restore.nii.gz"]
            _make_subject(rng, FREESURFER_IDS, names, root / "hcp" / f"10000{number}" / "T1w", "aparc+aseg.nii.gz")
        for number in range(5):
            name = f"Brats18_X_{number}_1"
            names = [f"{name}_{modality}.nii.gz" for modality in ("t1", "t1ce", "t2", "flair")]
            _make_subject(rng, (1, 2, 4, 2), names, root / "brats" / ("HGG" if number % 2 else "LGG") / name, f"{name}_seg.nii.gz")
        return root

    return make
