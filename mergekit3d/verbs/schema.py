"""``mergekit3d schema``: the JSON schema of recipes, for editors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ALSO: dict[tuple[str, str], dict[str, Any]] = {
    ("AdaptModel", "objective"): {"enum": ["supervised", "entropy"]},
    ("FisherModel", "estimator"): {"const": True},
}
"""What a key takes besides what its model says: shorthands that are read before the model sees them."""


@dataclass(frozen=True)
class Schema:
    """The JSON schema of recipes.

    Args:
        content: the schema.
        out: where it was written.
    """

    content: dict[str, Any]
    out: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """The schema itself, or where it is."""
        return self.content if self.out is None else {"out": str(self.out)}

    def lines(self) -> list[str]:
        """The schema as indented JSON, or where it is and what a recipe says for editors."""
        import json

        if self.out is None:
            return json.dumps(self.content, indent=2, ensure_ascii=False).splitlines()
        return [f"{self.out}; the first line of a recipe, for editors:", f"# yaml-language-server: $schema={self.out.name}"]


def schema(*, out: Path | str | None = None, force: bool = False) -> Schema:
    """The JSON schema of recipes (draft 2020-12), with a title and a description of every key.

    Args:
        out: write it to this file.
        force: replace the file where it exists.

    Raises:
        UsageError: the file exists.
        OutputError: it cannot be written.
    """
    from mergekit3d.recipe.models import Recipe
    from mergekit3d.storage.atomic import refuse_existing, write_json

    generated = Recipe.model_json_schema()
    content = {"$schema": DIALECT, **generated, "title": "mergekit3d recipe"}
    for model, part in (("Recipe", content), *content["$defs"].items()):
        for key, value in part.get("properties", {}).items():
            part["properties"][key] = _for_editors(model, key, value)
    if out is None:
        return Schema(content)
    refuse_existing(out, force=force)
    write_json(out, content)
    return Schema(content, Path(out))


def _for_editors(model: str, key: str, value: dict[str, Any]) -> dict[str, Any]:
    """A key's schema with its name as title, shorthands, and known names to choose from."""
    shown: dict[str, Any] = {"title": key, **{name: value[name] for name in ("description", "default") if name in value}}
    rest = {name: part for name, part in value.items() if name not in ("title", "description", "default")}
    also = ALSO.get((model, key))
    if also is not None:
        rest = {"anyOf": [rest, also]}
    if (model, key) == ("MergeModel", "granularity"):
        _or_one_text(rest)
    examples = [name for kind, names in _names() if kind == key for name in names]
    return {**shown, **rest, **({"examples": examples} if examples else {})}


def _or_one_text(granularity: dict[str, Any]) -> None:
    """A group of globs may be one glob."""
    groups = next(choice for choice in granularity["anyOf"] if choice.get("type") == "object")
    by_name = groups["patternProperties"]
    groups["patternProperties"] = {pattern: {"anyOf": [globs, {"type": "string"}]} for pattern, globs in by_name.items()}
    groups["additionalProperties"] = False


def _names() -> Iterator[tuple[str, list[str]]]:
    """Keys that take names, and the names that are known."""
    from mergekit3d.architectures import ARCHITECTURES
    from mergekit3d.datasets.labels import OUTPUT_SETS
    from mergekit3d.datasets.layouts import LAYOUTS
    from mergekit3d.merging.methods import METHODS

    yield "method", sorted(METHODS)
    yield "layout", ["auto", *sorted(LAYOUTS)]
    yield "regions", sorted(OUTPUT_SETS)
    yield "architecture", sorted(ARCHITECTURES)
