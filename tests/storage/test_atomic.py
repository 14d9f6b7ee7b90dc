"""The atomic writer: whatever fails, the old file stays, or the new one is whole, and nothing else is left."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mergekit3d.errors import MergeKit3DError, OutputError, UsageError
from mergekit3d.storage import atomic

pytestmark = pytest.mark.slow

OLD, NEW = b"old", b"new content"
OS_CALLS = ["stat", "lstat", "readlink", "mkdir", "chmod", "open", "fsync", "close", "replace", "umask", "unlink"]


@pytest.fixture
def target(tmp_path):
    """A file that is there already, alone in its folder."""
    path = tmp_path / "out" / "fused.safetensors"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


class FailOnce:
    """Counts calls of os functions and acts on one of them."""

    def __init__(self, monkeypatch, act=None, number=None):
        self.calls = []
        for name in OS_CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name), act, number))

    def _wrapped(self, name, function, act, number):
        def call(*arguments, **keywords):
            self.calls.append(name)
            if act is not None and len(self.calls) - 1 == number:
                act()
            return function(*arguments, **keywords)

        return call


def raiser(code):
    def act():
        raise OSError(code, os.strerror(code))

    return act


def calls_of_a_write(target):
    with pytest.MonkeyPatch.context() as patch:
        calls = FailOnce(patch).calls
        atomic.write_bytes(target, NEW)
    target.write_bytes(OLD)
    return calls


def test_write_replaces_the_file(target):
    """The new content stands under the name, alone."""
    atomic.write_bytes(target, NEW)

    assert NEW == target.read_bytes()
    assert [target] == list(target.parent.iterdir())


def test_missing_folders_are_made(tmp_path):
    """An output may lie in a folder that is not there yet."""
    atomic.write_text(tmp_path / "a" / "b" / "c.txt", "é\n")

    assert "é\n".encode() == (tmp_path / "a" / "b" / "c.txt").read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_every_failing_call_keeps_the_old_file_or_gives_the_new_one(target, code):
    """Each os call of a write fails once: an OutputError and the old file, or a whole new one; no temporary file, no traceback."""
    calls = calls_of_a_write(target)
    assert {"chmod", "open", "fsync", "replace"} <= set(calls)
    replaced = calls.index("replace")

    for number, name in enumerate(calls):
        target.write_bytes(OLD)
        with pytest.MonkeyPatch.context() as patch:
            FailOnce(patch, raiser(code), number)
            try:
                atomic.write_bytes(target, NEW)
                failed = None
            except OutputError as error:
                failed = error
        assert failed is None or 74 == failed.exit_code
        assert (OLD if failed and number <= replaced else NEW) == target.read_bytes(), name
        if name != "unlink":
            assert [target] == list(target.parent.iterdir()), name


def test_disk_full_is_told_in_words(target):
    """The message names the file, the reason and what to do."""
    number = calls_of_a_write(target).index("fsync")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OutputError) as caught:
        FailOnce(patch, raiser(errno.ENOSPC), number)
        atomic.write_bytes(target, NEW)

    assert f"cannot write: {target}: found no space left on the device; free some space and run again" == str(caught.value)


def test_death_at_every_call_keeps_the_old_file_or_gives_the_new_one(target):
    """The process dies at each os call in turn: the file is the old one or the new one, and the next sweep leaves it alone."""
    calls = calls_of_a_write(target)
    for number in range(len(calls)):
        target.write_bytes(OLD)
        child = os.fork()
        if child == 0:
            FailOnce(pytest.MonkeyPatch(), lambda: os._exit(9), number)
            atomic.write_bytes(target, NEW)
            os._exit(1)
        assert 9 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert target.read_bytes() == (OLD if number <= calls.index("replace") else NEW)
        atomic.sweep_leftovers(target.parent)
        assert [target] == list(target.parent.iterdir())


def writing_for_ever(target):
    """A child process that writes one content and the other, again and again; it has begun."""
    reading, telling = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(telling, b".")
            while True:
                for letter in (b"a", b"b"):
                    atomic.write_bytes(target, letter * 300_000)
        finally:
            os._exit(1)
    os.read(reading, 1)
    os.close(reading)
    os.close(telling)
    return child


def test_kill_at_random_moments_leaves_a_whole_file(tmp_path):
    """Four hundred writers are killed in the middle of their work: the file is always one of the two contents, whole."""
    target = tmp_path / "file.bin"
    moments, in_the_middle = random.Random(0), 0
    for _ in range(400):
        child = writing_for_ever(target)
        time.sleep(moments.uniform(0.0, 0.008))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if target.exists():
            assert target.read_bytes() in (b"a" * 300_000, b"b" * 300_000)
        in_the_middle += any(tmp_path.glob(f".mergekit3d-{child}-*"))
    atomic.sweep_leftovers(tmp_path)

    assert [target] == list(tmp_path.iterdir())
    assert in_the_middle > 100


def test_an_error_in_the_block_keeps_the_old_file(target):
    """A writer that fails half-way leaves nothing."""

    class Stop(BaseException):
        pass

    with pytest.raises(Stop), atomic.atomic_open(target) as file:
        file.write(NEW)
        raise Stop

    assert OLD == target.read_bytes()
    assert [target] == list(target.parent.iterdir())


def test_file_larger_than_allowed_is_an_output_error(target):
    """A quota met while writing is told as such, and the old file stays."""
    import resource

    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            atomic.write_bytes(target, b"x" * 100_000)
        except MergeKit3DError as error:
            os._exit(error.exit_code)
        os._exit(1)

    assert 74 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert OLD == target.read_bytes()
    assert [target] == list(target.parent.iterdir())


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_file_has_the_mode_of_the_umask(tmp_path, mask, mode):
    """Also where the writer itself makes private files, as safetensors does."""
    before = os.umask(mask)
    try:
        with atomic.atomic_path(tmp_path / "new.bin") as temporary:
            temporary.touch(mode=0o600)
        assert mode == stat.S_IMODE((tmp_path / "new.bin").stat().st_mode)
        assert mask == os.umask(mask)
    finally:
        os.umask(before)


def test_replaced_file_keeps_its_mode(target):
    """A file shared with a group stays shared."""
    target.chmod(0o640)

    atomic.write_bytes(target, NEW)

    assert 0o640 == stat.S_IMODE(target.stat().st_mode)


def test_symbolic_link_is_followed(tmp_path, target):
    """The file that a link points to is replaced; the link stays a link."""
    link = tmp_path / "link"
    link.symlink_to(target)

    atomic.write_bytes(link, NEW)

    assert link.is_symlink()
    assert NEW == target.read_bytes()


def test_link_to_nothing_makes_its_target(tmp_path):
    """A link that dangles is filled."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "made")

    atomic.write_bytes(link, NEW)

    assert NEW == (tmp_path / "made").read_bytes()


def test_loop_of_links_is_an_output_error(tmp_path):
    """Links that point at each other are told, not followed."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")

    with pytest.raises(OutputError, match="cannot write"):
        atomic.write_bytes(tmp_path / "a", NEW)
    assert (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_only_regular_files_are_replaced(tmp_path, make):
    """A folder or a pipe under the name is left alone."""
    make(tmp_path / "out.bin")

    with pytest.raises(OutputError, match="wanted a regular file"):
        atomic.write_bytes(tmp_path / "out.bin", NEW)


def test_parent_that_is_a_file_is_an_output_error(target):
    """The message says that it is no folder."""
    with pytest.raises(OutputError, match="cannot write"):
        atomic.write_bytes(target / "below.bin", NEW)


@pytest.mark.parametrize("name", ["with space.txt", "🧠.nii.gz", "-dash", "a" * 251 + ".txt", "." + "é" * 120 + ".gz", "x." + "ü" * 120])
def test_any_file_name_works(tmp_path, name):
    """Spaces, other scripts, and names as long as the file system allows."""
    atomic.write_bytes(tmp_path / name, NEW)

    assert [name] == [path.name for path in tmp_path.iterdir()]


def test_name_too_long_is_an_output_error(tmp_path):
    """The reason is given in words."""
    with pytest.raises(OutputError, match="file name too long"):
        atomic.write_bytes(tmp_path / ("a" * 300), NEW)


def test_temporary_name_ends_like_the_target(tmp_path):
    """Writers that look at the suffix (nibabel, matplotlib) see the right one, in the same folder."""
    with atomic.atomic_path(tmp_path / "pred.nii.gz") as temporary:
        temporary.touch()
        assert temporary.name.endswith(".nii.gz")
        assert tmp_path == temporary.parent


def test_open_file_can_be_read_back(tmp_path):
    """Writers may seek and read what they wrote, as a checksum over the file needs."""
    with atomic.atomic_open(tmp_path / "x") as file:
        file.write(b"abc")
        file.seek(0)
        assert b"abc" == file.read()


def test_json_is_indented_and_keeps_letters(tmp_path):
    """Two spaces, the letters as they are, a newline at the end."""
    atomic.write_json(tmp_path / "x.json", {"é": [1]})

    assert '{\n  "é": [\n    1\n  ]\n}\n' == (tmp_path / "x.json").read_text(encoding="utf-8")


def test_json_refuses_nan(target):
    """NaN is no JSON: it is refused before the file is touched."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(target, float("nan"))
    assert OLD == target.read_bytes()


def test_existing_output_is_refused_unless_forced(target):
    """The message says how to go on."""
    with pytest.raises(UsageError) as caught:
        atomic.refuse_existing(target, force=False)
    assert f"the output exists already: {target}; pass --force to replace it, or --out to write elsewhere" == str(caught.value)

    atomic.refuse_existing(target, force=True)
    atomic.refuse_existing(target.with_name("new"), force=False)


def test_link_to_nothing_counts_as_existing(tmp_path):
    """A dangling link is something that a user put there."""
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    with pytest.raises(UsageError):
        atomic.refuse_existing(tmp_path / "link", force=False)


def test_folder_is_moved_as_a_whole(tmp_path):
    """With the folders above its place; a place that is taken is an output error, and both stay."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)

    atomic.move_into_place(tmp_path / "a", tmp_path / "x" / "y")

    assert "a" == (tmp_path / "x" / "y" / "file").read_text()
    assert not (tmp_path / "a").exists()
    with pytest.raises(OutputError, match="cannot write: .*/x: found directory not empty"):
        atomic.move_into_place(tmp_path / "b", tmp_path / "x" / "y")
    assert ("a", "b") == ((tmp_path / "x" / "y" / "file").read_text(), (tmp_path / "b" / "file").read_text())


def test_sweep_takes_what_dead_processes_left_and_nothing_else(tmp_path):
    """Temporary files of a finished process, or of an earlier one with this number, go; others stay."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leftovers = [f".mergekit3d-{process}-0123abcd.tmp.gz" for process in (dead.pid, os.getpid(), "9" * 30)]
    kept = [f".mergekit3d-{os.getppid()}-0123abcd.tmp", ".mergekit3d-x-1.tmp", ".mergekit3d-²-1.tmp", "mine.tmp"]
    for name in leftovers + kept:
        (tmp_path / name).touch()

    with atomic.atomic_open(tmp_path / "under way"):
        atomic.sweep_leftovers(tmp_path)

    assert sorted([*kept, "under way"]) == sorted(path.name for path in tmp_path.iterdir())
