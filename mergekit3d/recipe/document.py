"""Strict YAML: plain data with the line of every key, or one clear error.

Refused: duplicate keys, anchors and aliases, tags, several documents, more than 1 MiB. Scalars follow YAML 1.2: ``1e-8`` is a
number, ``no`` is a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit3d.errors import RecipeError
from mergekit3d.nearby import did_you_mean_file
from mergekit3d.recipe.wording import yaml_problem
from mergekit3d.storage.steady import Stamp, refuse_changed

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
INTEGER = re.compile(r"[-+]?[0-9]{1,100}")  # longer ones are read as floats: Python refuses integers of thousands of digits
OTHER_INTEGER = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((sign + word for sign in ("", "+") for word in (".inf", ".Inf", ".INF")), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}

KeyPath = tuple[str | int, ...]
RECIPE = "the recipe"


@dataclass(frozen=True)
class Document:
    """Plain data and where it stood.

    Args:
        content: mappings, lists and scalars.
        lines: line number of every key path, counted from 1.
        overrides: the flag that set it, of every key path that was set from outside.
    """

    content: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overrides: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, location: KeyPath, where: str) -> str:
        """Where the value of a key path, or the nearest one that holds it, was said."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.overrides:
                return self.overrides[location[:end]]
            if location[:end] in self.lines:
                return f"{where}, line {self.lines[location[:end]]}"
        return where


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        RecipeError: missing, too large, or not strict YAML; the line is named.
        InputError: it was changed while it was read.
    """
    try:
        if not path.is_file():
            raise _no_file(path)
        before = Stamp.of(path)
        content = path.read_bytes()
        refuse_changed(before, path, path)
    except OSError as error:
        raise RecipeError("cannot read the recipe", where=path, found=(error.strerror or "an error").lower()) from error
    if len(content) > MAX_BYTES:
        raise RecipeError("the recipe is too large", where=path, wanted="at most 1 MiB", found=f"{len(content)} bytes")
    try:
        return parse_document(content.decode(), str(path))
    except UnicodeDecodeError as error:
        raise RecipeError("the recipe is not UTF-8", where=path, wanted="text in YAML", found="other bytes") from error


def _no_file(path: Path) -> RecipeError:
    if not path.exists():
        return RecipeError("no such recipe", where=path, todo=did_you_mean_file(path))
    return RecipeError("the recipe is no regular file", where=path, wanted="a YAML file", found="a folder" if path.is_dir() else None)


def parse_document(text: str, where: str, *, what: str = RECIPE) -> Document:
    """Plain data from YAML text.

    Args:
        text: one document.
        where: its name in error texts.
        what: what it is, in error texts.

    Raises:
        RecipeError: not strict YAML.
    """
    import yaml

    try:
        _check_events(text, where)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = where if mark is None or what != RECIPE else f"{where}, line {mark.line + 1}"
        raise RecipeError(f"{what} is no YAML", where=place, **yaml_problem(getattr(error, "problem", None))) from error
    lines: dict[KeyPath, int] = {}
    content = None if root is None else _construct(root, (), lines, where)
    if not isinstance(content, dict):
        raise RecipeError("the recipe is no mapping", where=where, wanted="keys such as version, sources, merge")
    return Document(content, lines)


def parse_value(text: str, where: str) -> Any:
    """Plain data from the text of one value, as of ``--set key=value``."""
    return parse_document(f"value: {text}", where, what="the value").content["value"]


def _check_events(text: str, where: str) -> None:
    """Refuse anchors, tags and deep nesting before anything is built of the text: building recurses."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        assert event.start_mark is not None
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecipeError("the recipe is nested too deeply", where=f"{where}, line {line}")
        if getattr(event, "anchor", None) is not None:
            raise RecipeError("anchors and aliases are not allowed", where=f"{where}, line {line}", todo="write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            raise RecipeError("tags are not allowed", where=f"{where}, line {line}", found=tag)


def _construct(node: Any, path: KeyPath, lines: dict[KeyPath, int], where: str) -> Any:
    import yaml

    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, (*path, index), lines, where) for index, child in enumerate(node.value)]
    content: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError("a key must be a text", where=f"{where}, line {line}")
        key = key_node.value
        if key in content:
            raise RecipeError(
                "the key stands twice", where=f"{where}, line {line}", found=repr(key), todo=f"first on line {lines[(*path, key)]}"
            )
        lines[(*path, key)] = line
        content[key] = _construct(value_node, (*path, key), lines, where)
    return content


def _scalar(text: str) -> Any:
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    if OTHER_INTEGER.fullmatch(text):
        return int(text, 0)
    return float(text) if FLOAT.fullmatch(text) else text
