"""The generated pages are what the code gives now, and leave nothing without a word on it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import mergekit3d
from mergekit3d.recipe.models import Recipe
from mergekit3d_cli.app import app

ROOT = Path(__file__).parents[2]
COMMANDS = dict(typer.main.get_command(app).commands.items())


@pytest.fixture(scope="module")
def generated():
    """What docs/generate.py gives: page by path."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module.pages()
    del sys.modules[spec.name]


@pytest.mark.parametrize("name", ["commands", "names", "recipe"])
def test_generated_page_is_up_to_date(generated, name):
    """What is committed is what the generator gives; where it is not: python docs/generate.py."""
    path = Path("docs/reference") / f"{name}.md"

    assert generated[path] == (ROOT / path).read_text(encoding="utf-8")


def test_every_key_of_a_recipe_is_described():
    """In the schema, and so in editors and on the page."""
    schema = Recipe.model_json_schema()
    parts = {"Recipe": schema, **schema["$defs"]}

    assert [] == [
        f"{part}.{key}" for part, content in parts.items() for key, value in content["properties"].items() if not value.get("description")
    ]


def test_every_key_of_a_recipe_stands_on_its_page(generated):
    """By its path, or among those that it says are as elsewhere."""
    text = generated[Path("docs/reference/recipe.md")]
    schema = Recipe.model_json_schema()

    assert [] == [key for part in (schema, *schema["$defs"].values()) for key in part["properties"] if not re.search(rf"[`.]{key}`", text)]
    assert {"target.split.train", "adapt.ratio_learning_rate", "sources[].fisher"} <= set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_and_flag_says_what_it_is(command):
    """And what the command writes is in its help too."""
    assert [] == [parameter.name for parameter in COMMANDS[command].params if not parameter.help]
    assert re.search(r"\bWrites? ", COMMANDS[command].help)


def examples(command):
    """Those of a command's help, torchrun's left out, as words."""
    text = COMMANDS[command].help.partition("Examples:")[2]
    lines = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    return [shlex.split(line.partition(" > ")[0]) for line in lines if not line.startswith("torchrun ")]


class Result:
    """What a function of the library gives back, as far as the command line looks at it."""

    def as_json(self):
        return {}

    def lines(self):
        return []


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_are_understood(command, monkeypatch):
    """Every flag and value in them is one that the command takes; each calls the library once."""
    calls = []
    for name in (command, "fisher_sources"):
        monkeypatch.setitem(vars(mergekit3d), name, lambda *arguments, **keywords: calls.append(keywords) or Result())

    outcomes = [CliRunner().invoke(app, words[1:]) for words in examples(command)]

    assert [] == [outcome.output for outcome in outcomes if outcome.exit_code != 0]
    assert len(calls) == len(examples(command)) > 0
    assert {("mergekit3d", command)} == {tuple(words[:2]) for words in examples(command)}
