"""`convert`: a checkpoint in another format, every tensor bit for bit."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mergekit3d import convert, verify
from mergekit3d.checkpoints import FISHER, load_tensors, open_checkpoint
from mergekit3d.checkpoints.checkpoint import NUMPY_DTYPES
from mergekit3d.checkpoints.roots import to_roots
from mergekit3d.errors import InputError, UsageError
from tests.builders import metadata_of, save, save_fisher, save_source, spec_of, task_of


def bits(checkpoint):
    """Every tensor as it stands in the file."""
    opened = open_checkpoint(checkpoint)
    return {name: (entry.dtype, entry.shape, bytes(opened.content(name))) for name, entry in opened.entries.items()}


def every_dtype():
    """Matrices, scalars and empty tensors of every dtype, and floats that no arithmetic would leave as they are."""
    state = {}
    for dtype in NUMPY_DTYPES:
        for number, shape in enumerate([(2, 3), (), (0, 3)]):
            state[f"net.{dtype}.{number}"] = (np.arange(np.prod(shape, dtype=int)) % 2).astype(NUMPY_DTYPES[dtype]).reshape(shape)
    state["net.nan"] = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 1], "<u4").view("<f4")
    return state


@pytest.mark.parametrize("suffixes", [(".safetensors", ".pt", ".safetensors"), (".pt", ".safetensors", ".pt")], ids="-".join)
def test_round_trip_returns_every_bit(tmp_path, suffixes):
    """Of every dtype, empty tensors and NaN with their payloads too; metadata and identity stay."""
    first, second, third = (tmp_path / f"{number}{suffix}" for number, suffix in enumerate(suffixes))
    sealed = save(first, every_dtype(), metadata_of(spec_of(), task_of()))
    there = convert(first, second)
    back = convert(second, third)

    assert bits(first) == bits(second) == bits(third)
    assert sealed == open_checkpoint(second).metadata == open_checkpoint(third).metadata
    assert there.digest == back.digest == open_checkpoint(first).digest
    assert there.digest == verify(third).digest


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_bfloat16_keeps_its_bits(tmp_path, suffix):
    """Of numbers, infinities and NaN with a payload."""
    values = torch.tensor([0x3F80, 0x7F80, 0x7FC1, 0xFFFF - 0x10000, 1], dtype=torch.int16).view(torch.bfloat16)
    torch.save({"a": values}, tmp_path / "m1.pth")
    convert(tmp_path / "m1.pth", tmp_path / f"there{suffix}")
    convert(tmp_path / f"there{suffix}", tmp_path / "back.pt")

    back = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]["a"]
    assert values.view(torch.int16).tolist() == back.view(torch.int16).tolist()


def test_aliases_stay_aliases(tmp_path):
    """A tensor with several names is one tensor again at the end, whatever stands in between."""
    weight = torch.arange(6.0)
    torch.save({"encoder.w": weight, "decoder.encoder.w": weight, "other": torch.zeros(6)}, tmp_path / "m1.pth")
    convert(tmp_path / "m1.pth", tmp_path / "m1.safetensors")
    convert(tmp_path / "m1.safetensors", tmp_path / "back.pt")
    state = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]

    assert {"decoder.encoder.w": "encoder.w"} == open_checkpoint(tmp_path / "m1.safetensors").aliases
    assert state["encoder.w"].data_ptr() == state["decoder.encoder.w"].data_ptr()
    assert state["other"].data_ptr() != state["encoder.w"].data_ptr()


def test_bare_state_dict_gets_what_its_tensors_tell(tmp_path):
    """The network is told once, here; its task is not in the tensors."""
    state = save_source(tmp_path / "m1.safetensors")
    torch.save({f"module.{name}": torch.from_numpy(values) for name, values in state.items()}, tmp_path / "bare.pt")
    result = convert(tmp_path / "bare.pt", tmp_path / "told.safetensors")
    metadata = open_checkpoint(tmp_path / "told.safetensors").metadata

    assert "isensee2017" == metadata.architecture["name"]
    assert metadata.task is None
    assert open_checkpoint(tmp_path / "m1.safetensors").digest == result.digest


def test_fisher_diagonal_stays_one_of_the_checkpoint(tmp_path):
    """Also one that is kept as square roots, whose float16 numbers and scales are carried over."""
    save_source(tmp_path / "m1.safetensors")
    save_fisher(tmp_path / "m1.safetensors")
    roots, scale = to_roots(np.linspace(0, 3, 7, dtype=np.float32))
    save(tmp_path / "roots.safetensors", {"a": roots}, metadata_of(kind=FISHER, root_scales={"a": scale}))
    convert(tmp_path / "m1.fisher.safetensors", tmp_path / "m1.fisher.pt")
    convert(tmp_path / "roots.safetensors", tmp_path / "roots.pt")

    assert open_checkpoint(tmp_path / "m1.fisher.safetensors").metadata == open_checkpoint(tmp_path / "m1.fisher.pt").metadata
    assert bits(tmp_path / "roots.safetensors") == bits(tmp_path / "roots.pt")
    np.testing.assert_array_equal(
        load_tensors(open_checkpoint(tmp_path / "roots.safetensors"))["a"], load_tensors(open_checkpoint(tmp_path / "roots.pt"))["a"]
    )


def test_format_can_be_named(tmp_path):
    """Whatever the ending of the output; files are read by their content."""
    save_source(tmp_path / "m1.pt")
    result = convert(tmp_path / "m1.pt", tmp_path / "m1.weights", to="safetensors")

    assert ("pt", "safetensors") == (result.read, result.written)
    assert bits(tmp_path / "m1.pt") == bits(tmp_path / "m1.weights")
    line = f"{tmp_path}/m1.weights: 64 tensors of {tmp_path}/m1.pt, from pt to safetensors, bit for bit; {result.digest}"
    assert [line] == result.lines()


@pytest.mark.parametrize(
    ("out", "flags", "said"),
    [
        ("m1.onnx", {}, "no checkpoint format has that ending: m1.onnx"),
        ("m1.onnx", {"to": "safetensor"}, "unknown checkpoint format 'safetensor'; did you mean 'safetensors'?"),
        ("m1.pt", {}, "the output is the input"),
        ("there.pt", {}, "the output exists already"),
        ("m2.pt", {"like": "there.pt"}, "the format takes no template: pt"),
    ],
    ids=["ending", "format", "itself", "exists", "template"],
)
def test_refusals(tmp_path, out, flags, said):
    """Before any work, in one line; nothing is written."""
    save_source(tmp_path / "m1.pt")
    (tmp_path / "there.pt").write_bytes(b"old")
    with pytest.raises(UsageError) as caught:
        convert(tmp_path / "m1.pt", tmp_path / out, **flags)

    assert str(caught.value).startswith(said)
    assert b"old" == (tmp_path / "there.pt").read_bytes()
    assert not (tmp_path / "m2.pt").exists()


def test_damaged_checkpoint_is_not_written_anew(tmp_path):
    """A new seal over damaged values would hide the damage."""
    save_source(tmp_path / "m1.safetensors")
    content = (tmp_path / "m1.safetensors").read_bytes()
    (tmp_path / "m1.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    with pytest.raises(InputError, match="the file is damaged"):
        convert(tmp_path / "m1.safetensors", tmp_path / "m1.pt")
    assert not (tmp_path / "m1.pt").exists()


class Hyperparameters:
    """What makes a checkpoint more than tensors and plain data."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_pickle_that_the_user_allows_by_its_hash(tmp_path, monkeypatch):
    """Its code runs for that very file alone; what is written is tensors, which every command reads."""
    monkeypatch.chdir(tmp_path)
    state = {"weight": torch.arange(6.0).reshape(2, 3)}
    torch.save({"state_dict": state, "hyper_parameters": Hyperparameters()}, "m1.pt")
    digest = hashlib.sha256(Path("m1.pt").read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"refused to unpickle: m1.pt: .*--allow-code {digest}"):
        convert("m1.pt", "m1.safetensors")
    with pytest.raises(UsageError, match=f"the file is not the one that was allowed: m1.pt: wanted {'0' * 64}, found another sha256"):
        convert("m1.pt", "m1.safetensors", allow_code="0" * 64)
    assert not Path("ran").exists()

    convert("m1.pt", "m1.safetensors", allow_code=digest)
    assert Path("ran").exists()
    assert torch.equal(state["weight"], torch.from_numpy(open_checkpoint("m1.safetensors").read("weight")))
    with pytest.raises(InputError, match="refused to unpickle"):
        open_checkpoint("m1.pt")
