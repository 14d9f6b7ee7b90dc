"""Signals that ask long work to stop: they set a flag, and the work ends where its state can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""SIGUSR1 is what SLURM sends ahead of a time limit (``--signal=USR1@90``)."""


@dataclass
class Interruption:
    """The flag.

    Args:
        signal_number: the first signal that came; None: none yet.
    """

    signal_number: int | None = None


@contextmanager
def catch_signals() -> Iterator[Interruption]:
    """Set a flag on SIGTERM, SIGINT and SIGUSR1 inside the block; a second SIGINT interrupts at once.

    Outside of the main thread, where Python allows no handlers, the flag stays unset.
    """
    flag = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if flag.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.signal_number = flag.signal_number or number

    earlier = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in earlier.items():
            # None: a handler that Python did not install and cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
