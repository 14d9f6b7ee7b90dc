"""What every format that is written has to pass; `test_formats.py` runs this for each that is registered.

To try a format while it is being made: copy this file to ``test_<format>.py`` and set the two names below.
"""

from __future__ import annotations

import numpy as np
import pytest

from mergekit3d.checkpoints import open_checkpoint, recognised_format
from mergekit3d.checkpoints.checkpoint import NUMPY_DTYPES, TensorEntry, dtype_name
from mergekit3d.checkpoints.formats import FORMATS
from mergekit3d.errors import InputError
from tests.builders import metadata_of, nnunet_plans, spec_of, task_of

NAME = "safetensors"
ENDING = ".safetensors"

ORIGIN = {
    "format": "nnunet",
    "plans": nnunet_plans(),
    "configuration": "3d_fullres",
    "fold": 0,
    "dataset_json": {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "csf": 1}},
    "trainer_name": "nnUNetTrainer",
    "mirroring_axes": None,
}
"""Whatever formats keep beside the tensors: each takes what it needs."""


def state_of_every_dtype():
    state = {}
    for dtype in NUMPY_DTYPES:
        for number, shape in enumerate([(2, 3), (), (0, 3)]):
            state[f"net.{dtype}.{number}"] = (np.arange(np.prod(shape, dtype=int)) % 2).astype(NUMPY_DTYPES[dtype]).reshape(shape)
    state["net.nan"] = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 1], "<u4").view("<f4")
    state["net.again"] = state["net.F32.0"]
    return state


def write(path, state=None, **fields):
    """A checkpoint of the format, with all that one can hold."""
    metadata = metadata_of(spec_of(), task_of(), aliases={"net.again": "net.F32.0"} if state is None else {}, origin=ORIGIN, **fields)
    state = state_of_every_dtype() if state is None else state
    tensors = [(TensorEntry(name, dtype_name(values.dtype), values.shape), values) for name, values in state.items()]
    return FORMATS.get(NAME).writer()(path, tensors, metadata)


def bits(checkpoint):
    return {name: (entry.dtype, entry.shape, bytes(checkpoint.content(name))) for name, entry in checkpoint.entries.items()}


def test_every_bit_comes_back(tmp_path):
    """Of every dtype and shape, under the very names, in their order; with the metadata, the seal and the aliases."""
    sealed = write(tmp_path / f"m{ENDING}")
    checkpoint = open_checkpoint(tmp_path / f"m{ENDING}")
    expected = {name: (dtype_name(values.dtype), values.shape, values.tobytes()) for name, values in state_of_every_dtype().items()}

    assert expected == bits(checkpoint)
    assert list(expected) == list(checkpoint.entries)
    assert sealed == checkpoint.metadata
    assert {"net.again": "net.F32.0"} == checkpoint.aliases
    assert not checkpoint.is_foreign


def test_format_is_told_by_the_content(tmp_path):
    """Whatever the name."""
    write(tmp_path / f"m{ENDING}")
    (tmp_path / f"m{ENDING}").rename(tmp_path / "weights.bin")

    assert NAME == recognised_format(tmp_path / "weights.bin").name
    assert len(state_of_every_dtype()) == len(open_checkpoint(tmp_path / "weights.bin").entries)


def test_identity_is_that_of_the_tensors(tmp_path):
    """The same in every format, so that a Fisher diagonal stays one of the checkpoint."""
    write(tmp_path / f"m{ENDING}")
    FORMATS.get("safetensors").writer()(
        tmp_path / "other.safetensors",
        [(TensorEntry(name, dtype_name(values.dtype), values.shape), values) for name, values in state_of_every_dtype().items()],
        metadata_of(),
    )

    assert open_checkpoint(tmp_path / "other.safetensors").digest == open_checkpoint(tmp_path / f"m{ENDING}").digest


def test_name_of_the_file_is_not_in_it(tmp_path):
    """It may tell of a patient, and files are renamed."""
    write(tmp_path / f"DOE^JOHN{ENDING}")
    write(tmp_path / f"m{ENDING}")

    assert (tmp_path / f"DOE^JOHN{ENDING}").read_bytes() == (tmp_path / f"m{ENDING}").read_bytes()


def test_old_file_stays_when_writing_fails(tmp_path):
    """Nothing half-written takes a name."""
    path = tmp_path / f"m{ENDING}"
    path.write_bytes(b"old")

    def tensors():
        yield TensorEntry("a", "F32", (2,)), np.ones(2, np.float32)
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError, match="the source is gone"):
        FORMATS.get(NAME).writer()(path, tensors(), metadata_of(spec_of(), task_of(), origin=ORIGIN))
    assert b"old" == path.read_bytes()


def test_cut_file_is_refused(tmp_path):
    """65 in one line, at whatever byte a copy was cut off."""
    path = tmp_path / f"m{ENDING}"
    write(path)
    good = path.read_bytes()
    for length in (1, 3, 4, 10, 100, len(good) // 2, len(good) - 30, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(InputError) as caught:
            open_checkpoint(path)
        assert "\n" not in str(caught.value)


def test_flipped_bit_changes_nothing_or_is_refused(tmp_path):
    """The seal finds what the format itself does not."""
    path = tmp_path / f"m{ENDING}"
    write(path, {"a.weight": np.arange(12, dtype=np.float32), "a.bias": np.ones(3)})
    good, opened = path.read_bytes(), open_checkpoint(path)
    wanted = bits(opened)
    generator = np.random.default_rng(0)
    for position in np.linspace(0, len(good) - 1, 300, dtype=int):
        mutant = bytearray(good)
        mutant[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(mutant))
        try:
            read = open_checkpoint(path)
        except InputError:
            continue
        assert wanted == bits(read), position
        assert opened.metadata == read.metadata, position
