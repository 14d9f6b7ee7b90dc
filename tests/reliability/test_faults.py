"""What a system does to a run: a full disk, a read-only folder, another run, a clock that goes back, links in a loop, pipes, devices.

Each is tried with every command that it can meet: the exit code is the one listed, one line says why, and what stood there still stands.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mergekit3d_cli.app import COMMANDS, app
from tests.builders import two_sources

TASK = (
    "target: {data: hcp/, modalities: [t1, t2], regions: {csf: [24], thalamus: [10, 49], pallidum: [13, 52]},"
    " split: {train: 2, validation: 1, test: 1, seed: 0}}\n"
)
SOURCES = "sources: [{name: m1, checkpoint: m1.safetensors}, {name: m2, checkpoint: m2.safetensors}]\n"
RECIPES = {
    "fuse.yaml": f"version: 1\n{SOURCES}merge: {{method: imm}}\n",
    "train.yaml": "version: 1\narchitecture: {name: isensee2017, base_filters: 2, depth: 3, segmentation_levels: 2}\n"
    f"{TASK}train: {{init: none, epochs: 1, patience: null}}\n",
    "timm.yaml": f"version: 1\n{SOURCES}merge: {{method: timm}}\n{TASK}adapt: {{epochs: 1}}\n"
    "finetune: {init: m1, epochs: 1, patience: null}\n",
}
WRITING: dict[str, tuple[str, ...]] = {
    "fuse": ("--recipe", "fuse.yaml", "--out", "OUT"),
    "convert": ("m1.safetensors", "OUT/m1.pt"),
    "fisher": ("m1.safetensors", "--data", "hcp", "--max-subjects", "1", "--draws", "1", "--out", "OUT/f.safetensors"),
    "train": ("--recipe", "train.yaml", "--out", "OUT"),
    "adapt": ("--recipe", "timm.yaml", "--out", "OUT"),
    "finetune": ("--recipe", "timm.yaml", "--out", "OUT"),
    "predict": ("m1.safetensors", "--data", "hcp", "--out", "OUT"),
    "evaluate": ("m1.safetensors", "--data", "hcp", "--subjects-file", "one.txt", "--out", "OUT"),
    "compare": ("a.csv", "b.csv", "--out", "OUT"),
    "preprocess": ("hcp", "OUT/p", "--no-n4", "--workers", "1"),
    "phantom": ("OUT/x", "--layout", "hcp", "--subjects", "1", "--spacing-mm", "6"),
    "plot": ("fused.report.json", "--out", "OUT/a.png"),
    "report": ("fused", "--out", "OUT/a.html"),
    "forgetting": (
        "m2.safetensors", "--source", "m1=m1.safetensors", "--data", "hcp", "--subjects-file", "one.txt", "--out", "OUT"
    ),
    "run": ("train.yaml", "--out", "OUT"),
    "demo": ("--out", "OUT/demo"),
}  # fmt: skip
"""Every command that writes files."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[[Path], Path]) -> Iterator[Path]:
    """Data, two networks with Fisher diagonals, recipes and tables; the working folder."""
    root, before = make_data(tmp_path_factory.mktemp("project")), Path.cwd()
    two_sources(root)
    for name, text in RECIPES.items():
        (root / name).write_text(text)
    for name in "ab":
        (root / f"{name}.csv").write_text("subject,region,dice,hd95\na,ET,0.5,1\nb,ET,0.6,2\n")
    (root / "one.txt").write_text("100000\n")
    os.chdir(root)
    code, said = carried_out("fuse", "--recipe", "fuse.yaml", "--out", "fused")
    assert code == 0, said
    Path("fused.report.json").write_bytes(Path("fused/fused.report.json").read_bytes())
    yield root
    os.chdir(before)


def carried_out(*words: object) -> tuple[int, str]:
    """Exit code and stderr; nothing may hang."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(60)
    try:
        result = CliRunner().invoke(app, [str(word) for word in words])
    finally:
        signal.alarm(0)
    assert "Traceback" not in result.output
    assert "internal error" not in result.output
    return result.exit_code, result.stderr


def told(command: str, out: Path) -> tuple[int, str]:
    return carried_out(command, *(word.replace("OUT", str(out)) for word in WRITING[command]))


def last_line(said: str) -> str:
    return said.strip().splitlines()[-1]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 KB of our own with a file on it; skipped where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    (place / "keep").write_bytes(b"k")
    yield place
    subprocess.run(["umount", place], check=True)


def files_on(disk: Path) -> list[str]:
    return sorted(path.name for path in disk.rglob("*") if path.is_file() and path.name not in ("fill", ".mergekit3d.lock"))


def test_every_command_that_writes_is_here() -> None:
    """A new one has its place above."""
    assert {command.__name__ for command in COMMANDS} - {"inspect", "verify", "schema", "methods"} == WRITING.keys()


@pytest.mark.parametrize("command", WRITING)
def test_full_disk(project: Path, disk: Path, command: str) -> None:
    """74, in words; nothing half-written, and no temporary file."""
    descriptor = os.open(disk / "fill", os.O_CREAT | os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        while os.write(descriptor, bytes(4096)):
            pass
    os.close(descriptor)
    code, said = told(command, disk)
    assert (74, True) == (code, "no space left on the device; free some space" in last_line(said)), said
    assert ["keep"] == files_on(disk)


@pytest.mark.parametrize("command", WRITING)
def test_read_only_folder(project: Path, disk: Path, command: str) -> None:
    """74, before any work."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    began = time.monotonic()
    code, said = told(command, disk)
    assert (74, True) == (code, "found read-only file system" in last_line(said)), said
    assert time.monotonic() - began < 20
    assert ["keep"] == files_on(disk)


HOLDER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
LOCKED = {
    "fuse": "", "convert": "", "fisher": "", "train": "train", "adapt": "adapt", "finetune": "finetune", "predict": "", "evaluate": "",
    "preprocess": "p", "phantom": "x", "forgetting": "", "run": "", "report": "",
}  # fmt: skip
"""The folder below OUT that a command holds while it writes there."""


def test_another_run_in_the_same_folder(project: Path, tmp_path: Path) -> None:
    """75 from whichever comes second, and the first is left alone; the lock of a killed one holds nobody up."""
    for command, folder in LOCKED.items():
        out = tmp_path / command
        (out / folder).mkdir(parents=True)
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, out / folder / ".mergekit3d.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            assert b"held" in holder.stdout.readline()
            code, said = told(command, out)
            assert (75, True) == (code, "another run is writing here" in last_line(said)), (command, said)
            holder.kill()
        assert [".mergekit3d.lock"] == [path.name for path in out.rglob("*") if path.is_file()]
    assert 0 == told("fuse", tmp_path / "fuse")[0]


SPECIAL = {
    "pipe": os.mkfifo,
    "loop of links": lambda path: Path(path).symlink_to(path),
    "link to nothing": lambda path: Path(path).symlink_to("nowhere"),
    "folder": os.mkdir,
    "device": lambda path: Path(path).symlink_to("/dev/zero"),
}
READING: dict[str, tuple[tuple[str, ...], set[int]]] = {
    "checkpoint": (("inspect", "BAD"), {65}),
    "checkpoint to verify": (("verify", "BAD"), {65}),
    "checkpoint to convert": (("convert", "BAD", "x.pt"), {65}),
    "checkpoint of fisher": (("fisher", "BAD", "--data", "hcp"), {65}),
    "checkpoint of predict": (("predict", "BAD", "--data", "hcp", "--out", "x"), {65}),
    "source": (("fuse", "--recipe", "fuse.yaml", "--out", "x", "--set", "sources.m1.checkpoint=BAD"), {65}),
    "Fisher diagonal": (("fuse", "--recipe", "fuse.yaml", "--out", "x", "--set", "sources.m1.fisher=BAD"), {65}),
    "ratios": (("fuse", "--recipe", "fuse.yaml", "--out", "x", "--set", "merge.ratios=BAD"), {2, 65}),
    "recipe": (("fuse", "--recipe", "BAD"), {2}),
    "recipe to run": (("run", "BAD"), {2}),
    "split": (("train", "--recipe", "train.yaml", "--out", "x", "--set", "target.split=BAD"), {2, 65}),
    "data": (("inspect", "BAD"), {65}),
    "list": (("predict", "m1.safetensors", "--data", "BAD.csv", "--out", "x"), {65}),
    "metrics": (("compare", "a.csv", "BAD"), {65}),
    "names": (("predict", "m1.safetensors", "--data", "hcp", "--subjects-file", "BAD", "--out", "x"), {2, 65}),
    "plot": (("plot", "BAD.json"), {2, 65}),
    "prediction": (("plot", "BAD.nii.gz", "--image", "BAD.nii.gz", "--out", "x.png"), {2, 65}),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_input_that_is_no_regular_file(project: Path, tmp_path: Path, kind: str) -> None:
    """Told in a line, and never waited for."""
    for what, (words, codes) in READING.items():
        bad = tmp_path / f"bad-{what.replace(' ', '-')}"
        endings = [word[word.index("BAD") + 3 :] for word in words if "BAD" in word]
        SPECIAL[kind](f"{bad}{endings[0]}")
        code, said = carried_out(*(word.replace("BAD", str(bad)) for word in words))
        assert code in codes, (kind, what, code, said)
        assert last_line(said).startswith("error: ")
    assert not (project / "x").exists() or [] == list((project / "x").rglob("*.safetensors"))


@pytest.mark.parametrize("kind", SPECIAL)
def test_image_that_is_no_regular_file(project: Path, tmp_path: Path, kind: str) -> None:
    """One subject of a folder; it is told by its number."""
    subject = tmp_path / "hcp" / "DOE_JOHN" / "T1w"
    subject.mkdir(parents=True)
    SPECIAL[kind](subject / "T1w_acpc_dc_restore.nii.gz")
    for name in ("T2w_acpc_dc_restore.nii.gz", "aparc+aseg.nii.gz"):
        (subject / name).write_bytes((project / "hcp/100000/T1w" / name).read_bytes())
    code, said = carried_out("predict", "m1.safetensors", "--data", tmp_path / "hcp", "--out", tmp_path / "out")
    assert code == 65, said
    assert "DOE_JOHN" not in said.replace(str(tmp_path), "")


OUTPUTS = {
    "fuse": ("--recipe", "fuse.yaml", "--force", "--out", "OUT.safetensors"),
    "convert": ("m1.safetensors", "OUT.pt", "--force"),
    "fisher": ("m1.safetensors", "--data", "hcp", "--max-subjects", "1", "--draws", "1", "--force", "--out", "OUT.safetensors"),
    "plot": ("fused.report.json", "--out", "OUT.png"),
    "report": ("fused", "--force", "--out", "OUT.html"),
}


@pytest.mark.parametrize("kind", [kind for kind in SPECIAL if kind != "link to nothing"])
def test_output_that_is_no_regular_file(project: Path, tmp_path: Path, kind: str) -> None:
    """It is left as it is."""
    for command, words in OUTPUTS.items():
        ending = next(word for word in words if "OUT." in word).removeprefix("OUT")
        bad = tmp_path / f"{command}{ending}"
        SPECIAL[kind](bad)
        before = os.lstat(bad)
        code, said = carried_out(command, *(word.replace("OUT", str(tmp_path / command)) for word in words))
        assert code in (2, 74), (kind, command, code, said)
        assert (before.st_ino, before.st_mode) == (os.lstat(bad).st_ino, os.lstat(bad).st_mode)


def test_clock_that_goes_back(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an hour at each look: the same bits, and what is done is known to be done."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert 0 == told("run", first)[0]
    now = [time.time()]

    def back() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", back)
    assert 0 == told("run", second)[0]
    for path in second.rglob("*"):
        os.utime(path, (10**9, 10**9))
    code, said = told("run", second)
    assert (0, True) == (code, "up to date" in said)
    best = "train/best.safetensors"
    assert (first / best).read_bytes() == (second / best).read_bytes()
    for path in (project / "hcp").rglob("*.nii.gz"):  # written in a future that is over now
        os.utime(path, (4 * 10**9, 4 * 10**9))
    assert 0 == told("train", tmp_path / "future")[0]
    assert (first / best).read_bytes() == (tmp_path / "future" / best).read_bytes()
