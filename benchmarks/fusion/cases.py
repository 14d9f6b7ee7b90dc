"""What is fused, and the commands that fuse it: ours, the naive script, mergekit-pytorch, and the I/O floor."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fusion.inputs import fisher_path, source_path
from fusion.processes import CannotMeasureError, Run, run

HERE = Path(__file__).parent
OURS, NAIVE, PEER = "mergekit3d fuse", "naive torch script", "mergekit-pytorch"
PEER_AVERAGE = "mergekit-pytorch, plain average"  # beside imm, which it has not
FLOOR, FLOOR_FSYNC = "I/O floor", "I/O floor, fsync"
FLOORS = (FLOOR, FLOOR_FSYNC)

TOLERANCE = 5e-7
"""Of each output against the formula in float64, relative to the largest weight of a tensor: any two agree to 1e-6."""


@dataclass(frozen=True)
class Case:
    """One fusion.

    Args:
        method: linear or imm.
        millions: of parameters of a source.
        sources: number of them.
        folder: where the inputs are, and what is written goes.
    """

    method: str
    millions: float
    sources: int
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.method}, {self.sources} x {self.millions:g} M parameters" + (" with Fisher diagonals" if self.with_fisher else "")

    @property
    def with_fisher(self) -> bool:
        return self.method == "imm"

    @property
    def checkpoints(self) -> list[Path]:
        return [source_path(self.folder, self.millions, source) for source in range(self.sources)]

    @property
    def inputs(self) -> list[Path]:
        return self.checkpoints + ([fisher_path(path) for path in self.checkpoints] if self.with_fisher else [])

    @property
    def input_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.inputs)

    def warm_page_cache(self) -> None:
        """Read every input, and write and remove a file of the output's size: the same start for every process.

        On a virtual machine whose host takes free memory back within seconds, the first touch of a page costs up to 2 s per GB,
        which would fall on whatever comes after a pause.
        """
        buffer = memoryview(bytearray(1 << 20))
        for path in self.inputs:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        scratch, left = self.folder / "scratch", self.checkpoints[0].stat().st_size
        with open(scratch, "wb", buffering=0) as file:
            while left:
                left -= file.write(buffer[:left])
        scratch.unlink()

    @property
    def ratios(self) -> list[float]:
        """Rising from source to source for linear, so that a swap shows; equal for imm."""
        parts = [1.0 if self.with_fisher else 1.0 + source for source in range(self.sources)]
        return [part / sum(parts) for part in parts]


@dataclass(frozen=True)
class Variant:
    """One way to carry out a case.

    Args:
        name: as in the table.
        command: the process.
        out: the file that it writes.
        method: what it computes: linear or imm.
    """

    name: str
    command: list[str]
    out: Path
    method: str

    def run_once(self, case: Case, environment: Mapping[str, str], *, check: bool) -> Run:
        """Run and measure it, and remove what it wrote; its output is compared with the formula before that, where asked for.

        Raises:
            CannotMeasureError: it failed, or its output is missing or wrong.
        """
        log = case.folder / "log.txt"
        self.out.unlink(missing_ok=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        os.sync()  # what others have written does not go to the disk on this one's time
        case.warm_page_cache()
        measured = run(self.command, log, environment)
        if not self.out.is_file():
            raise CannotMeasureError(f"{self.name} wrote no {self.out}")
        if check and self.name not in FLOORS:
            self._check(case, log, environment)
        self.out.unlink()
        return measured

    def _check(self, case: Case, log: Path, environment: Mapping[str, str]) -> None:
        checker = [sys.executable, HERE / "check.py", self.method, self.out, *case.checkpoints, "--ratios", *case.ratios]
        tolerated = ["--nan-without-information"] if self.name == NAIVE else []
        run([*map(str, checker), *tolerated], log, environment)
        error = float(log.read_text().split()[-1])
        if not error <= TOLERANCE:
            raise CannotMeasureError(f"{case.title}: {self.name} is wrong by {error:.1e} of the largest weight")


def variants(case: Case, peer: Path | None, *, all_of_them: bool) -> list[Variant]:
    """Every way to carry out a case that there is; or ours and the floor alone.

    Args:
        case: the fusion.
        peer: the executable mergekit-pytorch, where it is installed.
        all_of_them: with the naive script, the peer and both floors.
    """
    work = case.folder / f"{case.method}-{case.sources}x{case.millions:g}M"
    out = work / "out.safetensors"
    floor = [sys.executable, "-I", "-S", str(HERE / "floor.py"), str(out), str(case.checkpoints[0].stat().st_size), *map(str, case.inputs)]
    found = [Variant(FLOOR, floor, out, case.method)]
    if all_of_them:
        found.append(Variant(FLOOR_FSYNC, [*floor, "--fsync"], out, case.method))
    found.append(_ours(case, work))
    if all_of_them:
        ratios = map(str, case.ratios)
        naive = [sys.executable, str(HERE / "naive.py"), case.method, str(out), *map(str, case.checkpoints), "--ratios", *ratios]
        found.append(Variant(NAIVE, naive, out, case.method))
        if peer is not None:
            found.append(_peer(case, work, peer))
    return found


def _ours(case: Case, work: Path) -> Variant:
    """Every tensor is fused, as by the peers; by default, norms and heads would be taken from the last source."""
    program = Path(sys.executable).with_name("mergekit3d")
    if not program.exists():
        raise CannotMeasureError(f"no {program}: install mergekit3d into the environment of this Python")
    named = [(f"m{index + 1}", path) for index, path in enumerate(case.checkpoints)]
    lines = ["version: 1", "sources:", *(f"  - {{name: {name}, checkpoint: {json.dumps(str(path))}}}" for name, path in named)]
    ratios = ", ".join(f"{name}: {ratio!r}" for (name, _), ratio in zip(named, case.ratios, strict=True))
    lines += ['partitions: {private: [], shared: ["*"]}', f"merge: {{method: {case.method}, ratios: {{{ratios}}}, out: fused.safetensors}}"]
    work.mkdir(parents=True, exist_ok=True)
    recipe = work / "recipe.yaml"
    recipe.write_text("\n".join([*lines, "out: out", ""]))
    command = [str(program), "fuse", "--recipe", str(recipe), "--force"]
    return Variant(OURS, command, work / "out" / "fused.safetensors", case.method)


def _peer(case: Case, work: Path, peer: Path) -> Variant:
    lines = ["merge_method: linear", "models:"]
    for path, ratio in zip(case.checkpoints, case.ratios, strict=True):
        lines += [f"  - model: {json.dumps(str(path))}", f"    parameters: {{weight: {ratio!r}}}"]
    config = work / "mergekit.yaml"
    config.write_text("\n".join([*lines, ""]))
    name = PEER_AVERAGE if case.with_fisher else PEER
    return Variant(name, [str(peer), str(config), str(work / "peer")], work / "peer" / "model.safetensors", "linear")


def find_peer(given: Path | None) -> Path | None:
    """The executable mergekit-pytorch: the one given, or else the one on PATH, where there is one."""
    if given is not None and not os.access(given, os.X_OK):
        raise CannotMeasureError(f"{given} is no program")
    found = shutil.which(PEER)
    return given if given is not None else None if found is None else Path(found)


def environment_of(folder: Path) -> dict[str, str]:
    """This process's environment, with a place for bytecode of its own, which the warm-up fills: as installed programs have it."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "HF_HUB_OFFLINE": "1"}
