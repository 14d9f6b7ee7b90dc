"""A Fisher estimation shared out among processes, as torchrun starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mergekit3d import fisher
from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.errors import UsageError
from mergekit3d.options import Options
from tests.builders import save_source, task_of

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]


@pytest.fixture
def folder(tmp_path, make_data) -> Path:
    """Seven HCP subjects and a checkpoint."""
    make_data(tmp_path)
    save_source(tmp_path / "m1.safetensors", task=task_of())
    return tmp_path


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """As torchrun gives each process: the same gradients to the bit."""


@pytest.fixture
def begin(warm):
    """Begins an estimation in two processes."""

    def start(folder, *arguments):
        words = ["fisher", "m1.safetensors", "--data", "hcp", "--draws", "1", "--device", "cpu", "--json", *arguments]
        return subprocess.Popen(
            [*TORCHRUN, warm.command, *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )

    return start


def snapshots(folder):
    return sorted(path.name for path in folder.iterdir() if "snapshot" in path.name)


def alone(folder, **options):
    return fisher(folder / "m1.safetensors", folder / "hcp", draws=1, options=Options(device="cpu", **options))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2])
def test_two_processes_give_the_result_of_one(begin, folder, batch_size):
    """Up to rounding, whatever subjects come together; one JSON object on stdout, one file, nothing left."""
    process = begin(folder, "--batch-size", str(batch_size))
    said, complaints = process.communicate(timeout=120)

    assert 0 == process.returncode, complaints
    told = json.loads(said)
    shared, one = open_checkpoint(folder / "m1.fisher.safetensors"), alone(folder, out=folder / "one.safetensors")
    assert [] == snapshots(folder)
    assert (7, one.voxels, list(one.zero)) == (told["subjects"], told["voxels"], told["zero"])
    assert one.trace == pytest.approx(told["trace"], rel=1e-6)
    assert one.standard_error_by_layer == pytest.approx(told["standard_error_by_layer"], rel=1e-2)
    single = open_checkpoint(one.out)
    for name in single.entries:
        np.testing.assert_allclose(single.read(name), shared.read(name), rtol=1e-5, err_msg=name)
    assert single.metadata.provenance["data"] == shared.metadata.provenance["data"]


@pytest.mark.slow
def test_processes_that_were_stopped_go_on_together(begin, folder):
    """SIGTERM to torchrun saves the state of each; --resume with as many ends with the bits of a run that nothing stopped."""
    through = begin(folder, "--out", "through.fisher.safetensors")
    _, complaints = through.communicate(timeout=120)
    assert 0 == through.returncode, complaints
    stopped = begin(folder, "--snapshot-minutes", "0")
    deadline = time.monotonic() + 60
    while len(snapshots(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=60)
    if (folder / "m1.fisher.safetensors").exists():
        pytest.skip("the work was done before the signal came")
    assert [f".m1.fisher.safetensors.snapshot-{number}of2" for number in (1, 2)] == snapshots(folder)
    with pytest.raises(UsageError, match="cannot go on from the snapshot: .*: found one of another number of processes"):
        alone(folder, resume=True)
    resumed = begin(folder, "--resume")
    _, complaints = resumed.communicate(timeout=120)

    assert 0 == resumed.returncode, complaints
    assert "going on after " in complaints
    assert (folder / "through.fisher.safetensors").read_bytes() == (folder / "m1.fisher.safetensors").read_bytes()
    assert [] == snapshots(folder)


@pytest.mark.slow
def test_subject_that_cannot_be_used_ends_all_processes(begin, folder):
    """It is told, nothing is written, and nobody waits for ever."""
    path = folder / "hcp/100001/T1w/T1w_acpc_dc_restore.nii.gz"
    image = nibabel.load(path)
    values = image.get_fdata(dtype=np.float32)
    values[8, 8, 8] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
    process = begin(folder)
    said, complaints = process.communicate(timeout=120)

    assert process.returncode != 0
    assert json.loads(said)["error"]["exit_code"] in (65, 143)  # of the first process, which the launcher may stop before it is told
    assert "error: " in complaints
    assert "subject 2, t1: wanted finite voxels, found 1 of 6120 are N" in complaints
    assert "100001" not in complaints
    assert not (folder / "m1.fisher.safetensors").exists()
