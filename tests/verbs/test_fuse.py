"""`fuse`: a checkpoint and a report, the same bytes each time, without torch."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mergekit3d import fuse
from mergekit3d.architectures import build_network
from mergekit3d.architectures.isensee2017 import INPUT_WEIGHT
from mergekit3d.checkpoints import load_tensors, open_checkpoint
from mergekit3d.errors import InputError, MergeKit3DError, OutputError, UsageError
from mergekit3d.options import Options
from mergekit3d.progress import Silent
from mergekit3d.storage.seal import file_digest
from tests.builders import save_fisher, save_source, spec_of, task_of, two_sources, write_recipe

RECIPE = """
version: 1
name: mine
sources: [{name: m1, checkpoint: m1.safetensors}, {name: m2, checkpoint: m2.safetensors}]
merge: {method: imm, ratios: {m1: 1, m2: 3}}
"""
TARGET = "target: {data: brats, modalities: [t1, t1ce, t2, flair], regions: brats}\n"
FUSE = """
import sys
from mergekit3d import fuse
fuse(sys.argv[1])
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture
def folder(tmp_path):
    """Two sources with their Fisher diagonals, and a recipe."""
    two_sources(tmp_path)
    write_recipe(tmp_path, RECIPE)
    return tmp_path


def test_writes_a_checkpoint_and_a_report(folder):
    """In OUT, and tells where."""
    result = fuse(folder / "recipe.yaml")

    assert (folder / "mine" / "fused.safetensors", folder / "mine" / "fused.report.json") == (result.out, result.report)
    assert {"fused", "copied"} == set(result.outcomes)
    assert json.loads(result.report.read_text()) == result.content
    assert f"{result.out}: {result.outcomes['fused']} fused, {result.outcomes['copied']} copied" in result.lines()[0]
    assert str(result.out) == result.as_json()["out"]
    assert set(load_file(result.out)) == set(open_checkpoint(folder / "m1.safetensors").entries)


def test_fused_checkpoint_says_what_it_is(folder):
    """Architecture, task, method, and hashes of all that went in."""
    metadata = open_checkpoint(fuse(folder / "recipe.yaml").out).metadata
    m1, m1_fisher = (open_checkpoint(folder / name).digest for name in ("m1.safetensors", "m1.fisher.safetensors"))

    assert ("checkpoint", "imm", task_of()) == (metadata.kind, metadata.method, metadata.task)
    assert spec_of().as_json() == metadata.architecture
    assert {"name": "m1", "checkpoint": m1, "fisher": m1_fisher} == metadata.provenance["sources"][0]
    assert {"sources", "ratios", "adapted", "recipe", "seed"} == set(metadata.provenance)


def test_fused_checkpoint_fits_the_network(folder):
    """It can be built and loaded from the file alone."""
    checkpoint = open_checkpoint(fuse(folder / "recipe.yaml").out)
    network = build_network(spec_of()).eval()
    network.load_state_dict(load_tensors(checkpoint))

    assert bool(torch.isfinite(network(torch.ones(1, 2, 8, 4, 4))).all())


def test_report_tells_the_outcome_of_every_tensor(folder):
    """With shapes, ratios, origin, and what there is to explain."""
    write_recipe(folder, RECIPE + TARGET)
    content = fuse(folder / "recipe.yaml").content
    rows = {row["name"]: row for row in content["tensors"]}

    assert ("imm", "layer", ["m1", "m2"]) == (content["method"], content["granularity"], content["sources"])
    assert open_checkpoint(folder / "mine" / "fused.safetensors").digest == content["digest"]
    fused = rows["encoder.1.input.conv.weight"]
    assert ("fused", "shared", {"m1": 0.25, "m2": 0.75}) == (fused["outcome"], fused["partition"], fused["ratios"])
    assert ([4, 2, 3, 3, 3], "F32") == (fused["shape"], fused["dtype"])
    expanded = rows[INPUT_WEIGHT]
    assert ("expanded", [2, 4, 3, 3, 3], [2, 2, 3, 3, 3]) == (expanded["outcome"], expanded["shape"], expanded["source_shapes"]["m1"])
    assert expanded["detail"].endswith("random for t1ce, flair")
    assert ("random", "private") == (rows["segmentation.0.weight"]["outcome"], rows["segmentation.0.weight"]["partition"])
    assert {"fused", "expanded", "random"} == {row["outcome"] for row in rows.values()}


def test_what_could_not_be_fused_is_said(folder):
    """Never silently: one line a tensor while it runs."""
    lines = []

    class Listening(Silent):
        def info(self, message):
            lines.append(message)

    write_recipe(folder, RECIPE + TARGET)
    fuse(folder / "recipe.yaml", reporter=Listening())

    assert any(line.startswith(f"expanded: {INPUT_WEIGHT}: ") for line in lines)


def test_same_bytes_twice(folder):
    """Also with random tensors."""
    write_recipe(folder, RECIPE + TARGET)
    results = [fuse(folder / "recipe.yaml", options=Options(out=folder / name)) for name in ("first", "second")]

    assert 1 == len({file_digest(result.out) for result in results})
    assert 1 == len({file_digest(result.report) for result in results})


def test_no_path_is_in_what_it_writes(folder):
    """Neither the folder nor the names of the files that went in."""
    result = fuse(folder / "recipe.yaml")

    for path in (result.out, result.report):
        assert folder.name.encode() not in path.read_bytes()
        assert b"m1.safetensors" not in path.read_bytes()


@pytest.mark.parametrize("existing", ["fused.safetensors", "fused.report.json"])
def test_existing_output_is_refused(folder, existing):
    """Either file, before any work; it stays as it is."""
    (folder / "mine").mkdir()
    (folder / "mine" / existing).write_text("old")
    with pytest.raises(UsageError) as caught:
        fuse(folder / "recipe.yaml")

    assert f"the output exists already: {folder}/mine/{existing}; pass --force to replace it, or --out to write elsewhere" == str(
        caught.value
    )
    assert [existing] == [path.name for path in (folder / "mine").iterdir()]
    assert "old" == (folder / "mine" / existing).read_text()


def test_force_replaces(folder):
    """Both files."""
    fuse(folder / "recipe.yaml")
    second = fuse(folder / "recipe.yaml", overrides=["merge.ratios={m1: 1, m2: 0}"], options=Options(force=True))

    assert second.content == json.loads(second.report.read_text())
    name = "encoder.1.input.conv.weight"
    assert np.array_equal(open_checkpoint(folder / "m1.safetensors").read(name), load_file(second.out)[name])


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize(
    ("expected", "out"),
    [
        ("other/fused.safetensors", "other"),
        ("results.v2/fused.safetensors", "results.v2"),
        ("best.safetensors", "best.safetensors"),
        ("best.PT", "best.PT"),
    ],
)
def test_out_is_a_folder_or_a_checkpoint(folder, expected, out, kind):
    """A file where it ends like a checkpoint; a dot alone does not make one. It is a path or a text."""
    result = fuse(folder / "recipe.yaml", options=Options(out=kind(folder / out)))

    assert folder / expected == result.out
    assert result.out.is_file()


@pytest.mark.parametrize("name", ["best.safetensors", "best.pt"])
def test_full_disk_is_told_of_the_file_that_was_asked_for(folder, monkeypatch, name):
    """Also where the weights stand in a temporary file first."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)

    with pytest.raises(OutputError, match=f"^cannot write: {folder}/{name}: found no space left on the device; free some space"):
        fuse(folder / "recipe.yaml", options=Options(out=folder / name))


def test_pt_holds_the_same_weights(folder):
    """And the same digest."""
    first = fuse(folder / "recipe.yaml")
    second = fuse(folder / "recipe.yaml", overrides=["merge.out=fused2.pt"])

    assert first.content["digest"] == second.content["digest"] == open_checkpoint(second.out).digest
    assert "state_dict" in torch.load(second.out, weights_only=True)


def test_other_ending_is_refused_before_any_work(folder):
    """Nothing is made."""
    with pytest.raises(UsageError, match="no checkpoint format has that ending: fused.onnx"):
        fuse(folder / "recipe.yaml", overrides=["merge.out=fused.onnx"])
    assert not (folder / "mine").exists()


def test_problems_leave_nothing_behind(folder):
    """No folder, no lock, no half a file."""
    (folder / "m2.safetensors").write_bytes((folder / "m2.safetensors").read_bytes()[:-4])
    with pytest.raises(InputError, match=re.escape(f"{folder}/m2.safetensors")):
        fuse(folder / "recipe.yaml")
    assert not (folder / "mine").exists()


def test_paths_with_spaces_and_other_letters(tmp_path):
    """All names work."""
    folder = tmp_path / "mein Ordner 脳"
    folder.mkdir()
    two_sources(folder)

    assert fuse(write_recipe(folder, RECIPE, name="größe 1.yaml")).out.is_file()


def test_learned_ratios_come_from_adapt(folder):
    """timm looks for them in OUT, and says what makes them."""
    with pytest.raises(InputError, match="no mixing ratios: .*run adapt first"):
        fuse(folder / "recipe.yaml", overrides=["merge={method: timm}"])

    names = list(open_checkpoint(folder / "m1.safetensors").entries)
    layers = {name.removesuffix(".weight"): [1.0, 0.0] for name in names if name.endswith(".conv.weight")}
    (folder / "mine" / "adapt").mkdir(parents=True)
    (folder / "mine" / "adapt" / "ratios.json").write_text(json.dumps({"sources": ["m1", "m2"], "granularity": "layer", "layers": layers}))
    result = fuse(folder / "recipe.yaml", overrides=["merge={method: timm}"])
    name = "encoder.1.input.conv.weight"
    assert np.array_equal(open_checkpoint(folder / "m1.safetensors").read(name), load_file(result.out)[name])
    assert file_digest(folder / "mine" / "adapt" / "ratios.json") == open_checkpoint(result.out).metadata.provenance["ratios"]


@pytest.mark.parametrize("target", ["", TARGET], ids=["sources", "target"])
def test_torch_is_not_imported(folder, target):
    """From safetensors to safetensors: neither torch nor an imaging library."""
    write_recipe(folder, RECIPE + target)
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    outcome = subprocess.run(
        [sys.executable, "-c", FUSE, str(folder / "recipe.yaml")], capture_output=True, text=True, check=True, env=environment
    )

    assert "numpy" in outcome.stdout.split()
    assert set() == set(outcome.stdout.split()) & {"torch", "monai", "nibabel", "scipy", "matplotlib", "SimpleITK"}
    assert (folder / "mine" / "fused.safetensors").is_file()


def test_damaged_sources_are_all_told(folder):
    """At once."""
    save_source(folder / "m1.safetensors", 9)
    (folder / "m2.fisher.safetensors").unlink()
    with pytest.raises(MergeKit3DError) as caught:
        fuse(folder / "recipe.yaml")
    assert ["the Fisher diagonal is of other weights", "no Fisher diagonal"] == [
        line.split(":")[0] for line in str(caught.value).splitlines()
    ]
    save_fisher(folder / "m1.safetensors")
