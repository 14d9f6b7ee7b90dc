"""Mixing ratios of a recipe: uniform, by source, by glob, and from the file that adapt wrote."""

from __future__ import annotations

import json
import os

import pytest

from mergekit3d.errors import InputError, RecipeError
from mergekit3d.plan.ratios import Ratios, ratios_path, read_ratios, resolve_ratios, write_ratios
from tests.builders import fusing

GROUPS = ["encoder.0.conv", "encoder.1.conv", "decoder.0.conv"]
GOOD = {"sources": ["m1", "m2"], "granularity": "layer", "layers": {group: [0.25, 0.75] for group in GROUPS}}


def resolved(folder, merge, groups=GROUPS):
    return resolve_ratios(fusing(folder, merge), groups).layers


def write_file(folder, content, name="adapt/ratios.json"):
    """A ratio file in the OUT of the recipe."""
    path = folder / "recipe" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_round_trip(tmp_path):
    """Every digit of a float32 or float64 ratio comes back, by layer and by kernel."""
    ratios = Ratios(("m1", "m2"), "kernel", {"a": [[1 / 3, 0.1], [2 / 3, 0.9]]})
    write_ratios(tmp_path / "ratios.json", ratios)

    assert ratios == read_ratios(tmp_path / "ratios.json")
    assert {"sources": ["m1", "m2"], "granularity": "kernel", "layers": {"a": [[1 / 3, 0.1], [2 / 3, 0.9]]}} == json.loads(
        (tmp_path / "ratios.json").read_text()
    )


@pytest.mark.parametrize("merge", ["{method: imm}", "{method: timm, ratios: uniform}", "{method: linear, ratios: {}}"])
def test_uniform(tmp_path, merge):
    """The default of all methods but timm."""
    assert {group: [0.5, 0.5] for group in GROUPS} == resolved(tmp_path, merge)


def test_by_source(tmp_path):
    """In the order of the sources, made to sum to 1."""
    assert {group: [0.25, 0.75] for group in GROUPS} == resolved(tmp_path, "{method: imm, ratios: {m2: 3, m1: 1}}")
    assert [0.0, 1.0] == resolved(tmp_path, "{method: imm, ratios: {m2: 1, m1: 0}}")[GROUPS[0]]


def test_by_glob(tmp_path):
    """The first that fits decides; what none names is uniform."""
    layers = resolved(tmp_path, '{method: imm, ratios: {"encoder.0.*": {m1: 1, m2: 0}, "encoder.*": {m1: 1, m2: 3}}}')

    assert [[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]] == list(layers.values())


@pytest.mark.parametrize(
    ("told", "ratios"),
    [
        ("a ratio for an unknown source: merge.ratios: found m3; known: m1, m2", "{m1: 1, m2: 1, m3: 1}"),
        ("a source without a ratio: merge.ratios: found m2; give every source one (0 leaves it out)", "{m1: 1}"),
        ("ratios that are all 0: merge.ratios; give at least one source a ratio above 0", "{m1: 0, m2: 0}"),
        ("a ratio for an unknown source: merge.ratios: found m3; known: m1, m2", '{"encoder.*": {m1: 1, m2: 1}, "*": {m3: 1}}'),
        ("ratios that are all 0: merge.ratios; give at least one source a ratio above 0", '{"*": {m1: 0, m2: 0}}'),
        (
            (
                "ratios by source and by glob do not mix: merge.ratios: found m1; "
                "give ratios by source, or by glob and source (* for all others)"
            ),
            '{m1: 1, "encoder.*": {m1: 1, m2: 1}}',
        ),
        (
            "the pattern names no ratio: merge.ratios: found 'encodr.0.conv'; did you mean 'encoder.0.conv'?",
            '{"encodr.0.conv": {m1: 1, m2: 1}}',
        ),
    ],
)
def test_wrong_ratios_of_a_recipe(tmp_path, told, ratios):
    """Nothing of them is passed over."""
    with pytest.raises(RecipeError) as caught:
        resolved(tmp_path, f"{{method: imm, ratios: {ratios}}}")
    assert told == str(caught.value)


@pytest.mark.parametrize("merge", ["{method: timm}", "{method: imm, ratios: adapt/ratios.json}"])
def test_from_the_file_of_adapt(tmp_path, merge):
    """In OUT; timm looks there by itself. Ratios are used as they stand."""
    path = write_file(tmp_path, GOOD)

    assert path == ratios_path(fusing(tmp_path, merge))
    assert GOOD["layers"] == resolved(tmp_path, merge)
    assert GOOD["layers"][GROUPS[0]] == resolved(tmp_path, merge, GROUPS[:1])[GROUPS[0]]


def test_file_of_another_order_of_sources(tmp_path):
    """Goes by their names."""
    write_file(tmp_path, {**GOOD, "sources": ["m2", "m1"]})

    assert [0.75, 0.25] == resolved(tmp_path, "{method: timm}")[GROUPS[0]]


def test_no_file_is_asked_for_without_need(tmp_path):
    """Ratios in the recipe, or uniform ones, come from no file."""
    assert ratios_path(fusing(tmp_path, "{method: imm}")) is None
    assert ratios_path(fusing(tmp_path, "{method: timm, ratios: {m1: 1, m2: 1}}")) is None


@pytest.mark.parametrize("is_there", [False, True])
def test_file_beside_the_output_folder(tmp_path, is_there):
    """`..` leads out of OUT, whether that has been made or not."""
    (tmp_path / "own.json").write_text(json.dumps(GOOD))
    if is_there:
        (tmp_path / "recipe").mkdir()

    assert [0.25, 0.75] == resolved(tmp_path, "{method: timm, ratios: ../own.json}")[GROUPS[0]]


def test_missing_file(tmp_path):
    """Tells what makes it."""
    with pytest.raises(InputError) as caught:
        resolved(tmp_path, "{method: timm}")
    path = tmp_path / "recipe" / "adapt" / "ratios.json"
    assert f"no mixing ratios: {path}; run adapt first, or set merge.ratios: uniform" == str(caught.value)


@pytest.mark.parametrize(
    ("told", "change"),
    [
        ("are of other sources: {path}: wanted m1, m2, found m1, m3", {"sources": ["m1", "m3"]}),
        ("are of another granularity: {path}: wanted layer, found tensor", {"granularity": "tensor"}),
        ("are missing: {path}: wanted encoder.1.conv, found 2 of 3 without; run adapt again", {"layers": {GROUPS[0]: [0.5, 0.5]}}),
    ],
)
def test_file_of_another_fusion(tmp_path, told, change):
    """Other sources, another granularity, other layers."""
    path = write_file(tmp_path, {**GOOD, **change})
    with pytest.raises(InputError) as caught:
        resolved(tmp_path, "{method: timm}")
    assert told.format(path=path) in str(caught.value)


@pytest.mark.parametrize(
    ("told", "content"),
    [
        ("cannot read the mixing ratios", "{"),
        ("cannot read the mixing ratios", "[]"),
        ("damaged mixing ratios", {"sources": ["m1", "m2"]}),
        ("damaged mixing ratios", {**GOOD, "sources": 5}),
        ("damaged mixing ratios", {**GOOD, "layers": [1]}),
        ("damaged mixing ratios", {**GOOD, "layers": {"a": 5}}),
        ("damaged mixing ratios", {**GOOD, "sources": [1, "m2"]}),
        ("wanted a ratio >= 0", {**GOOD, "layers": {"a": [0.5]}}),
        ("wanted a ratio >= 0", {**GOOD, "layers": {"a": [-0.5, 1.5]}}),
        ("wanted a ratio >= 0", {**GOOD, "layers": {"a": [0, 0]}}),
        ("wanted a ratio >= 0", {**GOOD, "layers": {"a": ["0.5", 0.5]}}),
        ("wanted a ratio >= 0", {**GOOD, "layers": {"a": [True, False]}}),
        ("wanted a ratio >= 0", '{"sources": ["m1", "m2"], "granularity": "layer", "layers": {"a": [NaN, 1]}}'),
        ("wanted a ratio >= 0", '{"sources": ["m1", "m2"], "granularity": "layer", "layers": {"a": [1e999, 1]}}'),
        ("by kernel: above 0", {**GOOD, "layers": {"a": [[0.0, 1.0], [1.0, 1.0]]}}),
        ("damaged mixing ratios", {**GOOD, "layers": {"a": [[0.5], [0.5, 0.5]]}}),
        ("damaged mixing ratios", {**GOOD, "layers": {"a": [0.5, [0.5]]}}),
        ("wanted a ratio >= 0", {**GOOD, "layers": {"a": [[], []]}}),
        ("wanted a ratio >= 0", {**GOOD, "layers": {"a": [[[0.5]], [[0.5]]]}}),
    ],
)
def test_damaged_file(tmp_path, told, content):
    """One line, never a traceback, and never a NaN in the weights."""
    path = write_file(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_ratios(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_pipe_does_not_hang(tmp_path):
    """It is no regular file."""
    os.mkfifo(tmp_path / "ratios.json")
    with pytest.raises(InputError, match="cannot read the mixing ratios"):
        read_ratios(tmp_path / "ratios.json")
