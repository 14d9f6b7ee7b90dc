"""`inspect`: what checkpoints hold, what of several can be fused, and the plan of a recipe."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mergekit3d import inspect
from mergekit3d.architectures import network_shapes
from mergekit3d.errors import InputError, Problems, UsageError
from tests.builders import metadata_of, random_state, save, save_source, spec_of, two_sources, write_recipe


@pytest.fixture
def checkpoint(tmp_path):
    """A source, and its path."""
    save_source(tmp_path / "m1.safetensors")
    return tmp_path / "m1.safetensors"


def test_one_checkpoint(checkpoint):
    """Network, task, parameters by partition, and every tensor."""
    result = inspect([checkpoint])
    content = result.as_json()
    sizes = {name: int(np.prod(shape)) for name, shape in network_shapes(spec_of()).items()}

    assert spec_of().as_json() == content["architecture"]
    assert checkpoint.stat().st_size == content["bytes"]
    assert sum(sizes.values()) == sum(content["parameters"].values())
    assert sum(size for name, size in sizes.items() if ".conv." in name) == content["parameters"]["shared"]
    assert list(sizes) == [row["name"] for row in content["tensors"]]
    assert "m1.safetensors" == content["file"]
    assert f"{checkpoint}: isensee2017, in_channels 2, out_channels 3" in result.lines()[0]
    assert "  64 tensors (64 F32) in 32 layers" == result.lines()[1]
    assert "  t1 + t2 to csf, thalamus, pallidum" == result.lines()[-1]
    json.dumps(content)


def test_bare_checkpoint_of_an_unknown_network(tmp_path):
    """Is shown all the same."""
    save(tmp_path / "m1.pt", {"a.weight": np.ones((2, 3)), "n": np.array(1)}, metadata_of())
    result = inspect([tmp_path / "m1.pt"])

    assert result.as_json()["architecture"] is None
    assert result.lines()[0].endswith("m1.pt: unknown network")
    assert "2 tensors (1 F64, 1 I64)" in result.lines()[1]


def test_values_are_looked_at_where_asked(tmp_path):
    """NaN and Inf by tensor, and the seal."""
    state = random_state(spec_of())
    state["segmentation.0.bias"][:2] = np.nan
    path = tmp_path / "m1.safetensors"
    save_source(path, state=state)

    assert "not_finite" not in inspect([path]).as_json()
    result = inspect([path], values=True)
    assert [{"name": "segmentation.0.bias", "count": 2}] == result.as_json()["not_finite"]
    assert "  2 NaN or Inf in segmentation.0.bias" == result.lines()[-1]

    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    inspect([path])
    with pytest.raises(InputError, match="the file is damaged"):
        inspect([path], values=True)


def test_several_checkpoints_are_compared(tmp_path):
    """What can be fused, and why the rest cannot."""
    save_source(tmp_path / "m1.safetensors")
    save_source(tmp_path / "m2.safetensors", spec=spec_of(4, 3))
    result = inspect([tmp_path / "m1.safetensors", tmp_path / "m2.safetensors"])
    refused = [row for row in result.as_json()["fusible"] if not row["fusible"]]

    assert [("encoder.0.input.conv.weight", "shapes differ")] == [(row["name"], row["reason"]) for row in refused]
    assert "63 of 64 tensors can be fused" in result.lines()
    assert "  encoder.0.input.conv.weight: shapes differ ([2, 2, 3, 3, 3] / [2, 4, 3, 3, 3])" == result.lines()[-1]


def test_missing_tensors_and_integer_buffers(tmp_path):
    """Are told as such."""
    save(tmp_path / "a.safetensors", {"x": np.ones(1), "n": np.array(1), "only": np.ones(1)})
    save(tmp_path / "b.safetensors", {"x": np.ones(1), "n": np.array(1)})
    reasons = {row["name"]: row["reason"] for row in inspect([tmp_path / "a.safetensors", tmp_path / "b.safetensors"]).as_json()["fusible"]}

    assert {"x": None, "n": "an integer buffer", "only": "missing in b.safetensors"} == reasons


def test_plan_of_a_recipe(tmp_path):
    """Without running it."""
    two_sources(tmp_path)
    sources = "[{name: m1, checkpoint: m1.safetensors}, {name: m2, checkpoint: m2.safetensors}]"
    path = write_recipe(
        tmp_path, f"version: 1\nsources: {sources}\nmerge: {{method: imm}}\ntarget: {{data: x, modalities: [t1], regions: brats}}"
    )
    result = inspect([], recipe=path)
    content = result.as_json()

    files = [tmp_path / f"{name}{suffix}.safetensors" for name in ("m1", "m2") for suffix in ("", ".fisher")]
    assert sum(file.stat().st_size for file in files) == content["bytes_to_read"]
    assert sum(int(np.prod(shape)) * 4 for shape in network_shapes(spec_of(1, 3)).values()) == content["bytes_to_write"]
    assert {"fused", "expanded", "random"} == set(content["outcomes"])
    assert [0.5, 0.5] == content["tensors"][0]["ratios"]
    assert "imm of m1, m2: 64 tensors, 30 shared" == result.lines()[0]
    assert any(line.startswith("  expanded: encoder.0.input.conv.weight: ") for line in result.lines())
    assert not (tmp_path / "recipe").exists()


def test_all_unreadable_files_at_once(tmp_path):
    """One line each."""
    with pytest.raises(Problems) as caught:
        inspect([tmp_path / "a.pt", tmp_path / "b.pt"])
    assert [f"no such file: {tmp_path}/{name}.pt" for name in "ab"] == str(caught.value).splitlines()


def test_nothing_to_inspect():
    """Is a usage error."""
    with pytest.raises(UsageError, match="nothing to inspect: ?wanted checkpoints or a recipe"):
        inspect([])
