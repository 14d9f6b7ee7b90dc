"""One run at a time in an output folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from mergekit3d.errors import LockedError, OutputError
from mergekit3d.storage.lock import LOCK_NAME, output_lock, waiting_lock

HOLDER = """
import sys, time
from pathlib import Path
from mergekit3d.errors import MergeKit3DError
from mergekit3d.storage.lock import output_lock
try:
    with output_lock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except MergeKit3DError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def start(folder):
    return subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_second_process_is_refused(tmp_path):
    """It ends at once, with exit code 75 and the folder in its message."""
    with output_lock(tmp_path):
        second = start(tmp_path)
        said, _ = second.communicate(timeout=30)

    assert 75 == second.returncode
    assert f"another run is writing here: {tmp_path}; wait for it, or pass another --out\n" == said


def test_lock_is_free_after_the_block(tmp_path):
    """One run after the other is fine, also after an error."""
    with pytest.raises(KeyError), output_lock(tmp_path):
        raise KeyError
    with output_lock(tmp_path):
        pass


def test_killed_process_frees_the_lock(tmp_path):
    """After kill -9 the next run goes ahead and sweeps what the killed one left."""
    with start(tmp_path) as first:
        assert "held\n" == first.stdout.readline()
        with pytest.raises(LockedError), output_lock(tmp_path):
            pass
        leftover = tmp_path / f".mergekit3d-{first.pid}-0123abcd.tmp"
        leftover.touch()
        first.send_signal(signal.SIGKILL)

    with output_lock(tmp_path):
        assert not leftover.exists()


def test_folder_is_made(tmp_path):
    """The output folder need not be there."""
    with output_lock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK_NAME).exists()


def test_holder_may_take_it_again(tmp_path, monkeypatch):
    """A command that runs others in its folder is not locked out by itself, and holds the lock until it ends."""
    monkeypatch.chdir(tmp_path.parent)
    with output_lock(tmp_path):
        with output_lock(type(tmp_path)(tmp_path.name)):
            pass
        second = start(tmp_path)
        second.communicate(timeout=30)
        assert 75 == second.returncode


def test_another_thread_is_refused(tmp_path):
    """Two runs in one process exclude each other as well."""
    caught = []

    def run():
        try:
            with output_lock(tmp_path):
                pass
        except LockedError as error:
            caught.append(error)

    with output_lock(tmp_path):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    assert 1 == len(caught)


def test_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    """A file in the way is told in one line."""
    (tmp_path / "file").touch()

    with pytest.raises(OutputError, match="cannot write"), output_lock(tmp_path / "file"):
        pass


def test_threads_take_a_waiting_lock_in_turn(tmp_path):
    """Nobody is refused, and no two hold it at once."""
    inside, most = [], []

    def run():
        with waiting_lock(tmp_path / "a"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [1] * 5 == most
