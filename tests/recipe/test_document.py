"""Strict YAML: plain data with lines, or one error that names the line."""

from __future__ import annotations

import math

import pytest

from mergekit3d.errors import RecipeError
from mergekit3d.recipe.document import MAX_BYTES, parse_document, parse_value, read_document


def refusal(text):
    """What a text is answered with."""
    with pytest.raises(RecipeError) as caught:
        parse_document(text, "r.yaml")
    assert 2 == caught.value.exit_code
    return str(caught.value)


def test_lines_of_keys_and_items():
    """Counted from 1, for errors that are found later."""
    document = parse_document("version: 1\nsources:\n  - name: m1\n  - {name: m2,\n     fisher: f}\n", "r.yaml")

    assert {"version": 1, "sources": [{"name": "m1"}, {"name": "m2", "fisher": "f"}]} == document.content
    assert 1 == document.lines["version",]
    assert 2 == document.lines["sources",]
    assert 4 == document.lines["sources", 1, "name"]
    assert 5 == document.lines["sources", 1, "fisher"]


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (1e-8, "1e-8"),
        (1e5, "+1e5"),
        (0.5, ".5"),
        (1.0, "1."),
        (10, "010"),
        (-3, "-3"),
        (8, "0o10"),
        (31, "0x1F"),
        (True, "true"),
        (False, "FALSE"),
        (None, "~"),
        (None, "null"),
        (None, ""),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2001-01-01", "2001-01-01"),
        (".", "."),
        ("1", '"1"'),
        ("true", "'true'"),
        (math.inf, "+.INF"),
        (-math.inf, "-.inf"),
        (math.inf, "9" * 5000),
        ([1, "a"], "[1, a]"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_scalars_follow_yaml_1_2(expected, text):
    """`1e-8` is a number, `no` is a text; a quoted scalar is always a text."""
    value = parse_document(f"key: {text}", "r.yaml").content["key"]

    assert expected == value
    assert type(expected) is type(value)


def test_not_a_number():
    """Reads as what it is; the models refuse it."""
    assert math.isnan(parse_document("key: .NaN", "r.yaml").content["key"])


def test_keys_are_texts():
    """Also those that look like numbers or constants."""
    assert {"1": "a", "no": "b", "null": "c"} == parse_document("1: a\nno: b\nnull: c", "r.yaml").content


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    """A recipe from another system reads the same."""
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")

    assert {"a": 1, "b": 2} == read_document(path).content


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ("the key stands twice: r.yaml, line 3: found 'a'; first on line 1", "a: 1\nb: 2\na: 3"),
        ("the key stands twice: r.yaml, line 4: found 'b'; first on line 2", "a:\n  b: 1\n  c: 2\n  b: 3"),
        ("the key stands twice: r.yaml, line 1: found '1'; first on line 1", "{1: a, '1': b}"),
        ("anchors and aliases are not allowed: r.yaml, line 1; write the value out", "a: &x 1\nb: *x"),
        ("anchors and aliases are not allowed: r.yaml, line 2; write the value out", "a: 1\nb: *x"),
        (
            "tags are not allowed: r.yaml, line 2: found tag:yaml.org,2002:python/object/apply:os.system",
            "a: 1\nb: !!python/object/apply:os.system [x]",
        ),
        ("tags are not allowed: r.yaml, line 1: found !own", "a: !own 1"),
        ("a key must be a text: r.yaml, line 1", "? [a, b]\n: 1"),
        ("the recipe is nested too deeply: r.yaml, line 1", "a: " + "[" * 100 + "]" * 100),
        ("the recipe is nested too deeply: r.yaml, line 33", "\n".join(" " * depth + "a:" for depth in range(60))),
        ("the recipe is no mapping: r.yaml: wanted keys such as version, sources, merge", ""),
        ("the recipe is no mapping: r.yaml: wanted keys such as version, sources, merge", "# a remark"),
        ("the recipe is no mapping: r.yaml: wanted keys such as version, sources, merge", "- 1"),
    ],
)
def test_what_is_refused(told, text):
    """One line, with the line of the file."""
    assert told == refusal(text)


@pytest.mark.parametrize(
    ("line", "text"), [(1, "a: [1, 2"), (2, "a: 1\n  b: 2"), (3, "a: 1\n---\nb: 2"), (2, "a: 1\n\tb: 2"), (1, 'a: "x')]
)
def test_broken_yaml_names_a_line(line, text):
    """At or beside the one that is broken."""
    told = refusal(text)

    assert told.startswith("the recipe is no YAML: r.yaml, line ")
    assert abs(line - int(told.split("line ")[1].split(":")[0])) <= 1


def test_control_characters_are_no_yaml():
    """They are not printed either."""
    assert refusal("a: \x01").startswith("the recipe is no YAML: r.yaml")


def test_thousands_of_brackets_do_not_hang():
    """Nor do they end in a RecursionError."""
    assert "the recipe is nested too deeply: r.yaml, line 1" == refusal("a: " + "[" * 3000)


def test_missing_file(tmp_path):
    """The path is named."""
    with pytest.raises(RecipeError) as caught:
        read_document(tmp_path / "r.yaml")
    assert f"no such recipe: {tmp_path}/r.yaml" == str(caught.value)


def test_folder(tmp_path):
    """A folder is no recipe."""
    with pytest.raises(RecipeError) as caught:
        read_document(tmp_path)
    assert f"the recipe is no regular file: {tmp_path}: wanted a YAML file, found a folder" == str(caught.value)


def test_large_file(tmp_path):
    """Nothing of it is parsed."""
    (tmp_path / "r.yaml").write_bytes(b"a" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError) as caught:
        read_document(tmp_path / "r.yaml")
    assert f"the recipe is too large: {tmp_path}/r.yaml: wanted at most 1 MiB, found 1048577 bytes" == str(caught.value)


def test_other_encoding(tmp_path):
    """Told as such."""
    (tmp_path / "r.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(RecipeError) as caught:
        read_document(tmp_path / "r.yaml")
    assert f"the recipe is not UTF-8: {tmp_path}/r.yaml: wanted text in YAML, found other bytes" == str(caught.value)


@pytest.mark.parametrize(("expected", "text"), [(3, "3"), ([1, 2], "[1, 2]"), ({"train": 4}, "{train: 4}"), ("a b", "a b"), (None, "")])
def test_value_of_an_override(expected, text):
    """As a recipe would hold it."""
    assert expected == parse_value(text, "--set key")
