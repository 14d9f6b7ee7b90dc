"""``mergekit3d methods``: the merge methods that a recipe can name."""

from __future__ import annotations

from mergekit3d.merging.methods import METHODS


def methods() -> list[tuple[str, str, str]]:
    """Name, one line and reference of every merge method."""
    return [(name, method.summary, method.reference) for name, method in METHODS.items()]
