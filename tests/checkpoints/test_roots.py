"""Fisher diagonals as scaled square roots in float16."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit3d.checkpoints import FISHER, TensorEntry, load_tensors, open_checkpoint, write_checkpoint
from mergekit3d.checkpoints.roots import from_roots, to_roots
from mergekit3d.errors import InputError
from tests.builders import metadata_of


@pytest.mark.parametrize("largest", [1e-20, 1.0, 3e12])
def test_values_come_back_as_exactly_as_it_is_said(largest):
    """By size beside the tensor's largest entry, over twenty orders of magnitude."""
    ratios = np.append(np.logspace(-20, 0, 100_001), 1.0)
    values = (largest * ratios).astype(np.float32)
    found = from_roots(*to_roots(values)).astype(np.float64)
    wanted, ratios = values.astype(np.float64), values / float(values.max())
    relative = np.abs(found - wanted) / wanted

    assert np.float32 == from_roots(*to_roots(values)).dtype
    assert relative[ratios >= 4e-9].max() <= 1e-3
    assert relative[ratios >= 9e-10].max() <= 2e-3
    assert np.abs(found - wanted)[ratios < 9e-10].max() <= 2e-12 * values.max()
    assert np.all(found > 0)


def test_zeros_stay_zeros():
    """Alone, and beside values."""
    roots, scale = to_roots(np.array([0.0, 9.0, 1e-30], np.float32))

    assert ([0.0, 1.0, 2.0**-24], 3.0) == (roots.tolist(), scale)
    assert [0.0, 9.0] == from_roots(roots, scale)[:2].tolist()
    assert ([[0.0, 0.0]], 0.0) == (to_roots(np.zeros((1, 2), np.float32))[0].tolist(), to_roots(np.zeros((1, 2), np.float32))[1])


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_any_shape(shape):
    """Scalars and empty tensors too."""
    roots, scale = to_roots(np.full(shape, 4.0, np.float32))

    assert (shape, np.float16) == (roots.shape, roots.dtype)
    assert np.array_equal(np.full(shape, 4.0, np.float32), from_roots(roots, scale))


def write(path, values):
    roots, scale = to_roots(values)
    return write_checkpoint(path, [(TensorEntry("a", "F16", roots.shape), roots)], metadata_of(kind=FISHER, root_scales={"a": scale}))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_give_the_values_however_they_are_read(tmp_path, suffix):
    """Whole, the first few, by torch, and from a part of the bytes; the seal is that of the bytes in the file."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    write(tmp_path / f"f{suffix}", values)
    opened = open_checkpoint(tmp_path / f"f{suffix}")
    raw = memoryview(opened.content("a"))

    assert ("F16", 24) == (opened.entries["a"].dtype, len(raw))
    np.testing.assert_allclose(values, opened.read("a"), rtol=1e-3)
    np.testing.assert_allclose(values.reshape(-1)[:5], opened.read_first("a", 5), rtol=1e-3)
    np.testing.assert_allclose(values, load_tensors(opened)["a"].numpy(), rtol=1e-3)
    np.testing.assert_allclose(values[1], opened.decoded("a", raw[8:16], (4,)), rtol=1e-3)


def test_scale_is_under_the_seal(tmp_path):
    """A changed scale is damage."""
    write(tmp_path / "f.safetensors", np.full(3, 9.0, np.float32))
    content = (tmp_path / "f.safetensors").read_bytes()
    assert 1 == content.count(b'\\"root_scales\\":{\\"a\\":3.0}')
    (tmp_path / "f.safetensors").write_bytes(content.replace(b'{\\"a\\":3.0}', b'{\\"a\\":4.0}'))
    with pytest.raises(InputError, match="the file is damaged"):
        open_checkpoint(tmp_path / "f.safetensors")
