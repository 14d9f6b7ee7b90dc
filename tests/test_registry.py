"""Registries hand out items by name and know the nearest name."""

from __future__ import annotations

import pytest

from mergekit3d.errors import UsageError
from mergekit3d.registry import Registry, did_you_mean, nearest


@pytest.fixture
def methods():
    """A registry with two items."""
    registry = Registry("merge method")
    registry.register("imm")(1)
    registry.register("timm")(2)
    return registry


def test_registered_item_is_found(methods):
    """An item comes back under its name, and the names keep their order."""
    assert 2 == methods.get("timm")
    assert "imm" in methods
    assert ["imm", "timm"] == list(methods)
    assert [("imm", 1), ("timm", 2)] == list(methods.items())


def test_register_works_as_a_decorator():
    """The decorated function is what is registered, and stays usable."""
    registry = Registry("layout")

    @registry.register("hcp")
    def find_hcp():
        return "found"

    assert "found" == find_hcp()
    assert find_hcp is registry.get("hcp")


def test_unknown_name_gets_the_nearest_one(methods):
    """A typo is answered with the name that was meant."""
    with pytest.raises(UsageError) as caught:
        methods.get("tim")
    assert "unknown merge method 'tim'; did you mean 'timm'?" == str(caught.value)


def test_name_unlike_any_gets_the_list(methods):
    """Where nothing is alike, all names are listed."""
    with pytest.raises(UsageError) as caught:
        methods.get("zzz")
    assert "unknown merge method 'zzz'; known: imm, timm" == str(caught.value)


def test_second_item_under_one_name_is_a_programming_error(methods):
    """Two items cannot share a name."""
    with pytest.raises(ValueError, match="merge method 'imm' is registered twice"):
        methods.register("imm")(3)


@pytest.mark.parametrize(("expected", "name"), [("FLAIR", "flair"), ("T1ce", "t1cee"), (None, "dwi")])
def test_nearest_ignores_case_and_returns_the_original_spelling(expected, name):
    """T1ce is found for t1cee, nothing for a name unlike all."""
    assert expected == nearest(name, ["T1", "T1ce", "FLAIR"])


def test_did_you_mean_sorts_what_it_lists():
    """The list does not depend on the order of registration."""
    assert "known: a, b" == did_you_mean("xyz", ["b", "a"])
