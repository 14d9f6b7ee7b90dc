"""`schema` and `methods`: what a recipe may say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import mergekit3d_recipes
from mergekit3d import methods, schema
from mergekit3d.errors import MergeKit3DError, UsageError
from mergekit3d.merging.methods import METHODS
from mergekit3d.recipe.document import parse_document
from mergekit3d.recipe.load import validate_recipe
from mergekit3d.recipe.models import Recipe

RECIPES = sorted(Path(mergekit3d_recipes.__file__).parent.rglob("*.yaml"))
FULL = """
version: 1
name: all
architecture: {name: monai.UNet, spatial_dims: 3}
sources: [{name: m1, checkpoint: m1.pt}, {name: m2, checkpoint: m2.pt, fisher: f.safetensors}]
merge: {granularity: {encoder: "encoder.*", rest: ["*"]}, ratios: {"encoder.*": {m1: [0.9, 0.1]}}, parameters: {density: 0.2}}
target: {data: brats/, modalities: [t1], regions: {ET: [4], WT: 1}, split: {fold: 0}, spacing_mm: [1, 1, 1]}
fisher: {estimator: true}
adapt: {objective: entropy, regularise: {by: entropy, strength: -0.1}, patience: null}
finetune: {init: timm, augment: {rotate: {range: [-15, 15]}}, learning_rates: {private: 1e-3}}
"""
BAD = [
    "version: 2",
    "name: no version",
    "version: 1\nmerg: {method: timm}",
    "version: 1\nmerge: {metod: timm}",
    "version: 1\nmerge: {granularity: layers}",
    "version: 1\nmerge: {granularity: {encoder: 3}}",
    "version: 1\nmerge: {dtype: float8}",
    "version: 1\nadapt: {epochs: 0}",
    "version: 1\nadapt: {epochs: many}",
    "version: 1\nadapt: {objective: entropie}",
    "version: 1\nadapt: {learning_rate: 0}",
    "version: 1\nfinetune: {patch_size: [64, 64]}",
    "version: 1\nfinetune: {ema: 1}",
    "version: 1\nfinetune: {augment: {rotate: 15}}",
    "version: 1\nfisher: {estimator: guessed}",
    "version: 1\nsources: [{checkpoint: m1.pt}]",
    "version: 1\nsources: [{name: a b, checkpoint: m1.pt}]",
    "version: 1\ntarget: {layout: hcp}",
    "version: 1\ntarget: {data: brats, modalities: []}",
    "version: 1\nseed: -1",
]


@pytest.fixture(scope="module")
def validator():
    """Of the schema as it is printed."""
    return Draft202012Validator(json.loads("\n".join(schema().lines())))


def test_schema_knows_every_key():
    """With its description, and refuses others."""
    content = schema().as_json()

    assert "https://json-schema.org/draft/2020-12/schema" == content["$schema"]
    assert set(Recipe.model_fields) == set(content["properties"])
    assert content["additionalProperties"] is False
    assert ["version"] == content["required"]


def test_every_key_at_every_depth_is_titled_and_described():
    """Editors show both."""
    content = schema().as_json()
    parts = [content, *content["$defs"].values()]

    assert 120 < sum(len(part.get("properties", ())) for part in parts)
    for part in parts:
        assert part.get("description"), part["title"]
        for key, value in part.get("properties", {}).items():
            assert key == value["title"]
            assert value.get("description"), f"{part['title']}.{key}"


def test_names_that_are_known_can_be_chosen():
    """Of methods, layouts, regions and architectures; others, such as import paths, stay valid."""
    content = schema().as_json()

    assert "timm" in content["$defs"]["MergeModel"]["properties"]["method"]["examples"]
    assert "brats2018" in content["$defs"]["TargetModel"]["properties"]["layout"]["examples"]
    assert "hcp-1-7" in content["$defs"]["TargetModel"]["properties"]["regions"]["examples"]
    assert "isensee2017" in content["properties"]["architecture"]["examples"]


def test_schema_is_one_of_draft_2020_12(validator):
    """By the schema of schemas."""
    Draft202012Validator.check_schema(validator.schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_are_valid(validator, path):
    """An editor marks nothing in them."""
    assert [] == [error.message for error in validator.iter_errors(parse_document(path.read_text(), path.name).content)]


def test_shorthands_are_valid(validator):
    """Whatever the models read is no error in an editor: one glob without a list, an objective's name, true as a word."""
    document = parse_document(FULL, "r.yaml")
    validate_recipe(document, "r.yaml")

    assert [] == [error.message for error in validator.iter_errors(document.content)]


@pytest.mark.parametrize("text", BAD)
def test_what_is_refused_is_marked(validator, text):
    """The schema and the models agree on what is wrong."""
    document = parse_document(text, "r.yaml")

    assert not validator.is_valid(document.content)
    with pytest.raises(MergeKit3DError):
        validate_recipe(document, "r.yaml")


def test_schema_prints_as_json():
    """For editors."""
    assert schema().as_json() == json.loads("\n".join(schema().lines()))


def test_schema_is_written_to_a_file(tmp_path):
    """Which is not replaced unless asked; the answer says what a recipe's first line is."""
    out = tmp_path / "recipe.schema.json"
    written = schema(out=out)

    assert written.content == json.loads(out.read_text())
    assert {"out": str(out)} == written.as_json()
    assert "# yaml-language-server: $schema=recipe.schema.json" == written.lines()[1]
    with pytest.raises(UsageError, match="the output exists already"):
        schema(out=out)
    assert written.content == schema(out=out, force=True).content


def test_methods_are_those_of_the_registry():
    """By name, with one line, reference, needs and parameters."""
    entries = methods().entries

    assert sorted(METHODS) == [entry.name for entry in entries]
    assert all(entry.summary and entry.reference for entry in entries)
    assert {"density", "scale"} == set(methods().as_json()["ties"]["parameters"])
