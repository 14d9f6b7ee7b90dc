"""safetensors files: as the package writes and reads them, and nothing damaged passes."""

from __future__ import annotations

import json
import os
import random
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_file_torch
from safetensors.torch import save_file as save_file_torch

from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.checkpoints.checkpoint import NUMPY_DTYPES, TensorEntry
from mergekit3d.checkpoints.formats import FORMATS
from mergekit3d.checkpoints.safetensors import MAX_HEADER_BYTES, write_stream
from mergekit3d.errors import InputError
from tests.builders import metadata_of, save, spec_of, task_of

STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2), "n": np.array(3, np.int64)}
FULL = metadata_of(spec_of(), task_of(spacing_mm=(1.0, 1.5, 2.0)), provenance={"seed": 3, "figures": [1.5, None]})


def with_header(path, header, data=b"\0" * 8):
    """A file of this header and data; a header may be text that is no JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(shape=(2,), dtype="F32", offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refusal(path):
    """What opening the file is answered with."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_every_dtype_and_shape_round_trips(tmp_path):
    """Matrices, scalars and empty tensors, of every dtype."""
    state = {}
    for dtype in NUMPY_DTYPES:
        for shape in ((2, 3), (), (0, 3)):
            state[f"{dtype}.{len(shape)}.{shape}"] = (np.arange(np.prod(shape, dtype=int)) % 2).astype(NUMPY_DTYPES[dtype]).reshape(shape)
    state["brain"] = np.array([1.0, -2.5, 3.140625], np.float32)
    save(tmp_path / "m1.safetensors", state, dtypes={"brain": "BF16"})
    checkpoint = open_checkpoint(tmp_path / "m1.safetensors")

    assert list(state) == list(checkpoint.entries)
    assert "BF16" == checkpoint.entries["brain"].dtype
    for name, values in state.items():
        read = checkpoint.read(name)
        assert (values.dtype, values.shape, values.tobytes()) == (read.dtype, read.shape, read.tobytes()), name


def test_the_package_reads_ours(tmp_path):
    """Names, shapes, dtypes, values and the metadata key."""
    state = {**STATE, "half": np.array([1.5], np.float16), "empty": np.zeros((0, 2), np.float32)}
    save(tmp_path / "m1.safetensors", {**state, "brain": np.array([3.140625], np.float32)}, FULL, dtypes={"brain": "BF16"})

    loaded = load_file_torch(tmp_path / "m1.safetensors")
    assert torch.bfloat16 == loaded["brain"].dtype
    assert [3.140625] == loaded["brain"].tolist()
    for name, values in state.items():
        assert values.tobytes() == loaded[name].numpy().tobytes()
        assert values.shape == tuple(loaded[name].shape)
    with safe_open(tmp_path / "m1.safetensors", "np") as file:
        assert ["mergekit3d"] == list(file.metadata())
        assert "checkpoint" == json.loads(file.metadata()["mergekit3d"])["kind"]


def test_ours_reads_the_package(tmp_path):
    """A file without our key has no metadata and no seal, and passes."""
    save_file(STATE, tmp_path / "m1.safetensors", metadata={"format": "pt"})
    save_file_torch({"brain": torch.tensor([3.140625]).bfloat16()}, tmp_path / "m2.safetensors")

    checkpoint = open_checkpoint(tmp_path / "m1.safetensors")
    assert checkpoint.metadata is None
    for name, values in STATE.items():
        assert values.tobytes() == checkpoint.read(name).tobytes()
    assert [3.140625] == open_checkpoint(tmp_path / "m2.safetensors").read("brain").tolist()


def test_data_begins_at_a_multiple_of_eight(tmp_path):
    """As the format asks, so that a memory map is aligned."""
    save(tmp_path / "m1.safetensors", {"a": np.ones(2, np.float32)}, FULL)
    content = (tmp_path / "m1.safetensors").read_bytes()

    assert 0 == struct.unpack("<Q", content[:8])[0] % 8
    assert b"{" == content[8:9]
    assert np.ones(2, np.float32).tobytes() == content[-8:]


def test_same_content_gives_the_same_bytes(tmp_path):
    """Nothing of the clock, the process or the path is in a file."""
    (tmp_path / "other").mkdir()
    save(tmp_path / "m1.safetensors", STATE, FULL)
    save(tmp_path / "other" / "m2.safetensors", STATE, FULL)

    assert (tmp_path / "m1.safetensors").read_bytes() == (tmp_path / "other" / "m2.safetensors").read_bytes()


def test_metadata_comes_back(tmp_path):
    """With the seal that writing returned."""
    sealed = save(tmp_path / "m1.safetensors", STATE, FULL)

    assert sealed == open_checkpoint(tmp_path / "m1.safetensors").metadata
    assert {"tensors", "metadata"} == set(sealed.seal)


def test_names_of_all_scripts(tmp_path):
    """Names with spaces, quotes and letters outside ASCII, of tensors and of files."""
    path = tmp_path / 'mödel "1" 脳.safetensors'
    save(path, {'a "b"\\ 脳': np.ones(1)})

    assert ['a "b"\\ 脳'] == list(open_checkpoint(path).entries)
    assert ['a "b"\\ 脳'] == list(load_file(path))


def test_stream_writes_one_tensor_at_a_time(tmp_path):
    """Each value is asked for once, in order, and the result equals a file written at once."""
    asked = []

    def values(entry):
        asked.append(entry.name)
        return STATE[entry.name]

    entries = [TensorEntry("a.weight", "F32", (2, 3)), TensorEntry("a.bias", "F64", (2,)), TensorEntry("n", "I64", ())]
    write_stream(tmp_path / "stream.safetensors", entries, values, FULL)
    save(tmp_path / "whole.safetensors", STATE, FULL)

    assert ["a.weight", "a.bias", "n"] == asked
    assert (tmp_path / "stream.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_failed_stream_leaves_the_old_file(tmp_path):
    """A value that cannot be computed, or is of another shape than planned, writes nothing."""
    path = tmp_path / "m1.safetensors"
    path.write_bytes(b"old")

    with pytest.raises(KeyError):
        write_stream(
            path, [TensorEntry("a", "F32", (2,)), TensorEntry("b", "F32", (2,))], lambda entry: {"a": np.ones(2)}[entry.name], FULL
        )
    with pytest.raises(ValueError, match=r"a: planned shape \(2,\), computed \(3,\)"):
        write_stream(path, [TensorEntry("a", "F32", (2,))], lambda _: np.ones(3), FULL)

    assert b"old" == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


def test_no_flipped_byte_passes(tmp_path):
    """Bytes all over a file of ours, changed in one bit or at random: refused, or not changed in what it says."""
    path = tmp_path / "m1.safetensors"
    save(path, STATE, FULL)
    good, opened = path.read_bytes(), open_checkpoint(path)
    expected = {name: (entry, opened.read(name).tobytes()) for name, entry in opened.entries.items()}
    generator, accepted = random.Random(0), 0
    for number, position in enumerate(range(0, len(good), 3)):
        mutant = bytearray(good)
        mutant[position] ^= 1 << generator.randrange(8) if number % 2 else generator.randrange(1, 256)
        path.write_bytes(mutant)
        try:
            read = open_checkpoint(path)
        except InputError:
            continue
        accepted += 1
        assert expected == {name: (entry, read.read(name).tobytes()) for name, entry in read.entries.items()}, position
        assert opened.metadata == read.metadata, position
    # The spaces that pad the header may become other white space.
    assert accepted <= 8


def test_every_truncation_is_refused(tmp_path):
    """At whatever byte a copy was cut off."""
    path = tmp_path / "m1.safetensors"
    save(path, STATE, FULL)
    good = path.read_bytes()
    for length in [*range(1, 40), *range(40, len(good), 37), len(good) - 1]:
        path.write_bytes(good[:length])
        refusal(path)
    path.write_bytes(good + b"\0")
    assert "bytes of data where the header tells of" in refusal(path)


def test_damaged_tensor_is_told(tmp_path):
    """The path, and what to do."""
    path = tmp_path / "m1.safetensors"
    save(path, STATE, FULL)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")

    assert f"the file is damaged: {path}: found content that differs from its seal; restore it from a copy" == refusal(path)
    assert ["a.weight", "a.bias", "n"] == list(open_checkpoint(path, verify=False).entries)


def test_flipped_letter_of_the_key_is_found(tmp_path):
    """Else a sealed file would pass for one that never had a seal."""
    path = tmp_path / "m1.safetensors"
    save(path, STATE, FULL)
    path.write_bytes(path.read_bytes().replace(b'{"mergekit3d":', b'{"mergekit3e":', 1))

    assert "found metadata of mergekit3d under the key 'mergekit3e'" in refusal(path)


@pytest.mark.parametrize(
    ("found", "header"),
    [
        ("a header that is no JSON", b'{"a": }'),
        ("a header that is no JSON", b'{"\xff": 1}'),
        ("a header that is no JSON", b"{" + b'"a":[' * 100_000),
        (
            "the key 'a' twice",
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        ),
        ("the key 'dtype' twice", b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}'),
        ("tensor 'a' without a proper name, dtype, shape or offsets", {"a": {"dtype": "F32", "shape": [2]}}),
        ("tensor 'a' without a proper name, dtype, shape or offsets", {"a": 5}),
        ("tensor 'a' without a proper name, dtype, shape or offsets", {"a": tensor(offsets=[0, 4, 8])}),
        ("without a proper name", b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        ("tensor 'a' of the unknown dtype 'F99'", {"a": tensor(dtype="F99")}),
        ("tensor 'a' whose shape and offsets do not agree", {"a": tensor(shape=[3])}),
        ("tensor 'a' whose shape and offsets do not agree", {"a": tensor(shape=[-2], offsets=[8, 0])}),
        ("tensor 'a' whose shape and offsets do not agree", {"a": tensor(shape=[2.0])}),
        ("tensor 'a' whose shape and offsets do not agree", {"a": tensor(shape=[True, 2])}),
        ("tensor 'a' whose shape and offsets do not agree", {"a": tensor(offsets=["0", "8"])}),
        ("tensor 'a' of a shape that no array has", {"a": tensor(shape=[10**30, 0], offsets=[0, 0]), "b": tensor()}),
        ("tensor 'a' of a shape that no array has", {"a": tensor(shape=[1] * 65 + [2])}),
        ("tensors that overlap or leave gaps", {"a": tensor(), "b": tensor()}),
        ("tensors that overlap or leave gaps", {"a": tensor(shape=[1], offsets=[4, 8])}),
        ("8 bytes of data where the header tells of 4", {"a": tensor(shape=[1], offsets=[0, 4])}),
        ("8 bytes of data where the header tells of 800000000000", {"a": tensor(shape=[200_000_000_000], offsets=[0, 800_000_000_000])}),
        ("metadata that is no mapping of texts", {"__metadata__": ["mergekit3d"], "a": tensor()}),
        ("metadata that is no mapping of texts", {"__metadata__": "mergekit3d", "a": tensor()}),
        ("metadata that is no mapping of texts", {"__metadata__": {"mergekit3d": 5}, "a": tensor()}),
    ],
)
def test_lies_in_the_header_are_refused(tmp_path, found, header):
    """Nothing is allocated, and what is wrong is said."""
    text = refusal(with_header(tmp_path / "m1.safetensors", header))

    assert text.startswith("damaged safetensors file: ")
    assert found in text
    assert text.endswith("; restore it from a copy")


@pytest.mark.parametrize("length", [0, 1, MAX_HEADER_BYTES + 1, 1 << 39])
def test_declared_header_length_is_checked_first(tmp_path, length):
    """A length of none, of more than 8 MiB, or beyond the end of the file."""
    path = tmp_path / "m1.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 80)

    refusal(path)


def test_empty_file(tmp_path):
    """Zero bytes are told as such."""
    (tmp_path / "m1.safetensors").touch()

    assert f"the file is empty: {tmp_path}/m1.safetensors; restore it from a copy" == refusal(tmp_path / "m1.safetensors")


def test_missing_file(tmp_path):
    """The path is named."""
    assert f"no such file: {tmp_path}/m1.safetensors" == refusal(tmp_path / "m1.safetensors")


def test_folder(tmp_path):
    """A folder under the name is no file."""
    wanted = "wanted a file, or the folder of a bundle, found a folder of other things"
    assert f"cannot read the file: {tmp_path}: {wanted}" == refusal(tmp_path)


def test_fifo_does_not_hang(tmp_path):
    """A pipe that nobody writes to would block for ever."""
    os.mkfifo(tmp_path / "pipe")

    assert f"cannot read the file: {tmp_path}/pipe: wanted a regular file, found something else" == refusal(tmp_path / "pipe")


def test_null_byte_in_the_name():
    """No system has such files."""
    with pytest.raises(InputError, match="cannot read the file"):
        open_checkpoint("m1\0.pt")


def test_other_content(tmp_path):
    """A text file is no checkpoint; the formats are listed."""
    (tmp_path / "notes.txt").write_text("These are not weights.")

    wanted = f"wanted a file of one of the formats {', '.join(FORMATS)}, found other content"
    assert f"not a checkpoint: {tmp_path}/notes.txt: {wanted}" == refusal(tmp_path / "notes.txt")


def test_link_is_followed(tmp_path):
    """A link to a checkpoint is as good as the file."""
    save(tmp_path / "m1.safetensors", STATE)
    (tmp_path / "latest").symlink_to("m1.safetensors")

    assert list(STATE) == list(open_checkpoint(tmp_path / "latest").entries)


def test_seal_covers_the_bytes_of_an_alias(tmp_path):
    """Every name has its own in the file, and other programs read them."""
    path = tmp_path / "m1.safetensors"
    save(path, {"a": np.ones(4), "b": np.ones(4)}, metadata_of(aliases={"b": "a"}))
    path.write_bytes(path.read_bytes()[:-1] + b"\7")

    with pytest.raises(InputError, match="the file is damaged"):
        open_checkpoint(path)
