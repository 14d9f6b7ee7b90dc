"""The next batches are made while the network works on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
