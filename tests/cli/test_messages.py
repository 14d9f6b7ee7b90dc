"""What users do wrong, and what they read then: one line that says what failed, where, wanted, found, what to do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.builders import metadata_of, random_state, save, save_fisher, spec_of, task_of

RECIPE = """version: 1
sources:
  - {name: m1, checkpoint: m1.safetensors}
  - {name: m2, checkpoint: m2.safetensors}
merge: {method: imm}
target: {data: data, modalities: [t1], regions: brats, split: {train: 1}}
"""
BLOCKS = (Path(__file__).parent / "wrong_invocations.txt").read_text(encoding="utf-8").strip().split("\n\n")
TABLE = [tuple(block.removeprefix("$ mergekit3d ").split("\n")) for block in BLOCKS]
"""What is typed, and the exit code with the line that answers it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two sources and their Fisher diagonals, recipes, and files that are wrong in some way."""
    folder = tmp_path_factory.mktemp("place")
    spec = spec_of(base_filters=2)
    for seed, name in enumerate(("m1", "m2")):
        path = folder / f"{name}.safetensors"
        save(path, random_state(spec, seed), metadata_of(spec, task_of()))
        save_fisher(path)
    texts = {
        "timm.yaml": RECIPE,
        "typo.yaml": RECIPE.replace("method", "metod"),
        "m1.yaml": "version: 1\ntarget: {data: data, modalities: [t1], regions: brats}\ntrain: {epochs: 1}\n",
        "broken.yaml": "a: [\n",
        "word.yaml": "hello\n",
        "text.txt": "x\n",
        "metrics.csv": "subject,region,dice,hd95\n1,ET,0.5,1\n2,ET,0.6,1\n",
        "ratios.json": '{"sources": ["m1", "m2"], "granularity": "model", "layers": {"*": [0.5, 0.5]}}',
        "zero.pt": "",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "cut.safetensors").write_bytes((folder / "m1.safetensors").read_bytes()[:3000])
    for name in ("empty", "data", "done", "timm"):
        (folder / name).mkdir()
    (folder / "done" / "fused.safetensors").touch()
    return folder


@pytest.mark.parametrize(("arguments", "told"), TABLE, ids=[arguments for arguments, _ in TABLE])
def test_wrong_invocation_is_told_in_one_line(mergekit, place, monkeypatch, arguments, told):
    """With an exit code; nothing on stdout, nothing written."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = {path.name for path in place.iterdir()} | {".mergekit3d.lock"}

    outcome = mergekit(*shlex.split(arguments))

    code, _, line = told.partition(" ")
    assert f"error: {line}\n" == re.sub(r"\d{3,}(?= bytes)|(?<=file of )\d+", "N", outcome.stderr)
    assert int(code) == outcome.exit_code
    assert not outcome.stdout
    assert before >= {path.name for path in place.iterdir()}


def test_every_command_is_in_the_table():
    """But those that take nothing that could be wrong."""
    from mergekit3d_cli.app import COMMANDS

    assert {command.__name__ for command in COMMANDS} - {"methods"} == {arguments.split()[0] for arguments, _ in TABLE}
    assert 80 < len(TABLE)
