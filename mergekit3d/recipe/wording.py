"""What pydantic and the YAML parser find wrong, in the words of all other errors: wanted, found, what to do."""

from __future__ import annotations

import re
from typing import Any

from mergekit3d.errors import RecipeError
from mergekit3d.registry import nearest

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "tuple": "a list",
    "list": "a list",
    "dict": "keys with values",
    "model": "keys with values",
    "path": "a path",
    "finite": "a finite number",
}
LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}
YAML_WORDS = {
    "the node content": "a value",
    "<stream end>": "the end of the file",
    "<document start>": "another document",
    "<block end>": "an entry in line with those above it",
    "<block mapping start>": "keys that are indented",
    "<scalar>": "a text",
    "<block entry>": "a list",
}


def wrong_value(key: str, where: str, details: Any, value: Any) -> RecipeError:
    """The error of a value that a key does not take.

    Args:
        key: dotted path of the key.
        where: the file and line, or the flag, that said it.
        details: an entry of pydantic's ``errors()``.
        value: what stood there.
    """
    failed, kind, context = f"wrong value of {key!r}", details["type"], details.get("ctx", {})
    if kind == "value_error":
        said = str(details["msg"]).removeprefix("Value error, ")
        return RecipeError(failed, where=where, todo=said) if said.startswith("give ") else RecipeError(failed, where=where, found=said)
    found, todo = _echo(value), None
    if kind in LIMITS:
        word, bound = LIMITS[kind]
        wanted = f"{word} {context[bound]:g}"
    elif kind == "literal_error":
        wanted = context["expected"]
        guess = nearest(str(value), re.findall(r"'([^']*)'", wanted))
        todo = f"did you mean {guess!r}?" if guess is not None and guess != value else None
        found = "another text" if isinstance(value, str) else found
    elif kind.partition("_")[0] in KINDS:
        wanted = KINDS[kind.partition("_")[0]]
    else:
        return RecipeError(failed, where=where, found=_lower_first(details["msg"]))
    last = key.rpartition(".")[2]
    if ":" in last:
        todo = f"write a space after the colon: {last.replace(':', ': ')}"
    return RecipeError(failed, where=where, wanted=wanted, found=found, todo=todo)


def _echo(value: Any) -> str:
    """A number, or what kind of value it is: texts may be patients' names, or paths."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "keys with values" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "a text" if isinstance(value, str) else f"{value}"


def yaml_problem(problem: str | None) -> dict[str, str]:
    """What the YAML parser wanted and found, as keywords of an error."""
    match = re.fullmatch(r"expected (.+?), but (?:found|got) '?(.+?)'?", problem or "an error")
    if match is None:
        return {"found": problem or "an error"}
    wanted, found = (YAML_WORDS.get(word.strip("'"), word) for word in match.groups())
    return {"wanted": wanted, "found": found}


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
