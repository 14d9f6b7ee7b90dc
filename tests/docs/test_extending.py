"""The example of each page on extending is a whole file: written, registered, and used as its page says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import mergekit3d
from mergekit3d.architectures import ARCHITECTURES, NetworkSpec, architecture, build_network, infer_network
from mergekit3d.checkpoints import open_checkpoint, recognised_format
from mergekit3d.checkpoints.formats import FORMATS
from mergekit3d.datasets import find_dataset
from mergekit3d.datasets.layouts import LAYOUTS
from mergekit3d.errors import InputError, MergeKit3DError, RecipeError
from mergekit3d.merging.methods import METHODS
from mergekit3d.merging.partitions import assign
from tests.builders import save_fisher, save_source
from tests.checkpoints import format_template

PAGES = Path(__file__).parents[2] / "docs" / "extending"


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Adds the file of a page to the program, for one test: what it defines, by name."""
    infer_network({})  # registers the networks that are shipped
    for registry in (METHODS, ARCHITECTURES, LAYOUTS, FORMATS):
        monkeypatch.setattr(registry, "_items", dict(registry._items))

    def add(page):
        (code,) = re.findall(r"^```python\n(.*?)^```$", (PAGES / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        (tmp_path / "new.py").write_text(code, encoding="utf-8")
        return runpy.run_path(str(tmp_path / "new.py"))

    return add


def test_method(added, tmp_path):
    """A recipe names it, its parameter is checked, and every fused weight is that of the source that knows more of it."""
    added("method.md")
    thetas = [save_source(tmp_path / f"m{number}.safetensors", seed=number) for number in (1, 2)]
    fishers = [save_fisher(tmp_path / f"m{number}.safetensors", seed=number) for number in (1, 2)]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nsources: [{name: m1, checkpoint: m1.safetensors}, {name: m2, checkpoint: m2.safetensors}]\n"
        "partitions: {private: [], shared: ['*']}\n"
        "merge: {method: fisher-max, parameters: {margin: 1}, private: m1}\n"
    )

    result = mergekit3d.fuse(recipe)

    fused, name = open_checkpoint(result.out), "encoder.1.context.0.conv.weight"
    assert np.array_equal(np.where(fishers[1][name] > fishers[0][name], thetas[1][name], thetas[0][name]), fused.read(name))
    assert not np.array_equal(thetas[0][name], fused.read(name))
    assert "fisher-max" in mergekit3d.methods().as_json()
    with pytest.raises(MergeKit3DError, match=r"wrong parameter of fisher-max: merge.parameters.margin"):
        mergekit3d.fuse(recipe, overrides=("merge.parameters.margin=0.5", "merge.out=other.safetensors"))


def test_network(added):
    """It is built by name, told from its tensors again, checked, and divided into shared and private tensors."""
    added("network.md")
    spec = NetworkSpec("stack", 2, 3, {"width": 4, "depth": 2})

    network = build_network(spec)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    assert (1, 3, 5, 6, 7) == tuple(network.eval()(torch.zeros(1, 2, 5, 6, 7)).shape)
    assert spec == infer_network(shapes)
    partition_of = assign(architecture("stack").partitions(shapes), shapes)
    assert {"conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias"} == {name for name, part in partition_of.items() if part == "shared"}
    with pytest.raises(RecipeError, match=r"cannot build stack: architecture.width: wanted a whole number of 1 or more, found 0"):
        build_network(NetworkSpec("stack", 2, 3, {"width": 0}))


def test_network_leaves_others_alone(added):
    """Its description takes no state dict of another network for its own."""
    added("network.md")
    spec = NetworkSpec("isensee2017", 2, 3, {"base_filters": 2, "depth": 3, "segmentation_levels": 2})

    assert "isensee2017" == infer_network({name: tuple(t.shape) for name, t in build_network(spec).state_dict().items()}).name


def test_layout(added, tmp_path):
    """Subjects are found without being asked for the layout, with their modalities and label maps; other folders are left to others."""
    added("layout.md")
    for name in ("images/a-1-T1w.nii.gz", "images/a-1-flair.nii.gz", "images/b-t1.nii.gz", "masks/a-1.nii.gz", "images/notes.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()

    dataset = find_dataset(tmp_path / "data")

    assert ("flat", ["a-1", "b"]) == (dataset.layout, [subject.name for subject in dataset.subjects])
    assert {"t1", "flair"} == set(dataset.subjects[0].images)
    assert [tmp_path / "data/masks/a-1.nii.gz", None] == [subject.label for subject in dataset.subjects]
    assert [] == LAYOUTS.get("flat").find(tmp_path)


def test_format(added, tmp_path):
    """`convert` writes it and reads it back, every tensor bit for bit; it is told by its content, and damage is found."""
    added("format.md")
    save_source(tmp_path / "m1.safetensors")

    mergekit3d.convert(tmp_path / "m1.safetensors", tmp_path / "m1.json")
    mergekit3d.convert(tmp_path / "m1.json", tmp_path / "back.safetensors")

    assert "text" == recognised_format(tmp_path / "m1.json").name
    assert (tmp_path / "m1.safetensors").read_bytes() == (tmp_path / "back.safetensors").read_bytes()
    (tmp_path / "m1.json").write_bytes((tmp_path / "m1.json").read_bytes().replace(b'"tensors"', b'"tensor "'))
    with pytest.raises(InputError, match="cannot read the checkpoint"):
        open_checkpoint(tmp_path / "m1.json")


@pytest.mark.parametrize("test", [name for name in vars(format_template) if name.startswith("test_")])
def test_format_passes_the_template(added, tmp_path, monkeypatch, test):
    """What all formats promise, this one promises too."""
    added("format.md")
    monkeypatch.setattr(format_template, "NAME", "text")
    monkeypatch.setattr(format_template, "ENDING", ".json")
    getattr(format_template, test)(tmp_path)
