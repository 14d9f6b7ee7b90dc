"""Merge methods: one file each, registered under the name that a recipe uses.

To add one: a file beside this one that makes a `MergeMethod` and registers it (`linear.py` is the shortest, `ties.py` has parameters
and looks at whole tensors first). Every module of this folder is loaded; there is no list to keep.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mergekit3d.errors import ProblemCollector, RecipeError
from mergekit3d.merging.piece import Piece
from mergekit3d.registry import Registry, did_you_mean


class Parameters(BaseModel):
    """The parameters of a method, ``merge.parameters`` of a recipe: unknown ones are refused; this one is of methods without any."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


@dataclass(frozen=True)
class MergeMethod:
    """How the tensors of several sources become one.

    Args:
        name: the recipe's ``merge.method``.
        summary: one line on what it computes.
        reference: the paper it comes from.
        combine: (piece, parameters) -> the merged entries; elementwise, since tensors are cut into pieces.
        parameters: what a recipe may set under ``merge.parameters``.
        survey: (theta, reference, parameters) -> what `combine` must know of a source's whole tensor; the reference is the base, or
            the first source where the method has none. None where entries suffice.
        uses_fisher: whether every source needs a Fisher diagonal.
        uses_base: whether it works on differences from a base (``merge.base``).
        learnable: whether ``adapt`` can learn its ratios: eq. 2 of T-IMM, with F or with F = 1.
        learned_ratios: whether ratios are expected from ``adapt``.
        normalised: whether ratios are scaled to sum to 1; else they are coefficients, 1 by default, of any sign.
        sources: the number of sources that it takes; None for any.
        evaluates: whether it chooses among the sources by their Dice on the target's validation subjects.
    """

    name: str
    summary: str
    reference: str
    combine: Callable[[Piece, Any], Any]
    parameters: type[Parameters] = Parameters
    survey: Callable[[Any, Any, Any], Any] | None = None
    uses_fisher: bool = False
    uses_base: bool = False
    learnable: bool = False
    learned_ratios: bool = False
    normalised: bool = True
    sources: int | None = None
    evaluates: bool = False


METHODS: Registry[MergeMethod] = Registry("merge method")


def register(method: MergeMethod) -> MergeMethod:
    """Add a method to the registry under its own name."""
    return METHODS.register(method.name)(method)


def parameters_of(method: MergeMethod, given: Mapping[str, Any]) -> Parameters:
    """The parameters of a method, checked.

    Raises:
        MergeKit3DError: unknown or wrong ones, all at once.
    """
    try:
        return method.parameters.model_validate(given)
    except ValidationError as error:
        known, problems = method.parameters.model_fields, ProblemCollector()
        for details in error.errors(include_url=False, include_input=False):
            key = ".".join(str(part) for part in details["loc"])
            where = f"merge.parameters.{key}"
            if details["type"] == "extra_forbidden":
                todo = did_you_mean(key, known) if known else f"{method.name} takes none"
                problems.add(RecipeError(f"unknown parameter of {method.name}", where=where, todo=todo))
            else:
                text = details["msg"]
                problems.add(RecipeError(f"wrong parameter of {method.name}", where=where, found=text[:1].lower() + text[1:]))
        problems.raise_if_any()
        raise


def _load() -> None:
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        import_module(f"{__name__}.{module}")


_load()
