"""`verify`: whether a file is what its seal says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergekit3d import verify
from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.errors import InputError
from tests.builders import save_fisher, save_source


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_intact_checkpoint(tmp_path, suffix):
    """Kind, method, number of tensors and identity."""
    path = tmp_path / f"m1{suffix}"
    save_source(path)
    result = verify(path)

    assert ("checkpoint", "train", 64, open_checkpoint(path).digest) == (result.kind, result.method, result.tensors, result.digest)
    assert [f"{path}: intact checkpoint (train), 64 tensors, {result.digest}"] == result.lines()
    assert {"path": str(path), "intact": True} == {key: result.as_json()[key] for key in ("path", "intact")}


def test_intact_fisher(tmp_path):
    """Is told from a checkpoint."""
    save_source(tmp_path / "m1.safetensors")
    save_fisher(tmp_path / "m1.safetensors")

    assert "fisher" == verify(tmp_path / "m1.fisher.safetensors").kind


def test_damaged_file(tmp_path):
    """65, with the path."""
    path = tmp_path / "m1.safetensors"
    save_source(path)
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    with pytest.raises(InputError) as caught:
        verify(path)

    assert 65 == caught.value.exit_code
    assert f"the file is damaged: {path}: found content that differs from its seal; restore it from a copy" == str(caught.value)


def test_file_without_a_seal(tmp_path):
    """A bare state dict cannot be verified."""
    torch.save({"a": torch.from_numpy(np.ones(1))}, tmp_path / "m1.pt")
    with pytest.raises(InputError) as caught:
        verify(tmp_path / "m1.pt")
    assert f"the file has no seal: {tmp_path}/m1.pt: wanted a file that mergekit3d wrote" == str(caught.value)
