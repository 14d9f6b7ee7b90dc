"""One thread is enough for networks of a few hundred weights, and many are slow where other work is going on."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Of torch, in all of these tests."""
