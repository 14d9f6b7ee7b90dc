"""What all tests share: reproducible property tests, no display, and tests skipped aloud where their device or tool is missing."""

from __future__ import annotations

import importlib.util
import os

import pytest
from hypothesis import settings

os.environ["MPLBACKEND"] = "Agg"

settings.register_profile("project", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("project")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


NEEDS = {
    "gpu": (_has_gpu, "no CUDA device here"),
    "needs_nnunet": (lambda: importlib.util.find_spec("nnunetv2") is not None, "nnunetv2 is not installed"),
}


def pytest_collection_modifyitems(items):
    """Skip tests whose device or tool is not there, with the reason."""
    for marker, (is_there, reason) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not is_there():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))
