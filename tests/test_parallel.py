"""Steps of a study side by side: the results of one after the other, whatever stops them in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from mergekit3d.errors import InputError, LockedError, UsageError
from mergekit3d.options import Options
from mergekit3d.parallel import slots_for
from mergekit3d.progress import Silent
from mergekit3d.storage.lock import LOCK_NAME, output_lock
from mergekit3d.verbs.run import run

pytestmark = pytest.mark.slow

RECIPE = """
version: 1
name: small
data: {hcp: hcp/, brats: brats/}
architecture: {name: isensee2017, base_filters: 2, depth: 3}
sources:
  - name: m1
    target: {data: hcp, modalities: [t1, t2], regions: hcp-1-7, split: {train: 2, validation: 1}}
    train: {init: none, epochs: 1, batch_size: 2}
target: {data: brats, modalities: [t1, t1ce, t2, flair], regions: brats, split: {train: 2, validation: 1}}
finetune: {epochs: 2, batch_size: 2, snapshot_minutes: 0}
study: {initialisations: [none, m1], forgetting: false}
"""
NETWORKS = ("m1/train/best.safetensors", "none/finetune/best.safetensors", "m1/finetune/best.safetensors")


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, message: str) -> None:
        """Keep a line."""
        self.said.append(message)

    def warn(self, message: str) -> None:
        """Keep a warning."""
        self.said.append(f"warning: {message}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[[Path], Path]) -> Path:
    """A folder in which the recipe has run, one step after the other."""
    root = make_data(tmp_path_factory.mktemp("parallel"))
    (root / "small.yaml").write_text(RECIPE)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run(root / "small.yaml")
    torch.set_num_threads(before)
    return root


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """In the processes too: the number of threads can decide the last bits on a CPU."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def weights(out: Path) -> list[dict[str, bytes]]:
    """Of all networks, byte by byte; their provenance tells the whole recipe, which some tests change."""
    return [{name: tensor.tobytes() for name, tensor in load_file(out / name).items()} for name in NETWORKS]


def test_side_by_side_is_the_same_to_the_bit(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step has its own process, waits for its inputs, and is up to date the next time, however that runs.

    The paths are relative, as a user types them: those of sources are made absolute for the arms, and are the same files still.
    No step waits for a place (3 jobs), so that each must wait for its inputs. What lies in the current folder is not taken for code.
    """
    told = Told()
    (tmp_path / "here").mkdir()
    (tmp_path / "here/random.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path / "here")
    out = Path(os.path.relpath(tmp_path / "out"))
    result = run(os.path.relpath(alone / "small.yaml"), jobs=3, options=Options(out=out), reporter=told)
    again = run(alone / "small.yaml", options=Options(out=tmp_path / "out"))

    assert ["train m1", "finetune none seed 0", "finetune m1 seed 0"] == [step.name for step in result.steps if step.done]
    assert not any(step.done for step in again.steps)
    assert [(alone / "small" / name).read_bytes() for name in NETWORKS] == [(tmp_path / "out" / name).read_bytes() for name in NETWORKS]
    assert told.said.index("[2/3] finetune none seed 0") < next(
        i for i, line in enumerate(told.said) if line.startswith("train m1: done in")
    )


def test_failed_step_stops_new_ones_and_is_told(alone: Path, tmp_path: Path, make_data: Callable[[Path], Path]) -> None:
    """Those under way end, and need not be done again."""
    root = make_data(tmp_path)
    for path in (root / "brats").rglob("*_flair.nii.gz"):
        path.write_bytes(b"damaged")
    (root / "small.yaml").write_text(RECIPE)
    told = Told()
    with pytest.raises(InputError):
        run(root / "small.yaml", jobs=2, reporter=told)

    assert any(line.startswith("warning: finetune none seed 0 failed: ") for line in told.said)
    assert not any("] finetune m1 seed 0" in line for line in told.said)
    assert (root / "small/m1/train/best.safetensors").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)])
def test_stopped_run_goes_on_to_the_same_bits(alone: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """A signal reaches the processes of the steps, which save their state; a killed run takes them along."""
    command = [sys.executable, "-m", "mergekit3d_cli", "run", str(alone / "small.yaml"), "--jobs", "2", "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "--set", "finetune.epochs=100000"], stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "out/none/finetune/snapshot.pt", process)
    process.send_signal(number)
    assert code == process.wait(timeout=60), process.communicate()
    for lock in (tmp_path / "out").rglob(LOCK_NAME):  # each step's process ends in its own time
        wait_until_free(lock.parent)
    run(alone / "small.yaml", options=Options(out=tmp_path / "out"))

    assert weights(alone / "small") == weights(tmp_path / "out")


def test_interrupted_steps_go_on_from_their_snapshots(alone: Path, tmp_path: Path) -> None:
    """`run --jobs 2 --resume` after a signal: each step begins where it stopped, and ends with the bits of a whole run."""
    longer = "finetune.epochs=12"
    command = [sys.executable, "-m", "mergekit3d_cli", "run", str(alone / "small.yaml"), "--jobs", "2", "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "--set", longer], stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "out/none/finetune/snapshot.pt", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert 128 + signal.SIGTERM == process.returncode, said
    assert "--resume" in said
    told = Told()
    run(alone / "small.yaml", overrides=[longer], jobs=2, options=Options(out=tmp_path / "out", resume=True), reporter=told)
    run(alone / "small.yaml", overrides=[longer], options=Options(out=tmp_path / "whole"))

    assert any(line.startswith("finetune none seed 0: going on from epoch") for line in told.said), told.said
    assert weights(tmp_path / "whole") == weights(tmp_path / "out")


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there."""
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    pytest.fail(f"no {path.name}")


def wait_until_free(folder: Path) -> None:
    """Until no process writes there."""
    for _ in range(1200):
        try:
            with output_lock(folder):
                return
        except LockedError:
            time.sleep(0.05)
    pytest.fail("a process outlived its run")


def test_slots_are_devices_times_jobs() -> None:
    """One by default where there is no second GPU."""
    assert ["cpu", "cpu", "cpu"] == slots_for(Options(), ["cpu"], 3)
    assert ["cpu"] == slots_for(Options(device="cpu"), [], 1)


@pytest.mark.parametrize(
    ("options", "devices", "jobs", "said"),
    [
        (Options(), ["cpu", "cpu"], 1, "a device stands twice"),
        (Options(device="cpu"), ["cpu"], 1, "exclude each other"),
        (Options(), [], 0, "at least 1"),
        (Options(), ["cuda:99"], 1, "the device is not there"),
        (Options(), ["gpu"], 1, "unknown device"),
    ],
)
def test_devices_are_checked(options: Options, devices: list[str], jobs: int, said: str) -> None:
    """Before any work."""
    with pytest.raises(UsageError, match=said):
        slots_for(options, devices, jobs)
