"""Markdown of what was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from fusion.cases import FLOOR, FLOORS, OURS, PEER_AVERAGE, Case
from fusion.inputs import largest_tensor_bytes
from fusion.processes import Run

MB, GB = 1e6, 1e9
Runs = Mapping[str, Sequence[Run]]


def heading(peer: Path | None, repeats: int) -> str:
    """Machine, versions and date, and what the columns mean."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "safetensors"))
    date = datetime.now(UTC).date().isoformat()
    load = os.getloadavg()[0]
    return (
        f"{date}, {_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}; {_peer_version(peer)}. "
        f"Load average before: {load:.1f}{' (other work slows the threads of torch most)' if load > 0.5 else ''}.\n\n"
        f"Whole processes, {repeats} of each after one to warm up, taking turns, with a warm page cache. Wall: median (fastest to "
        "slowest); memory: the largest of all runs, of a program and its children together. RSS holds the pages of mapped files too; "
        "anonymous memory is a process's own (what forked ones share is counted in each). Floor: every input read once through a "
        "buffer of 1 MiB and one output written, by a Python without numpy and torch. Of the programs, mergekit3d alone waits until its "
        "output is on the disk (fsync)."
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _peer_version(peer: Path | None) -> str:
    if peer is None:
        return "no mergekit-pytorch"
    found = sorted(peer.resolve().parent.parent.glob("lib/python*/site-packages/mergekit-*.dist-info"))
    return f"mergekit {found[0].name.removesuffix('.dist-info').partition('-')[2]}" if found else "mergekit of unknown version"


def comparison(case: Case, runs: Runs) -> str:
    """One row a variant."""
    lines = [f"## {case.title}", "", f"{case.input_bytes / GB:.2f} GB in, {case.checkpoints[0].stat().st_size / GB:.2f} GB out.", ""]
    lines += ["| | wall, s | CPU, s | peak RSS, MB | peak anonymous, MB | x floor | x floor, fsync |", "|---|---|---|---|---|---|---|"]
    for name, measured in runs.items():
        # The plain average reads half of what the floor beside it does.
        ratios = " | ".join("" if name == PEER_AVERAGE else f"{wall(measured) / wall(runs[floor]):.1f}" for floor in FLOORS)
        cells = f"{_wall_range(measured)} | {median(run.cpu_s for run in measured):.2f} | {_most(measured, 'peak_rss')}"
        lines.append(f"| {name} | {cells} | {_most(measured, 'peak_anonymous')} | {ratios} |")
    return "\n".join([*lines, "", *_goals(case, runs), ""])


def _goals(case: Case, runs: Runs) -> list[str]:
    """The lines of the performance table that a case is measured for."""
    ours, told = runs[OURS], []
    if (case.method, case.millions, case.sources) == ("imm", 31, 2):
        told.append(_goal("at most 0.7 s", f"{wall(ours):.2f} s", wall(ours) <= 0.7))
        if PEER_AVERAGE in runs:
            times = wall(runs[PEER_AVERAGE]) / wall(ours)
            told.append(_goal("6 times as fast as mergekit's plain average", f"{times:.1f} times", times >= 6))
    if (case.millions, case.sources) == (240, 4):
        ratio = wall(ours) / wall(runs[FLOOR])
        told.append(_goal("at most 3 x the floor", f"{ratio:.1f} x", ratio <= 3))
    bound = 200 * MB + 4 * largest_tensor_bytes(case.millions)
    peak = max(run.peak_anonymous for run in ours)
    told.append(_goal(f"anonymous at most 200 MB + 4 x the largest tensor = {bound / MB:.0f} MB", f"{peak / MB:.0f} MB", peak <= bound))
    return told


def _goal(wanted: str, found: str, met: bool) -> str:
    return f"- Goal: {wanted}. Found: {found}{'' if met else ' (**missed**)'}."


def growth(title: str, axis: str, measured: Mapping[str, tuple[Case, Runs]]) -> str:
    """One row a point, and the line fitted through the wall times of ours."""
    lines = [f"## {title}", "", f"| {axis} | input, GB | wall, s | CPU, s | peak anonymous, MB | floor, s | x floor |"]
    lines.append("|---|---|---|---|---|---|---|")
    for label, (case, runs) in measured.items():
        ours, floor = runs[OURS], wall(runs[FLOOR])
        cells = f"{_wall_range(ours)} | {median(run.cpu_s for run in ours):.2f} | {_most(ours, 'peak_anonymous')}"
        lines.append(f"| {label} | {case.input_bytes / GB:.2f} | {cells} | {floor:.2f} | {wall(ours) / floor:.1f} |")
    if len(measured) > 1:
        sizes = [case.input_bytes / GB for case, _ in measured.values()]
        fits = [line_through(sizes, [wall(runs[name]) for _, runs in measured.values()]) for name in (OURS, FLOOR)]
        told = "; ".join(
            f"{name}: {start:.2f} s + {slope:.2f} s per GB of input (off by {off:.2f} s at most)"
            for name, (start, slope, off) in zip((OURS, FLOOR), fits, strict=True)
        )
        lines += ["", f"Fitted: {told}."]
    return "\n".join([*lines, ""])


def line_through(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Least squares: start, slope, and the largest distance of a point from the line."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((at - mean_x) ** 2 for at in x)
    slope = sum((at - mean_x) * (value - mean_y) for at, value in zip(x, y, strict=True)) / spread if spread else 0.0
    start = mean_y - slope * mean_x
    return start, slope, max(abs(start + slope * at - value) for at, value in zip(x, y, strict=True))


def cross_check(all_runs: Sequence[Run]) -> str:
    """How far the kernel's own account of peak memory is from what was sampled, and whether the page cache served all reads."""
    telling = [run for run in all_runs if run.maxrss > 64 * MB]  # ru_maxrss of a small process may be its parent's
    off = max((abs(run.maxrss - run.largest_rss) / run.maxrss for run in telling), default=0.0)
    from_disk = max((run.from_disk for run in all_runs), default=0)
    return (
        f"Peak RSS of the largest process as sampled and ru_maxrss agree within {100 * off:.1f} % in all {len(telling)} runs of more than "
        f"64 MB. No run read more than {from_disk / MB:.0f} MB from the disk; the page cache served the rest.\n"
    )


def wall(runs: Sequence[Run]) -> float:
    return median(run.wall_s for run in runs)


def _wall_range(runs: Sequence[Run]) -> str:
    walls = [run.wall_s for run in runs]
    return f"{median(walls):.2f} ({min(walls):.2f} to {max(walls):.2f})"


def _most(runs: Sequence[Run], field: str) -> str:
    return f"{max(getattr(run, field) for run in runs) / MB:.0f}"
