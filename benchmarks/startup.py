"""`mergekit3d --help` and `mergekit3d inspect` of a file of 125 MB, beside `python -c pass`.

    python benchmarks/startup.py [--repeats 15] [--file CHECKPOINT] [--folder DIR]

Times whole processes and prints a table in Markdown: the median of the repeats in seconds, after one round to warm up. The variants
take turns, so that a machine that slows down slows all of them. Exits with 1 when it cannot measure: a variant fails, or prints
nothing. The file is written into a temporary folder: 31 million parameters of nnU-Net's network, with metadata and a seal.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from fusion.inputs import shapes_of
from fusion.processes import CannotMeasureError

MILLIONS = 31
GOAL_S = 0.3
INTERPRETER = "python -c pass"
LIMIT_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--file", type=Path, help="a checkpoint to inspect; left out: one of 125 MB is written")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes; left out: where the system has it")
    chosen = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="mergekit3d-startup-", dir=chosen.folder) as folder:
            file = write_checkpoint_of(Path(folder) / "m1.safetensors") if chosen.file is None else chosen.file.resolve()
            print(table(take_turns(commands(file), max(1, chosen.repeats)), file.stat().st_size))
    except (CannotMeasureError, OSError) as error:
        sys.exit(f"cannot measure: {error}")


def write_checkpoint_of(path: Path) -> Path:
    """Write a checkpoint as `train` does; of zeros, since no value is read."""
    import numpy as np

    from mergekit3d.checkpoints import CHECKPOINT, Metadata, TaskSpec, TensorEntry, write_checkpoint
    from mergekit3d.checkpoints.metadata import tool

    task = TaskSpec(("t1", "t1ce", "t2", "flair"), {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)})
    metadata = Metadata(CHECKPOINT, task=task, method="train", provenance={"recipe": "0" * 64, "seed": 0}, tool=tool())
    shapes = shapes_of(MILLIONS)
    write_checkpoint(path, ((TensorEntry(name, "F32", shape), np.zeros(shape, "<f4")) for name, shape in shapes.items()), metadata)
    return path


def commands(file: Path) -> dict[str, list[str]]:
    """What is measured, by name."""
    ours = [sys.executable, "-m", "mergekit3d_cli"]
    return {
        INTERPRETER: [sys.executable, "-c", "pass"],
        "python -c 'import numpy'": [sys.executable, "-c", "import numpy"],
        "mergekit3d --help": [*ours, "--help"],
        "mergekit3d inspect": [*ours, "inspect", str(file)],
    }


def take_turns(variants: Mapping[str, Sequence[str]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of each variant, a round to warm up left out.

    Raises:
        CannotMeasureError: a variant failed, or said nothing.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, command in variants.items():
            took = run_once(command, says_something=name.startswith("mergekit3d"))
            if turn > 0:
                seconds[name].append(took)
    return seconds


def run_once(command: Sequence[str], *, says_something: bool) -> float:
    began = time.perf_counter()
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=LIMIT_S)  # noqa: S603  ours
    except subprocess.TimeoutExpired as error:
        raise CannotMeasureError(f"{' '.join(command)} takes more than {LIMIT_S} s") from error
    took = time.perf_counter() - began
    if done.returncode != 0 or (says_something and not done.stdout.strip()):
        raise CannotMeasureError(f"exit code {done.returncode} of {' '.join(command)}\n{done.stderr[-2000:]}")
    return took


def table(seconds: Mapping[str, Sequence[float]], size: int) -> str:
    """A heading and one row a variant."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "typer"))
    machine = f"{datetime.now(UTC).date().isoformat()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    lines = [
        f"{machine}, Python {platform.python_version()}, {versions}; the file has {size / 1e6:.0f} MB.",
        "",
        "| whole process | median, s | fastest to slowest, s | more than the interpreter, s | goal |",
        "|---|---|---|---|---|",
    ]
    interpreter = median(seconds[INTERPRETER])
    for name, taken in seconds.items():
        found = median(taken)
        verdict = f"at most {GOAL_S} s: {'met' if found <= GOAL_S else '**missed**'}" if name.startswith("mergekit3d") else ""
        more = "" if name == INTERPRETER else f"{found - interpreter:.3f}"
        lines.append(f"| `{name}` | {found:.3f} | {min(taken):.3f} to {max(taken):.3f} | {more} | {verdict} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
