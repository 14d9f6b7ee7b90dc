"""What processes of one group tell each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from mergekit3d.errors import InputError
from mergekit3d.options import Options
from mergekit3d.progress import SILENT
from mergekit3d.training.processes import ALONE, VARIABLES, is_first_process, number_of_processes, process_group, shared_work

SCRIPT = """
import sys
import torch
from mergekit3d.errors import InputError, MergeKit3DError
from mergekit3d.training import processes
from mergekit3d.training.processes import process_group

processes.BUCKET_BYTES = 64

def fail(group, rank, error):
    def work():
        if group.rank == rank:
            raise error
        return group.rank
    return work

def told(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error), getattr(error, "told_elsewhere", None)

with process_group() as group:
    tensors = [torch.full((2, 3), 1.0 + group.rank), torch.arange(40.0) * group.rank, torch.ones(5, dtype=torch.float64)]
    tensors.append(torch.zeros(4, 4).t()[1:] + group.rank)
    group.add_up(tensors)
    print([float(tensor.sum()) for tensor in tensors], [tensor.dtype for tensor in tensors])
    print(group.gather(group.rank), group.share(lambda: f"of {group.rank}"), group.agree(lambda: group.rank) == group.rank)
    print(told(lambda: group.agree(fail(group, 1, InputError("bad", where="here")))))
    print(told(lambda: group.agree(fail(group, 1, ZeroDivisionError("why")))))
    print(told(lambda: group.share(fail(group, 0, InputError("first")))))
    group.wait()
"""


def pair():
    """What two processes that run the script print."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        told = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    begun = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, env={**os.environ, **told, "RANK": str(rank)})
        for rank in range(2)
    ]
    said = [process.communicate(timeout=60)[0].splitlines() for process in begun]
    assert [0, 0] == [process.returncode for process in begun]
    return said


@pytest.mark.slow
def test_two_processes_add_up_share_and_agree():
    """Sums in pieces of any dtype and stride; an error of one is that of both, and one of them is to tell it."""
    first, second = pair()

    sums = "[18.0, 780.0, 10.0, 12.0] [torch.float32, torch.float32, torch.float64, torch.float32]"
    assert [sums, "[0, 1] of 0 True"] == first[:2] == second[:2]
    assert ["('InputError', 'bad: here', True)", "('InputError', 'bad: here', False)"] == [first[2], second[2]]
    unknown = "('MergeKit3DError', 'process 2 of 2 has failed; look at what it says', True)"
    assert [unknown, "('ZeroDivisionError', 'why', None)"] == [first[3], second[3]]
    assert ["('InputError', 'first', False)", "('InputError', 'first', True)"] == [first[4], second[4]]


def test_alone_nothing_is_sent():
    """Work, errors and contexts are those of the one process."""
    entered = []

    @contextmanager
    def lock():
        entered.append(True)
        yield

    with ALONE.first_holds(lock):
        assert [True] == entered
    assert ([3], 4, 5) == (ALONE.gather(3), ALONE.share(lambda: 4), ALONE.agree(lambda: 5))
    ALONE.raise_together(None)
    with pytest.raises(InputError, match="bad"):
        ALONE.raise_together(InputError("bad"))


def test_without_torchrun_there_is_one_process(monkeypatch):
    """Or with torchrun and one process; the caller's options and reporter stay."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    options = Options(seed=3)
    assert (1, True) == (number_of_processes(), is_first_process())
    with shared_work(options, SILENT) as (group, own_options, own_reporter):
        assert ALONE == group
        assert (True, True) == (own_options is options, own_reporter is SILENT)
    for name in VARIABLES:
        monkeypatch.setenv(name, "1")
    with process_group() as group:
        assert 1 == group.size
