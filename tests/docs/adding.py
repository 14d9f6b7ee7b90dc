"""Merge some keys into a recipe, as a reader does in an editor: python adding.py RECIPE KEYS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml


def add(recipe: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings are merged; all else is replaced."""
    for key, value in keys.items():
        both = isinstance(value, dict) and isinstance(recipe.get(key), dict)
        recipe[key] = add(recipe[key], value) if both else value
    return recipe


if __name__ == "__main__":
    target = Path(sys.argv[1])
    recipe, keys = (yaml.safe_load(path.read_text()) for path in (target, Path(sys.argv[2])))
    target.write_text(yaml.safe_dump(add(recipe, keys), sort_keys=False))
