"""Digests: one text for one content, and an identity of weights that depends on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mergekit3d.storage.seal import canonical_json, file_digest, hash_in_parallel, json_digest, tensor_digest, tensors_digest


def test_canonical_json_is_one_text_for_one_content():
    """Keys are sorted, nothing is padded, letters stay letters."""
    assert '{"a":[1,2.5,null],"b":"Größe"}' == canonical_json({"b": "Größe", "a": [1, 2.5, None]})
    assert json_digest({"a": 1, "b": 2}) == json_digest({"b": 2, "a": 1})
    assert hashlib.sha256(b"[]").hexdigest() == json_digest([])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_are_refused(value):
    """NaN would make a file that other readers cannot read."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"loss": value})


def test_file_digest_is_that_of_sha256sum(tmp_path):
    """Users can compare it with the usual tool."""
    path = tmp_path / "file"
    path.write_bytes(b"abc")

    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" == file_digest(path)


def test_tensor_digest_covers_dtype_shape_and_bytes():
    """The same bytes as another dtype or shape are another tensor."""
    content = np.arange(6, dtype=np.float32).tobytes()
    digests = {
        tensor_digest("F32", (2, 3), content),
        tensor_digest("F32", (3, 2), content),
        tensor_digest("I32", (2, 3), content),
        tensor_digest("F32", (2, 3), content[:-1] + b"\0"),
    }

    assert 4 == len(digests)
    assert hashlib.sha256(b'["F32",[2,3]]' + content).hexdigest() in digests


def test_identity_of_weights_is_free_of_order():
    """It depends on names and content only."""
    assert tensors_digest({"a": "1", "b": "2"}) == tensors_digest({"b": "2", "a": "1"})
    assert tensors_digest({"a": "1", "b": "2"}) != tensors_digest({"a": "2", "b": "1"})
    assert tensors_digest({"a": "1"}) != tensors_digest({"A": "1"})


def test_hashing_in_parallel_keeps_names_with_digests():
    """Every name gets its own digest, in the order given."""
    names = [f"tensor {number}" for number in range(50)]

    assert [(name, name.upper()) for name in names] == list(hash_in_parallel(names, str.upper).items())
