"""The SLURM script of the docs: a job whose time is over saves its state, queues itself again, and ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.warm import Warm

SCRIPT = Path(__file__).parents[2] / "docs" / "slurm.sh"
RECIPE = """
version: 1
architecture: {name: isensee2017, base_filters: 2, depth: 3}
target: {data: hcp/, modalities: [t1, t2], regions: hcp-1-7, split: {train: 3, validation: 1, test: 0, seed: 0}}
train: {init: none, epochs: 6, patience: null, snapshot_minutes: 0}
"""
TASKS = 1
"""Processes of a job; what several do together is tested elsewhere."""
SRUN = f"""#!/bin/bash
status=0
for ((rank = 0; rank < {TASKS}; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    echo $! >> pids
done
for pid in $(cat pids); do wait "$pid" || status=$?; done
exit "$status"
"""
SCONTROL = '#!/bin/bash\nif [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi\n'


@pytest.fixture
def queue(tmp_path: Path, make_data: Callable[[Path], Path], warm: Warm) -> Callable[[str], subprocess.Popen[bytes]]:
    """Starts the script in a folder of its own, as SLURM would."""
    data = make_data(tmp_path / "data")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, content in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tools / name).write_text(content)
        (tools / name).chmod(0o755)

    def start(folder: str) -> subprocess.Popen[bytes]:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "pids").unlink(missing_ok=True)
        if not (place / "m1.yaml").exists():
            (place / "m1.yaml").write_text(RECIPE)
            (place / "hcp").symlink_to(data / "hcp")
        told = {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_NTASKS": str(TASKS),
            "SLURM_NTASKS_PER_NODE": str(TASKS),
            "SLURM_CPUS_PER_TASK": "1",
        }
        environment = os.environ | told | {"PATH": f"{tools}:{warm.programs}:{os.environ['PATH']}"}
        words = ["bash", str(SCRIPT), "train", "--recipe", "m1.yaml", "--device", "cpu"]
        return subprocess.Popen(words, cwd=place, env=environment)

    return start


@pytest.mark.slow
def test_a_job_whose_time_is_over_goes_on_after_its_requeue(queue: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """USR1 in the middle of a training: exit code 138 and one requeue; the next run ends as one that was not stopped."""
    assert 0 == queue("through").wait(300)
    job = queue("stopped")
    while job.poll() is None and not (tmp_path / "stopped/m1/train/snapshot.pt").exists():
        time.sleep(0.01)
    for pid in (tmp_path / "stopped/pids").read_text().split():
        os.kill(int(pid), signal.SIGUSR1)
    assert 138 == job.wait(300)
    assert [f"requeue {os.getpid()}"] == (tmp_path / "stopped/requeued").read_text().splitlines()
    assert not list((tmp_path / "stopped/m1/train").glob("*.safetensors"))

    assert 0 == queue("stopped").wait(300)
    for name in ("best", "last"):
        through, stopped = (tmp_path / folder / f"m1/train/{name}.safetensors" for folder in ("through", "stopped"))
        assert through.read_bytes() == stopped.read_bytes()
    assert not (tmp_path / "through/requeued").exists()
