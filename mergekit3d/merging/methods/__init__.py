"""Merge methods: one file each, registered under the name that a recipe uses.

To add one: a file beside this one that makes a `MergeMethod` and registers it, and its name in `_load`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit3d.registry import Registry

Combine = Callable[[Sequence[Any], Sequence[Any] | None, Sequence[Any]], Any]


@dataclass(frozen=True)
class MergeMethod:
    """How the tensors of several sources become one.

    Args:
        name: the recipe's ``merge.method``.
        summary: one line on what it computes.
        reference: the paper it comes from.
        combine: (thetas, fishers or None, ratios) -> fused, on arrays of one tensor.
        uses_fisher: whether every source needs a Fisher diagonal.
        learned_ratios: whether ratios are expected from ``adapt``.
    """

    name: str
    summary: str
    reference: str
    combine: Combine
    uses_fisher: bool = False
    learned_ratios: bool = False


METHODS: Registry[MergeMethod] = Registry("merge method")


def register(method: MergeMethod) -> MergeMethod:
    """Add a method to the registry under its own name."""
    return METHODS.register(method.name)(method)


def _load() -> None:
    from mergekit3d.merging.methods import imm, linear, mean_imm, timm  # noqa: F401  importing registers


_load()
