"""Recipes: strict YAML, checked against pydantic models, with every problem named by its key and line."""

from __future__ import annotations

from mergekit3d.recipe.load import LoadedRecipe, load_recipe
from mergekit3d.recipe.models import Recipe, SourceModel, TargetModel

__all__ = ["LoadedRecipe", "Recipe", "SourceModel", "TargetModel", "load_recipe"]
