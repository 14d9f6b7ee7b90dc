"""The registered merge methods."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit3d.errors import UsageError
from mergekit3d.merging.methods import METHODS, MergeMethod, register
from mergekit3d.merging.methods.imm import IMM

THETAS = [np.array([1.0, 2.0]), np.array([5.0, 6.0])]
FISHERS = [np.array([3.0, 1.0]), np.array([1.0, 3.0])]


def test_names_of_the_methods():
    """Those of the contract that stand so far."""
    assert {"imm", "timm", "mean-imm", "linear"} <= set(METHODS)


@pytest.mark.parametrize("name", ["imm", "timm"])
def test_fisher_weighted_methods(name):
    """Both are eq. 2; they differ in where the ratios come from."""
    method = METHODS.get(name)

    assert method.uses_fisher
    assert (name == "timm") == method.learned_ratios
    assert [2.0, 5.0] == method.combine(THETAS, FISHERS, [0.5, 0.5]).tolist()


@pytest.mark.parametrize("name", ["mean-imm", "linear"])
def test_plain_averages(name):
    """They ask for no Fisher diagonal and look at none."""
    method = METHODS.get(name)

    assert not method.uses_fisher
    assert [2.0, 3.0] == method.combine(THETAS, None, [0.75, 0.25]).tolist()
    assert [2.0, 3.0] == method.combine(THETAS, FISHERS, [0.75, 0.25]).tolist()


@pytest.mark.parametrize("name", list(METHODS))
def test_identical_sources_return_themselves(name):
    """Bit for bit, whichever method."""
    theta = np.random.default_rng(0).normal(size=9).astype(np.float32)
    fishers = list(np.random.default_rng(1).chisquare(1, (3, 9)).astype(np.float32))

    assert theta.tobytes() == METHODS.get(name).combine([theta] * 3, fishers, [0.2, 0.3, 0.5]).tobytes()


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_says_what_it_is(name):
    """One line and a reference, for the list of methods."""
    method = METHODS.get(name)

    assert name == method.name
    assert method.summary
    assert method.summary == " ".join(method.summary.split())
    assert method.reference.rstrip("0123456789").endswith(" ")


def test_misspelt_method_gets_the_nearest():
    """As every name does."""
    with pytest.raises(UsageError) as caught:
        METHODS.get("tim")
    assert "unknown merge method 'tim'; did you mean 'timm'?" == str(caught.value)


def test_a_name_is_registered_once():
    """Two methods cannot share a name."""
    with pytest.raises(ValueError, match="'imm' is registered twice"):
        register(MergeMethod(IMM.name, "other", "none 2000", IMM.combine))
