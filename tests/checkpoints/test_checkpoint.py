"""Tensors as bytes and back, and the checks of an opened file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergekit3d.checkpoints import load_tensors, open_checkpoint, save_tensors, write_checkpoint
from mergekit3d.checkpoints.checkpoint import NUMPY_DTYPES, TensorEntry, buffer_of, decode, dtype_name, encode
from mergekit3d.errors import InputError, UsageError
from tests.builders import metadata_of, save

VALUES = np.array([[0.0, -0.0, 1.5], [np.inf, -np.inf, 3.0]])


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_bytes_come_back_as_the_values(dtype):
    """Of every dtype, for matrices, scalars and empty arrays."""
    for shape in ((2, 3), (), (0, 3)):
        values = (np.arange(np.prod(shape, dtype=int)) % 2).astype(NUMPY_DTYPES[dtype]).reshape(shape)
        content = buffer_of(encode(values, dtype))
        decoded = decode(content, dtype, shape)

        assert dtype == dtype_name(values.dtype)
        assert values.shape == decoded.shape
        assert values.dtype == decoded.dtype
        assert values.tobytes() == decoded.tobytes()


def test_bfloat16_is_widened_without_loss():
    """Its values come as the float32 of the same number."""
    for shape in ((2, 3), (6,)):
        values = VALUES.reshape(shape).astype(np.float32)
        assert values.tobytes() == decode(buffer_of(encode(values, "BF16")), "BF16", shape).tobytes()


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_bfloat16_rounds_as_torch_does(numbers):
    """To nearest even, with infinities kept, overflow to infinity, and NaN staying NaN."""
    values = np.array(numbers, np.float32)
    expected = torch.from_numpy(values).bfloat16().float().numpy()

    np.testing.assert_array_equal(expected, decode(buffer_of(encode(values, "BF16")), "BF16", values.shape))


@pytest.mark.parametrize("value", [1.00390625, np.nan, -np.nan, 3.4e38])
def test_bfloat16_scalar(value):
    """A 0-d tensor is encoded as others are, without a warning."""
    scalar = np.array(value, np.float32)
    expected = torch.tensor(scalar).bfloat16().float().numpy()

    np.testing.assert_array_equal(expected, decode(buffer_of(encode(scalar, "BF16")), "BF16", ()))


def test_strides_do_not_matter():
    """A transposed array is written in the order of its axes."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T

    assert np.ascontiguousarray(values).tobytes() == bytes(buffer_of(encode(values, "F32")))
    assert np.ascontiguousarray(values).tobytes() == decode(buffer_of(encode(values, "BF16")), "BF16", (3, 2)).tobytes()


def test_size_of_an_entry():
    """Of a scalar, an empty tensor and a bfloat16 one."""
    assert [4, 0, 12] == [
        TensorEntry("a", "F32", ()).nbytes,
        TensorEntry("a", "F64", (0, 5)).nbytes,
        TensorEntry("a", "BF16", (2, 3)).nbytes,
    ]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_torch_tensors_round_trip(tmp_path, suffix):
    """From the memory of a network to a file and back, on whatever dtype."""
    tensors = {
        "weight": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.tensor([1.0, 2.0], dtype=torch.float16),
        "brain": torch.tensor([1.0, 3.140625], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    save_tensors(tmp_path / f"m1{suffix}", tensors, metadata_of())
    loaded = load_tensors(open_checkpoint(tmp_path / f"m1{suffix}"))

    assert list(tensors) == list(loaded)
    assert "BF16" == open_checkpoint(tmp_path / f"m1{suffix}").entries["brain"].dtype
    for name, tensor in tensors.items():
        assert torch.equal(tensor.detach().float(), loaded[name].float()), name


def test_digest_is_the_same_in_every_format(tmp_path):
    """It is of the weights, not of the file."""
    state = {"b": np.ones((2, 2), np.float32), "a": np.array(3, np.int64)}
    save(tmp_path / "m1.safetensors", state)
    save(tmp_path / "m1.pt", dict(reversed(state.items())))
    torch.save({name: torch.from_numpy(values) for name, values in state.items()}, tmp_path / "bare.pt")

    assert 1 == len({open_checkpoint(tmp_path / name).digest for name in ("m1.safetensors", "m1.pt", "bare.pt")})


def test_not_finite_values_are_counted(tmp_path):
    """The first tensor is named, with its count, and how many more there are."""
    state = {"ok": np.ones(2), "bad": np.array([np.nan, 1.0, np.inf]), "n": np.array(1), "worse": np.array([np.nan])}
    save(tmp_path / "m1.safetensors", state)
    checkpoint = open_checkpoint(tmp_path / "m1.safetensors")

    assert [("bad", 2), ("worse", 1)] == checkpoint.non_finite()
    with pytest.raises(InputError, match=r"m1.safetensors: found 2 NaN or Inf in bad and 1 more tensors; use another checkpoint"):
        checkpoint.check_finite()


def test_not_finite_half_precision_is_found(tmp_path):
    """In float16 and bfloat16 too."""
    save(tmp_path / "m1.safetensors", {"h": np.array([np.inf], np.float16), "b": np.array([np.nan], np.float32)}, dtypes={"b": "BF16"})

    assert [("h", 1), ("b", 1)] == open_checkpoint(tmp_path / "m1.safetensors").non_finite()


def test_unknown_ending_is_refused(tmp_path):
    """Before anything is written."""
    with pytest.raises(UsageError) as caught:
        write_checkpoint(tmp_path / "m1.onnx", [], metadata_of())
    assert "no checkpoint format has that ending: m1.onnx: wanted .pt or .pth or .safetensors or .zip" == str(caught.value)
    assert [] == list(tmp_path.iterdir())


def test_format_goes_by_content_not_by_name(tmp_path):
    """A safetensors file called .pt is read all the same."""
    save(tmp_path / "m1.safetensors", {"a": np.ones(2)})
    (tmp_path / "m1.safetensors").rename(tmp_path / "m1.pt")

    assert ["a"] == list(open_checkpoint(tmp_path / "m1.pt").entries)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_torch_tensors_with_several_names_stay_one(tmp_path, suffix):
    """What training keeps of a network whose modules share parameters is written with its aliases."""
    tensor = torch.arange(6.0)
    save_tensors(tmp_path / f"m{suffix}", {"a": tensor, "b": tensor, "c": tensor.clone(), "d": tensor[:3]}, metadata_of())
    opened = open_checkpoint(tmp_path / f"m{suffix}")

    assert {"b": "a"} == opened.aliases
    assert np.array_equal(opened.read("a"), opened.read("b"))
