"""What is installed is what is here; versions, names and documents agree."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import mergekit3d
from mergekit3d_cli.app import COMMANDS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))


def test_packages_list_is_the_tree():
    """A package that is forgotten in pyproject.toml works in editable mode and is missing from the wheel."""
    folders = {"mergekit3d": "mergekit3d"} | {folder: package for package, folder in SETUPTOOLS["package-dir"].items()}
    found = set()
    for folder, package in folders.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))

    assert sorted(found) == sorted(SETUPTOOLS["packages"])


def test_every_folder_with_modules_is_a_package():
    """Without an __init__.py it would be left out of the wheel."""
    modules = [module for folder in ("mergekit3d", "cli", "recipes") for module in (ROOT / folder).rglob("*.py")]

    assert [] == [module.parent for module in modules if not (module.parent / "__init__.py").exists()]


def test_every_other_file_is_package_data():
    """Recipes at any depth, templates, style sheets and py.typed match the patterns of pyproject.toml; notes need not."""
    folders = {"mergekit3d": "mergekit3d"} | SETUPTOOLS["package-dir"]
    shipped = set()
    for package, patterns in SETUPTOOLS["package-data"].items():
        top, *inner = package.split(".")
        shipped |= {file for pattern in patterns for file in ROOT.joinpath(folders[top], *inner).glob(pattern)}
    files = {file for folder in folders.values() for file in (ROOT / folder).rglob("*") if file.is_file()}

    assert shipped == {file for file in files if file.suffix not in (".py", ".pyc", ".md")}


EXTRAS = PROJECT["project"]["optional-dependencies"]


@pytest.mark.parametrize("line", PROJECT["project"]["dependencies"] + EXTRAS["dev"] + EXTRAS["docs"])
def test_every_dependency_is_pinned_within_its_range(line):
    """constraints.txt holds a version of each, and pyproject.toml allows it."""
    requirement = Requirement(line)
    pins = {name.lower().replace("_", "-"): version for name, version in PINS.items()}

    assert requirement.name.lower() in pins
    assert requirement.specifier.contains(Version(pins[requirement.name.lower()]))


def test_known_holes_are_below_the_floors():
    """weights_only=True is safe from torch 2.10 on; the floors of monai and filelock are those of the reliability table."""
    specifiers = {Requirement(line).name: Requirement(line).specifier for line in PROJECT["project"]["dependencies"]}

    assert not specifiers["torch"].contains("2.9.1")
    assert not specifiers["monai"].contains("1.6.0")
    assert not specifiers["filelock"].contains("4.2.0")


def test_changelog_opens_with_the_version():
    """The first section is the unreleased one or that of this version, in the form of Keep a Changelog."""
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert headings
    assert headings[0] in ("Unreleased", mergekit3d.__version__)


def test_every_command_is_documented():
    """On the page that the README leads to; the README itself shows two commands of make, and the steps of the method."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    steps = ("fisher", "adapt", "fuse", "finetune", "predict", "evaluate")

    assert [] == [command.__name__ for command in COMMANDS if f"## {command.__name__}\n" not in commands]
    assert "(docs/reference/commands.md)" in readme
    assert [] == [step for step in steps if f"\nmergekit3d {step} " not in readme]
    assert [] == [target for target in ("demo", "test") if f"\nmake {target} " not in readme]


def test_lazy_names_are_those_that_type_checkers_see():
    """The two lists in mergekit3d/__init__.py agree."""
    tree = ast.parse((ROOT / "mergekit3d" / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        name.asname: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0 for name in node.names
    }
    del seen[None]

    assert mergekit3d._HOMES == seen
    assert {"__version__", *seen} == set(mergekit3d.__all__)
    assert set(seen) <= set(dir(mergekit3d))


def test_unknown_name_is_an_attribute_error():
    """As of any module."""
    with pytest.raises(AttributeError, match="module 'mergekit3d' has no attribute 'fuze'"):
        _ = mergekit3d.fuze


def test_every_command_is_in_the_library():
    """What the command line does, Python can do."""
    assert {command.__name__ for command in COMMANDS} <= set(mergekit3d.__all__)


def test_script_runs_the_application():
    """The installed script is cli/app.py."""
    (script,) = entry_points(group="console_scripts", name="mergekit3d")

    assert "mergekit3d_cli.app:app" == script.value


def test_every_test_states_a_behaviour():
    """Each test function has a docstring."""
    silent = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]

    assert [] == silent


PIP = """#!/bin/sh
if [ "$1" = -m ]; then
    printf '%s\\n' "$*" >>"$LOG"
    case "$*" in *" -c "*) cat "$6" >"$LOG.constraints" ;; esac
elif [ "$TORCH" ]; then
    exec "$REAL" -c "import importlib.metadata as m; m.version = lambda _: '$TORCH'; exec('''$2''')"
else
    exec "$REAL" -S "$@"
fi
"""


@pytest.fixture
def environment(tmp_path):
    """A copy of what .ci/env reads, in a folder with a space, beside an active environment whose pip only keeps a log."""
    project, active = tmp_path / "my project", tmp_path / "my env"
    (project / ".ci").mkdir(parents=True)
    for name in (".ci/env", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, project / name)
    (active / "bin").mkdir(parents=True)
    python = active / "bin" / "python"
    python.write_text(PIP)
    python.chmod(0o755)

    def run(*command, torch=""):
        variables = {**os.environ, "VIRTUAL_ENV": str(active), "LOG": str(tmp_path / "log"), "REAL": sys.executable, "TORCH": torch}
        return subprocess.run(["sh", str(project / ".ci" / "env"), *command], env=variables, capture_output=True, text=True, check=False)

    run.project, run.log, run.constraints = project, tmp_path / "log", tmp_path / "log.constraints"
    return run


def test_environment_is_filled_once_with_torch_first(environment):
    """The pinned torch comes first, both installs are constrained, and nothing is installed again while nothing has changed."""
    outcome = environment("echo", "two words")

    assert 0 == outcome.returncode, outcome.stderr
    assert "two words\n" == outcome.stdout
    first, second = environment.log.read_text().splitlines()
    assert first.endswith(" torch")
    assert second.endswith(" -e .[dev]")
    assert f"torch=={PINS['torch']}" in environment.constraints.read_text()
    environment.log.unlink()
    assert 0 == environment("true").returncode
    assert not environment.log.exists()


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_environment_is_filled_again_after_a_change(environment, name):
    """A new dependency is installed at the next call."""
    environment("true")
    environment.log.unlink()
    with open(environment.project / name, "a", encoding="utf-8") as file:
        file.write("# changed\n")

    environment("true")

    assert environment.log.exists()


def test_extra_is_installed_where_it_is_asked_for(environment, monkeypatch):
    """Once, beside all else, and constrained too; without EXTRA it is left alone."""
    environment("true", torch="2.12.0")
    monkeypatch.setenv("EXTRA", "docs")

    outcomes = [environment("true", torch="2.12.0") for _ in range(2)]

    assert [0, 0] == [outcome.returncode for outcome in outcomes]
    assert [" -e .[dev]", " -e .[docs]"] == [line[line.index(" -e") :] for line in environment.log.read_text().splitlines()]
    assert "mkdocs==" in environment.constraints.read_text()


def test_torch_that_is_there_is_kept(environment):
    """A CUDA build stays: it is not installed, and its pin is left out."""
    outcome = environment("true", torch="2.12.0+cu130")

    assert 0 == outcome.returncode, outcome.stderr
    assert 1 == len(environment.log.read_text().splitlines())
    assert "torch==" not in environment.constraints.read_text()
    assert "numpy==" in environment.constraints.read_text()


def test_torch_that_is_too_old_is_replaced(environment):
    """Below 2.10, weights_only=True is no protection."""
    environment("true", torch="2.9.1+cu126")

    assert 2 == len(environment.log.read_text().splitlines())


def test_exit_status_is_that_of_the_command(environment):
    """So that make sees whether the tests passed."""
    assert 3 == environment("sh", "-c", "exit 3").returncode


def test_wrong_interpreter_is_one_clear_line(environment, monkeypatch):
    """PYTHON that is no Python 3.11 is refused before anything is made."""
    monkeypatch.setenv("PYTHON", "/bin/false")
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    variables = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    command = ["sh", str(environment.project / ".ci" / "env"), "true"]
    outcome = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    assert 1 == outcome.returncode
    assert "error: PYTHON=/bin/false is no Python 3.11 or newer\n" == outcome.stderr
    assert not (environment.project / ".venv").exists()
