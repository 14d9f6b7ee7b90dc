"""The commands that only look: inspect, verify, schema, methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import mergekit3d

from .console import Result
from .flags import Overrides, RecipeFlag, needed, overrides_of


def inspect(
    checkpoints: Annotated[list[Path] | None, typer.Argument(metavar="CKPT...", show_default=False)] = None,
    *,
    recipe: RecipeFlag = None,
    overrides: Overrides = None,
    values: Annotated[bool, typer.Option("--values", help="Read the tensors too: seal, ranges, NaN and Inf, cosines.")] = False,
) -> Result:
    """Show what checkpoints hold, and what of them can be fused.

    With --recipe: the plan, without running it.

    Examples:

      mergekit3d inspect m1.pt

      mergekit3d inspect m1.pt m2.pt

      mergekit3d inspect --recipe timm.yaml
    """
    if recipe is None:
        needed(checkpoints, "inspect", "checkpoints or a recipe", example="inspect m1.pt m2.pt")
    return mergekit3d.inspect(checkpoints or [], recipe=recipe, overrides=overrides_of(overrides), values=values)


def verify(file: Annotated[Path | None, typer.Argument(metavar="FILE", show_default=False)] = None) -> Result:
    """Check the seal of a file that mergekit3d wrote.

    Examples:

      mergekit3d verify fused.safetensors
    """
    file = needed(file, "verify", "a file", example="verify fused.safetensors")
    return mergekit3d.verify(file)


def schema() -> Result:
    """Print the JSON schema of recipes, for editors.

    Examples:

      mergekit3d schema > recipe.schema.json
    """
    return mergekit3d.schema()


def methods() -> Result:
    """List the merge methods that a recipe can name.

    Examples:

      mergekit3d methods
    """
    return mergekit3d.methods()
