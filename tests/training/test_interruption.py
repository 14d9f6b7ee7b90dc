"""Signals become a flag."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mergekit3d.training.interruption import SIGNALS, catch_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag(number):
    """SIGTERM, SIGINT and SIGUSR1 stop nothing by themselves, and the handlers are put back."""
    before = signal.getsignal(number)
    with catch_signals() as flag:
        assert flag.signal_number is None
        os.kill(os.getpid(), number)
        assert number == flag.signal_number
    assert before == signal.getsignal(number)


def test_the_first_signal_counts():
    """SLURM sends SIGTERM after SIGUSR1."""
    with catch_signals() as flag:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.SIGUSR1 == flag.signal_number


def test_a_second_interrupt_stops_at_once():
    """Someone presses Ctrl-C twice."""
    with pytest.raises(KeyboardInterrupt), catch_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_install_no_handlers():
    """Python allows none there; the library still trains."""
    seen = []

    def work():
        with catch_signals() as flag:
            seen.append((flag.signal_number, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [(None, before)] == seen
