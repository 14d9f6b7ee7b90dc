"""Damage and interruption at random, for as long as asked: what the product must survive, counted.

    python tests/reliability/soak.py [--minutes 30] [--seed 0] [--markdown FILE]      (make soak)

Turns of five kinds follow one another until the time is over; the first thing that must not happen ends it with exit code 1.
    mutants   one byte of a checkpoint, Fisher diagonal or volume of ours is changed, or the file is cut: it is refused in one line
              (65), or gives the same values
    writers   a process that writes a file again and again is killed: the file is whole, and one of the two contents
    recipes   a line of a recipe is cut, doubled, moved or given another value: it loads, or is refused in words (2)
    changes   while fuse, fisher or adapt read, another program replaces, cuts or overwrites an input: the result is that of the old
              content, or of the new one where it came early, or it is refused (65)
    work      train, fisher, adapt, fuse, finetune, preprocess or predict is killed or terminated in the middle of its work, and
              goes on with --resume: nothing half-written stands under a final name, and the end has the same bits
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = """version: 1
architecture: {{name: isensee2017, base_filters: 2, depth: 3}}
target: {{data: hcp/, modalities: [t1, t2], regions: {regions}, split: {{train: 3, validation: 1, test: 0, seed: 0}}}}
train: {{init: {init}, epochs: {epochs}, patience: null, snapshot_minutes: 0}}
"""
TIMM = """version: 1
sources:
  - {name: m1, checkpoint: m1/train/best.safetensors}
  - {name: m2, checkpoint: m2/train/best.safetensors}
merge: {method: timm}
target: {data: brats/, modalities: [t1, t1ce, t2, flair], regions: brats, split: {train: 3, validation: 1, test: 0, seed: 0}}
adapt: {epochs: EPOCHS, patience: null, snapshot_minutes: 0}
finetune: {epochs: EPOCHS, patience: null, snapshot_minutes: 0}
"""
WRITER = """
import sys
from mergekit3d.storage.atomic import write_bytes
print("ready", flush=True)
while True:
    for letter in (b"a", b"b"):
        write_bytes(sys.argv[1], letter * 300_000)
"""
SLOWEST_S = 20.0
"""What reading a damaged file may take."""


class BrokenError(Exception):
    """Something happened that must not."""


@dataclass(frozen=True)
class Job:
    """A command that is interrupted.

    Args:
        words: of the command line.
        outputs: globs of the files that have the same bits however it went.
        begun: a glob of what appears once it is in the middle of its work.
        again: what goes on from where it was stopped.
    """

    words: tuple[str, ...]
    outputs: tuple[str, ...]
    begun: str
    again: str = "--resume"


M1, BEST = "m1/train/best.safetensors", "timm/finetune/best.safetensors"
JOBS = {
    "train": Job(("train", "--recipe", "m1.yaml"), ("m1/train/*.safetensors",), "m1/train/snapshot.pt"),
    "fisher": Job(
        ("fisher", M1, "--data", "hcp", "--snapshot-minutes", "0", "--draws", "8"),
        ("m1/train/best.fisher.safetensors",),
        "m1/train/.*.snapshot*",
    ),
    "adapt": Job(
        ("adapt", "--recipe", "timm.yaml"), ("timm/adapt/checkpoint.safetensors", "timm/adapt/ratios.json"), "timm/adapt/snapshot.pt"
    ),
    "fuse": Job(("fuse", "--recipe", "timm.yaml"), ("timm/fused.safetensors", "timm/fused.report.json"), "timm/.mergekit3d-*", "--force"),
    "finetune": Job(("finetune", "--recipe", "timm.yaml"), ("timm/finetune/*.safetensors",), "timm/finetune/snapshot.pt"),
    "preprocess": Job(("preprocess", "brats", "prepared", "--no-n4", "--workers", "1"), ("prepared/**/*.nii.gz",), "prepared/**/*.nii.gz"),
    "predict": Job(("predict", BEST, "--data", "brats", "--out", "predictions"), ("predictions/*.nii.gz",), "predictions/*.nii.gz"),
}
"""In the order of the pipeline."""


CHANGES = {
    "fuse": {M1: "m1/train/last.safetensors", "m2/train/best.fisher.safetensors": "m1/train/best.fisher.safetensors"},
    "fisher": {M1: "m1/train/last.safetensors", "T2w_acpc*.nii.gz": "T2w_acpc*.nii.gz"},
    "adapt": {M1: "m1/train/last.safetensors", "*_t2.nii.gz": "*_t2.nii.gz"},
}
"""Inputs of a command that are changed while it reads, each with what is written in its place; the first and the last that fit."""


def replace(path: Path, new: bytes) -> None:
    """As a careful program does: the old file goes on under its open descriptors."""
    beside = path.with_name("beside.tmp")
    beside.write_bytes(new)
    beside.replace(path)


def overwrite(path: Path, new: bytes) -> None:
    """As cp does."""
    with open(path, "r+b") as file:
        file.write(new)
        file.truncate()


def overwrite_half(path: Path, new: bytes) -> None:
    """As cp in the middle of its work: the first half is old, the second new."""
    overwrite(path, path.read_bytes()[: len(new) // 2] + new[len(new) // 2 :])


def cut(path: Path, _: bytes) -> None:
    """As a copy that starts anew."""
    os.truncate(path, path.stat().st_size // 2)


FAULTS = (replace, overwrite, overwrite_half, cut)


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (minus the signal that ended it), and what it said on stderr."""

    code: int
    said: str


@dataclass(frozen=True)
class Stop:
    """A signal, and when it is sent: after a share of the time that a command takes, but never before it has begun its work.

    Args:
        number: of the signal.
        at: the share.
        seconds: what the command takes.
        begun: a glob of what is there once the work has begun.
    """

    number: int
    at: float
    seconds: float
    begun: str

    def wait(self, folder: Path, has_ended: Callable[[], bool]) -> bool:
        """Wait for the moment; whether the command ended before."""
        began = time.monotonic()
        while not has_ended():
            if time.monotonic() - began >= self.at * self.seconds and any(folder.glob(self.begun)):
                return False
            time.sleep(0.002)
        return True


COLD = (sys.executable, "-m", "mergekit3d_cli")


def in_a_process(folder: Path, words: tuple[str, ...], stop: Stop | None = None, program: Sequence[str] = COLD) -> Ended:
    """Run a command as a user does, to its end or to where it is stopped."""
    process = subprocess.Popen(
        [*program, *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if stop is not None and not stop.wait(folder, lambda: process.poll() is not None):
        process.send_signal(stop.number)
    said = process.communicate()[1].decode(errors="replace")
    return Ended(process.returncode, said)


@dataclass
class Work:
    """A project, whole, and how each command's outputs look after it ran through."""

    root: Path
    run: Callable[..., Ended] = in_a_process
    epochs: int = 8
    seconds: dict[str, float] = field(default_factory=dict)
    before: dict[str, Path] = field(default_factory=dict)
    wanted: dict[str, dict[str, str]] = field(default_factory=dict)

    def carried_out(self, folder: Path, *words: str) -> None:
        """Run a command to its end."""
        ended = self.run(folder, words)
        if ended.code != 0:
            raise BrokenError(f"{' '.join(words)} ended with {ended.code}: {ended.said[-500:]}")

    def prepare(self, names: list[str]) -> None:
        """Run the pipeline once, and keep the folder as it was before each command."""
        folder = self.root / "whole"
        folder.mkdir(parents=True)
        for layout in ("hcp", "brats"):
            self.carried_out(folder, "phantom", layout, "--layout", layout, "--subjects", "4", "--spacing-mm", "6")
        (folder / "m1.yaml").write_text(SOURCE.format(regions="hcp-1-7", init="none", epochs=self.epochs))
        (folder / "m2.yaml").write_text(SOURCE.format(regions="hcp-8-14", init=M1, epochs=self.epochs))
        (folder / "timm.yaml").write_text(TIMM.replace("EPOCHS", str(self.epochs)))
        for name, job in JOBS.items():
            if name == "adapt":
                self.carried_out(folder, "train", "--recipe", "m2.yaml")
                self.carried_out(folder, "fisher", "m2/train/best.safetensors", "--data", "hcp")
            if name in names:
                self.before[name] = self.root / "before" / name
                shutil.copytree(folder, self.before[name])
            began = time.monotonic()
            self.carried_out(folder, *job.words)
            self.seconds[name] = time.monotonic() - began
            self.wanted[name] = digests(folder, job)
            if name == names[-1]:
                return

    def interrupted(self, name: str, number: int, at: float) -> str:
        """Stop a command in the middle of its work, go on, and compare.

        Args:
            name: of the job.
            number: of the signal.
            at: when, from 0 (as soon as it has begun) to 1 (when it would about end).

        Returns:
            What happened: "stopped", or "done before" where it was faster.

        Raises:
            BrokenError: see the top.
        """
        job, folder = JOBS[name], self.root / "now"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.before[name], folder)
        ended = self.run(folder, job.words, Stop(number, at, self.seconds[name], job.begun))
        if ended.code not in (0, -number, 128 + number):
            raise BrokenError(f"{name} ended with {ended.code} after signal {number}: {ended.said[-500:]}")
        if "Traceback" in ended.said:
            raise BrokenError(f"{name} showed a traceback after signal {number}: {ended.said[-500:]}")
        for path in sorted(folder.rglob("*.safetensors")):
            if not path.name.startswith(".") and "prepared" not in path.parts:
                self.carried_out(folder, "verify", str(path.relative_to(folder)))
        self.carried_out(folder, *job.words, job.again)
        found = digests(folder, job)
        if found != self.wanted[name]:
            changed = [path for path, digest in self.wanted[name].items() if found.get(path) != digest]
            raise BrokenError(f"{name} ended with other bits after signal {number} at {at:.2f}: {', '.join(changed)}")
        leftovers = [path.name for path in folder.rglob(".mergekit3d-*.tmp*")]
        if leftovers:
            raise BrokenError(f"{name} left {leftovers} behind")
        return "stopped" if ended.code != 0 else "done before"

    def changed(self, name: str, victim: str, fault: Callable[[Path, bytes], None], at: float) -> str:
        """Change an input while a command reads.

        Args:
            name: of the job.
            victim: the input, as in `CHANGES`.
            fault: what happens to it.
            at: when, from 0 (at the start) to 1 (when the command would about end).

        Returns:
            What came of it: "the old result", "the new result" or "refused".

        Raises:
            BrokenError: see the top.
        """
        job, folder = JOBS[name], self.root / "now"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.before[name], folder)
        path, other = sorted(folder.rglob(victim))[0], sorted(folder.rglob(CHANGES[name][victim]))[-1]
        new = other.read_bytes()
        timer = threading.Timer(at * self.seconds[name], lambda: fault(path, new))
        timer.start()
        ended = self.run(folder, job.words)
        timer.join()
        said = f"{name} whose {path.name} was changed by {fault.__name__} at {at:.2f}"
        if ended.code not in (0, 65) or "Traceback" in ended.said:
            raise BrokenError(f"{said} ended with {ended.code}: {ended.said[-500:]}")
        found = digests(folder, job)
        if ended.code == 65:
            if found and name != "adapt":  # a training leaves the best so far
                raise BrokenError(f"{said} was refused, and left {', '.join(found)}")
            return "refused"
        if found == self.wanted[name]:
            return "the old result"
        again = self.run(folder, (*job.words, "--force"))
        if again.code != 0 or digests(folder, job) != found:
            raise BrokenError(f"{said} gave neither the old result nor the new one")
        return "the new result"


def digests(folder: Path, job: Job) -> dict[str, str]:
    files = sorted(path for pattern in job.outputs for path in folder.glob(pattern))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def mutants(folder: Path, generator: random.Random, number: int) -> Counter[str]:
    """Damaged files of ours, read by the functions that every command reads with."""
    from mergekit3d.errors import InputError
    from mergekit3d.volumes.nifti import read_image

    readers: dict[Path, Callable[[Path], object]] = dict.fromkeys(samples(folder), weights_of)
    volume = next(folder.glob("brats/**/*_t1.nii.gz"))
    readers[volume] = lambda path: (read_image(path).data.tobytes(), read_image(path).affine.tobytes())
    counts: Counter[str] = Counter()
    for path, read in readers.items():
        good, whole = path.read_bytes(), read(path)
        damaged = folder / f"damaged{''.join(path.suffixes[-2:])}"
        for _ in range(number):
            damaged.write_bytes(mutated(good, generator))
            began = time.monotonic()
            try:
                same = read(damaged) == whole
            except InputError:
                counts[f"{path.suffix} refused"] += 1
            else:
                if not same:
                    raise BrokenError(f"a damaged {path.suffix} was accepted with other values; it is kept as {damaged}")
                counts[f"{path.suffix} the same values"] += 1
            if time.monotonic() - began > SLOWEST_S:
                raise BrokenError(f"a damaged {path.suffix} took {time.monotonic() - began:.0f} s; it is kept as {damaged}")
    return counts


def samples(folder: Path) -> list[Path]:
    """A checkpoint of each format that seals, and a Fisher diagonal."""
    whole = folder / M1
    if not (folder / "converted.pt").exists():
        ended = in_a_process(folder, ("convert", M1, "converted.pt"))
        if ended.code != 0:
            raise BrokenError(f"convert ended with {ended.code}: {ended.said[-500:]}")
    return [whole, folder / "converted.pt", *folder.glob("m1/train/best.fisher.safetensors")]


def weights_of(path: Path) -> object:
    from mergekit3d.checkpoints import open_checkpoint

    opened = open_checkpoint(path)
    return {name: (entry.dtype, entry.shape, opened.read(name).tobytes()) for name, entry in opened.entries.items()}, opened.metadata


def mutated(good: bytes, generator: random.Random) -> bytes:
    """One byte changed, one bit flipped, some bytes cut off, left out or put in."""
    place, kind = generator.randrange(len(good)), generator.randrange(8)
    if kind == 0:
        return good[:place]
    if kind == 1:
        return good[:place] + good[place + generator.randrange(1, 9) :]
    if kind == 2:
        return good[:place] + generator.randbytes(generator.randrange(1, 9)) + good[place:]
    changed = bytearray(good)
    changed[place] ^= 1 << generator.randrange(8) if kind % 2 else generator.randrange(1, 256)
    return bytes(changed)


def writers(folder: Path, generator: random.Random, number: int) -> Counter[str]:
    """Killed in the middle of writing."""
    target, counts = folder / "file.bin", Counter[str]()
    for _ in range(number):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(generator.uniform(0.0, 0.03))
            writer.send_signal(signal.SIGKILL)
        if target.exists() and target.read_bytes() not in (b"a" * 300_000, b"b" * 300_000):
            raise BrokenError("a killed writer left half a file")
        counts["kills of the writer"] += 1
    return counts


def recipes(folder: Path, generator: random.Random, number: int) -> Counter[str]:
    """Recipes that somebody edited badly."""
    from mergekit3d.errors import MergeKit3DError
    from mergekit3d.recipe import load_recipe

    counts, path = Counter[str](), folder / "edited.yaml"
    values = ["no", "1e-8", "-1", "[]", "{}", "''", "null", "&a", "*a", "!!python/object:os.system", "ééééé", ".inf", "0x10", "1_000", "|"]
    for _ in range(number):
        lines = TIMM.replace("EPOCHS", "8").splitlines()
        place, kind = generator.randrange(len(lines)), generator.randrange(5)
        if kind == 0:
            lines.insert(generator.randrange(len(lines)), lines[place])
        elif kind == 1:
            del lines[place]
        elif kind == 2:
            lines[place] = lines[place].replace(": ", f": {generator.choice(values)} #", 1)
        elif kind == 3:
            text = "\n".join(lines).encode()
            at = generator.randrange(len(text))
            path.write_bytes(text[:at] + generator.randbytes(1) + text[at + 1 :])
        else:
            lines[place] = " " * generator.randrange(4) + lines[place]
        if kind != 3:
            path.write_text("\n".join(lines), encoding="utf-8")
        try:
            load_recipe(path)
        except MergeKit3DError as error:
            if error.exit_code not in (2, 65):
                raise BrokenError(f"a bad recipe ended with {error.exit_code}: {error}") from error
            counts["recipes refused"] += 1
        else:
            counts["recipes accepted"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="write the counts into this file too")
    chosen = parser.parse_args()
    generator, counts = random.Random(chosen.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder) / "work")
        work.prepare(list(JOBS))
        whole, end = work.root / "whole", time.monotonic() + 60 * chosen.minutes
        try:
            while time.monotonic() < end:
                counts += mutants(whole, generator, 150) + recipes(whole, generator, 60) + writers(Path(folder), generator, 10)
                for name, victims in CHANGES.items():
                    victim, fault = generator.choice(list(victims)), generator.choice(FAULTS)
                    happened = work.changed(name, victim, fault, generator.random())
                    counts[f"{name}, an input is changed by {fault.__name__}: {happened}"] += 1
                for name in JOBS:
                    number = generator.choice((signal.SIGKILL, signal.SIGTERM))
                    happened = work.interrupted(name, number, generator.random())
                    counts[f"{name}, {number.name}: {happened}"] += 1
        except BrokenError as error:
            sys.exit(f"broken after {sum(counts.values())} turns: {error}")
    said = [f"{chosen.minutes:g} minutes, seed {chosen.seed}, {platform.machine()}, {os.cpu_count()} cores", ""]
    said += ["| what | how often |", "|---|---|", *(f"| {what} | {often} |" for what, often in sorted(counts.items()))]
    print(*said, sep="\n")
    if chosen.markdown is not None:
        chosen.markdown.write_text("\n".join([*said, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
