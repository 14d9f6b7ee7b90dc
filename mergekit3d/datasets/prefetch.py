"""The next batches are made while the network works on this one, by one thread or several.

Threads, not processes: what takes time in a batch (numpy, scipy, torch) runs without the interpreter's lock, arrays need not be sent,
the store is mapped once, and nothing is forked beside a GPU.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar, cast

Item = TypeVar("Item")

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class _End:
    """No more items come; the error that ended them, or None."""

    error: BaseException | None


def prefetch(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """The same items in the same order, made ahead in a background thread.

    An error of the source is raised here, after the items before it. Where the consumer stops early (closing the generator, or an
    error of its own), the thread ends with the item that it is at.

    Args:
        items: where they come from; iterated in the thread.
        depth: how many may wait.
    """
    waiting: queue.Queue[tuple[Item | None, _End | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Item | None, end: _End | None) -> None:
        while not stopped.is_set():
            try:
                waiting.put((item, end), timeout=POLL_SECONDS)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put(item, None)
                if stopped.is_set():
                    return
            put(None, _End(None))
        except BaseException as error:  # noqa: BLE001  handed to the consumer, who raises it
            put(None, _End(error))

    thread = threading.Thread(target=produce, name="mergekit3d-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, end = waiting.get()
            if end is not None:
                if end.error is not None:
                    raise end.error
                return
            yield cast(Item, item)
    finally:
        stopped.set()
        thread.join()


def made_in_order(jobs: Iterable[Callable[[], Item]], workers: int) -> Iterator[Item]:
    """What the jobs make, in their order, made by several threads at once; as many are ahead as there are threads.

    An error of a job is raised in its place. Where the consumer stops early, jobs that have not begun are left undone.

    Args:
        jobs: none depends on another.
        workers: threads; 1: they are done when asked for, in the consumer's own thread.
    """
    if workers == 1:
        yield from (job() for job in jobs)
        return
    remaining = iter(jobs)
    with ThreadPoolExecutor(workers, thread_name_prefix="mergekit3d-worker") as pool:
        try:
            under_way: deque[Future[Item]] = deque(pool.submit(job) for job in islice(remaining, workers))
            while under_way:
                item = under_way.popleft().result()
                under_way.extend(pool.submit(job) for job in islice(remaining, 1))
                yield item
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
