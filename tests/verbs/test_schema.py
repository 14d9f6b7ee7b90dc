"""`schema` and `methods`: what a recipe may say."""

from __future__ import annotations

import json

from mergekit3d import methods, schema
from mergekit3d.merging.methods import METHODS
from mergekit3d.recipe.models import Recipe


def test_schema_knows_every_key():
    """With its description, and refuses others."""
    content = schema().as_json()

    assert "https://json-schema.org/draft/2020-12/schema" == content["$schema"]
    assert set(Recipe.model_fields) == set(content["properties"])
    assert content["additionalProperties"] is False
    assert ["version"] == content["required"]
    assert all(value.get("description") for value in content["properties"].values())


def test_schema_prints_as_json():
    """For editors."""
    assert schema().as_json() == json.loads("\n".join(schema().lines()))


def test_methods_are_those_of_the_registry():
    """By name, with one line, reference, needs and parameters."""
    entries = methods().entries

    assert sorted(METHODS) == [entry.name for entry in entries]
    assert all(entry.summary and entry.reference for entry in entries)
    assert {"density", "scale"} == set(methods().as_json()["ties"]["parameters"])
