"""Snapshots on disk."""

from __future__ import annotations

import pytest
import torch

from mergekit3d.errors import InputError, UsageError
from mergekit3d.training.snapshot import read_snapshot, write_snapshot


@pytest.fixture
def path(tmp_path):
    write_snapshot(tmp_path / "snapshot.pt", {"weights": torch.arange(64.0), "rows": [{"epoch": 1}]}, identity="a")
    return tmp_path / "snapshot.pt"


def test_a_snapshot_comes_back(path):
    """Tensors and plain data, with weights_only."""
    content = read_snapshot(path, identity="a")
    assert torch.equal(torch.arange(64.0), content["weights"])
    assert [{"epoch": 1}] == content["rows"]


def test_no_snapshot_is_none(tmp_path):
    """Nothing to go on from."""
    assert read_snapshot(tmp_path / "snapshot.pt", identity="a") is None


def test_a_snapshot_of_another_recipe_is_refused(path):
    """Its weights would be of neither."""
    with pytest.raises(
        UsageError, match=r"cannot go on from the snapshot: .*: found one of another recipe, start or seed; pass --force to train anew"
    ):
        read_snapshot(path, identity="b")


def test_a_snapshot_of_another_format_is_refused(path, monkeypatch):
    """Written by another version."""
    monkeypatch.setattr("mergekit3d.training.snapshot.FORMAT", 99)
    with pytest.raises(UsageError, match="found one of another version of mergekit3d"):
        read_snapshot(path, identity="a")


def _flip(content):
    place = content.index(torch.arange(64.0).numpy().tobytes()) + 10
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[: len(content) // 2], lambda content: b"x" * 100, _flip])
def test_a_damaged_snapshot_is_refused(path, damage):
    """Emptied, cut short, overwritten, or with one bit of a weight flipped."""
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="cannot read the snapshot: .*: found a damaged file") as caught:
        read_snapshot(path, identity="a")
    assert 65 == caught.value.exit_code


def test_a_snapshot_that_runs_code_is_refused(path):
    """Nothing but tensors and plain data is unpickled."""
    torch.save({"format": 1, "identity": "a", "code": torch.nn.Linear(1, 1)}, path)
    with pytest.raises(InputError, match="cannot read the snapshot"):
        read_snapshot(path, identity="a")
