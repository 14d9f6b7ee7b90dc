"""Seconds of a whole process of the command line: `--help`, and `inspect` of a checkpoint of 125 MB; beside `python -c pass`.

    python benchmarks/startup.py [--runs 15] [--megabytes 125] [--folder DIR]

Prints a table in Markdown: medians of the wall time, with the fastest and the slowest run, and of the processor time, which other work
on the machine disturbs less. The commands take turns, after a round for warming up, so
that a machine that slows down slows all of them. Exits with 1 when it cannot measure: a command fails, or says something else than it
should.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mergekit3d.architectures import NetworkSpec, network_shapes
from mergekit3d.checkpoints import CHECKPOINT, Metadata, TaskSpec, TensorEntry, open_checkpoint
from mergekit3d.checkpoints.metadata import tool
from mergekit3d.checkpoints.safetensors import write_stream

MODALITIES = ("t1", "t1ce", "t2", "flair")


class CannotMeasureError(Exception):
    """A command failed, or the machine lacks what is measured."""


@dataclass(frozen=True)
class Command:
    """What is timed.

    Args:
        name: of its row.
        arguments: of the process.
        says: what its output must hold.
    """

    name: str
    arguments: tuple[str, ...]
    says: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--megabytes", type=float, default=125)
    parser.add_argument("--folder", type=Path, help="where the checkpoint goes; left out: a temporary folder")
    chosen = parser.parse_args()
    if chosen.runs < 1:
        parser.error("--runs must be 1 or more")
    try:
        with tempfile.TemporaryDirectory(prefix="mergekit3d-startup-", dir=chosen.folder) as folder:
            checkpoint = Path(folder) / "m1.safetensors"
            write_checkpoint(checkpoint, chosen.megabytes)
            print_table(commands(checkpoint), chosen.runs)
    except (CannotMeasureError, OSError) as error:
        sys.exit(f"cannot measure: {error}")


def write_checkpoint(path: Path, megabytes: float) -> None:
    """A checkpoint of Isensee 2017 with metadata, of the number of base filters that comes closest to the size, then read once."""

    def shapes(filters: int) -> dict[str, tuple[int, ...]]:
        return network_shapes(spec(filters))

    def size(filters: int) -> int:
        return 4 * sum(int(np.prod(shape)) for shape in shapes(filters).values())

    filters = min(range(4, 65), key=lambda count: abs(size(count) - megabytes * 1e6))
    entries = [TensorEntry(name, "F32", shape) for name, shape in shapes(filters).items()]
    task = TaskSpec(MODALITIES, {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)})
    provenance = {"sources": [{"name": name, "checkpoint": "0" * 64, "fisher": "1" * 64} for name in ("m1", "m2")], "seed": 0}
    metadata = Metadata(CHECKPOINT, spec(filters).as_json(), task, "timm", provenance, tool())
    generator = np.random.default_rng(0)
    write_stream(path, entries, lambda entry: generator.standard_normal(entry.shape, np.float32), metadata)
    open_checkpoint(path)


def spec(filters: int) -> NetworkSpec:
    return NetworkSpec("isensee2017", len(MODALITIES), 3, {"base_filters": filters})


def commands(checkpoint: Path) -> list[Command]:
    """What is timed, in the order of the rows."""
    program = str(Path(sys.executable).with_name("mergekit3d"))
    if not Path(program).exists():
        raise CannotMeasureError(f"no {program}: install mergekit3d into this environment")
    size = checkpoint.stat().st_size / 1e6
    return [
        Command("`python -c pass`", (sys.executable, "-c", "pass"), ""),
        Command("`mergekit3d --help`", (program, "--help"), "inspect"),
        Command(f"`mergekit3d inspect`, {size:.0f} MB", (program, "inspect", str(checkpoint)), "encoder.0.input.conv"),
        Command(f"`mergekit3d inspect --json`, {size:.0f} MB", (program, "inspect", str(checkpoint), "--json"), '"encoder.0.input.conv"'),
    ]


def print_table(timed: list[Command], runs: int) -> None:
    seconds: dict[str, list[tuple[float, float]]] = {command.name: [] for command in timed}
    for number in range(runs + 1):
        for command in timed:
            took = seconds_of(command)
            if number:  # the first round fills the caches
                seconds[command.name].append(took)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, median of {runs} runs in turns (fastest to slowest)\n")
    print("| whole process | seconds | processor seconds |\n|---|---|---|")
    for command in timed:
        wall, processor = zip(*seconds[command.name], strict=True)
        figures = f"{statistics.median(wall):.3f} ({min(wall):.3f} to {max(wall):.3f}) | {statistics.median(processor):.3f}"
        print(f"| {command.name} | {figures} |", flush=True)


def seconds_of(command: Command) -> tuple[float, float]:
    """Wall time and processor time of one run, which must succeed and say what it should."""
    used = processor_seconds()
    start = time.perf_counter()
    outcome = subprocess.run(command.arguments, capture_output=True, text=True, check=False)  # noqa: S603
    wall = time.perf_counter() - start
    if outcome.returncode != 0 or command.says not in outcome.stdout:
        said = (outcome.stderr.splitlines() or ["nothing on stderr"])[-1]
        raise CannotMeasureError(f"{' '.join(command.arguments)}: exit code {outcome.returncode}, {said}")
    return wall, processor_seconds() - used


def processor_seconds() -> float:
    """Of all processes that have ended so far."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
