"""Jobs shared out among workers: the same results however, and errors as if there were none."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from mergekit3d.engine import workers
from mergekit3d.engine.workers import carry_out
from mergekit3d.errors import InputError, MergeKit3DError


@pytest.fixture(params=["processes", "threads", "alone"])
def kind(request, monkeypatch):
    """Each way to work; two workers also where there is one processor."""
    monkeypatch.setattr(workers, "can_fork", lambda: request.param == "processes")
    monkeypatch.setattr(workers, "worker_count", lambda _: 1 if request.param == "alone" else 2)
    return request.param


def test_every_job_is_done_once(kind):
    """With its size beside the result."""
    jobs = [(size, partial(pow, size, 2)) for size in (3, 1, 7, 5)]

    assert [(1, 1), (3, 9), (5, 25), (7, 49)] == sorted(carry_out(jobs))


def fail():
    raise InputError("it is damaged", where="m1.pt", todo="restore it")


def test_an_error_is_raised_where_the_results_are_awaited(kind):
    """Of its own kind, with its text."""
    with pytest.raises(InputError) as caught:
        list(carry_out([(1, partial(int, 1)), (2, fail), (3, partial(int, 3))]))
    assert "it is damaged: m1.pt; restore it" == str(caught.value)
    assert "restore it" == caught.value.todo


def test_what_is_given_up_leaves_no_process(monkeypatch):
    """Nor a zombie."""
    monkeypatch.setattr(workers, "can_fork", lambda: True)
    monkeypatch.setattr(workers, "worker_count", lambda _: 2)
    results = carry_out([(size, os.getpid) for size in range(8)])
    _, process = next(results)
    results.close()

    assert os.getpid() != process
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_killed_process_is_told(monkeypatch):
    """As a shortage of memory does it: one line, and no waiting for ever."""
    monkeypatch.setattr(workers, "can_fork", lambda: True)
    monkeypatch.setattr(workers, "worker_count", lambda _: 2)
    with pytest.raises(MergeKit3DError) as caught:
        list(carry_out([(1, os.getpid), (2, lambda: os.kill(os.getpid(), signal.SIGKILL))]))
    assert "a process of the work was killed: found exit code -9; free some memory, and run again" == str(caught.value).replace(
        ": wanted", ""
    )


def test_work_is_shared_evenly():
    """The largest first, each to whoever has least to do."""
    shares = workers._shares([(size, None) for size in (8, 7, 6, 5, 4)], 2)

    assert [[8, 5, 4], [7, 6]] == [[size for size, _ in share] for share in shares]


def test_no_process_is_forked_beside_torch():
    """Its threads do not survive it."""
    import torch  # noqa: F401

    assert not workers.can_fork()
