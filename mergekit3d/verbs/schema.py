"""``mergekit3d schema``: the JSON schema of recipes, for editors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schema:
    """The JSON schema of recipes."""

    content: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The schema itself."""
        return self.content

    def lines(self) -> list[str]:
        """The schema as indented JSON."""
        import json

        return json.dumps(self.content, indent=2, ensure_ascii=False).splitlines()


def schema() -> Schema:
    """The JSON schema of recipes."""
    from mergekit3d.recipe.models import Recipe

    return Schema({"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()})
