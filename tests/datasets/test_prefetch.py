import threading
import time
from functools import partial

import pytest

from mergekit3d.datasets.prefetch import made_in_order, prefetch


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "mergekit3d-prefetch"]


def test_items_come_in_order():
    """All items, in their order, and no thread stays."""
    assert list(range(50)) == list(prefetch(iter(range(50)), depth=3))
    assert [None, 1] == list(prefetch([None, 1]))
    assert [] == workers()


def test_items_are_made_ahead_but_no_further_than_the_depth():
    """While one item is used, the next ones are made, up to the depth and the one in hand."""
    made = []

    def source():
        for item in range(10):
            made.append(item)
            yield item

    items = prefetch(source(), depth=2)
    next(items)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)

    assert [0, 1, 2, 3] == made
    items.close()
    assert [] == workers()


def test_errors_come_through_after_the_items_before_them():
    """An error of the source is raised where its item would have come."""

    def source():
        yield 1
        raise KeyError("two")

    items = prefetch(source())

    assert 1 == next(items)
    with pytest.raises(KeyError, match="two"):
        next(items)
    assert [] == workers()


def test_early_end_stops_the_thread():
    """A consumer that fails leaves no thread behind, however many items are left."""

    def consume():
        for item in prefetch(iter(range(10**9)), depth=1):
            if item == 3:
                raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        consume()
    deadline = time.monotonic() + 5
    while workers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [] == workers()


@pytest.mark.parametrize("workers", [1, 3])
def test_jobs_are_done_in_order_by_several_threads(workers):
    """Whichever ends first; all of the results, and no thread stays."""
    threads = set()

    def job(number):
        time.sleep(0.01 * (number % 3))
        threads.add(threading.current_thread().name)
        return number

    assert list(range(20)) == list(made_in_order([partial(job, number) for number in range(20)], workers))
    assert workers == len(threads)
    assert [] == pool_threads()


def test_no_more_jobs_are_begun_than_there_are_threads():
    """Beyond the one that is asked for, so that memory is bounded; early ends leave the rest undone."""
    begun = []
    items = made_in_order([partial(begun.append, number) for number in range(50)], 4)
    next(items)
    time.sleep(0.1)
    items.close()
    assert 5 >= len(begun)
    assert [] == pool_threads()


def test_the_error_of_a_job_is_raised_in_its_place():
    """After the results before it."""

    def fail():
        raise KeyError("two")

    items = made_in_order([lambda: 1, fail, lambda: 3], 2)
    assert 1 == next(items)
    with pytest.raises(KeyError, match="two"):
        next(items)
    assert [] == pool_threads()


def pool_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("mergekit3d-worker")]
