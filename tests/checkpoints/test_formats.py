"""Every format that is written, and the one that the README makes, passes what all have to."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import mergekit3d.checkpoints
from mergekit3d.checkpoints.formats import FORMATS
from tests.checkpoints import format_template

ENDINGS = {"nnunet": ".pth", **{name: known.suffixes[0] for name, known in FORMATS.items() if known.suffixes}}
TESTS = [name for name in vars(format_template) if name.startswith("test_")]
README = Path(mergekit3d.checkpoints.__file__).with_name("README.md")


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("name", [name for name, known in FORMATS.items() if known.write is not None])
def test_format_passes_the_template(tmp_path, monkeypatch, name, test):
    """What is promised of one is promised of all."""
    monkeypatch.setattr(format_template, "NAME", name)
    monkeypatch.setattr(format_template, "ENDING", ENDINGS[name])
    getattr(format_template, test)(tmp_path)


@pytest.fixture
def of_the_readme(tmp_path):
    """The format that the README shows how to make, registered as it says."""
    (code,) = re.findall(r"^   ```python\n(.*?)^   ```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "npz.py").write_text(re.sub(r"^   ", "", code, flags=re.MULTILINE), encoding="utf-8")
    runpy.run_path(str(tmp_path / "npz.py"))
    yield
    del FORMATS._items["npz"]


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.usefixtures("of_the_readme")
def test_format_of_the_readme_passes_the_template(tmp_path, monkeypatch, test):
    """One file, one registration."""
    monkeypatch.setattr(format_template, "NAME", "npz")
    monkeypatch.setattr(format_template, "ENDING", ".npz")
    getattr(format_template, test)(tmp_path)


def test_readme_lists_every_format():
    """In its table, in the words of `--to`."""
    listed = re.findall(r"^\| `(\w+)`", README.read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(FORMATS) == sorted(listed)
