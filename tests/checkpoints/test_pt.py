"""`.pt` files: whatever wraps the tensors, never a pickle that runs code, nothing damaged."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import resource
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.checkpoints.checkpoint import NUMPY_DTYPES
from mergekit3d.errors import InputError, OutputError
from tests.builders import metadata_of, save, spec_of, task_of

STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2), "n": np.array(3, np.int64)}
TENSORS = {name: torch.from_numpy(values.copy()) for name, values in STATE.items()}
FULL = metadata_of(spec_of(), task_of())


def refusal(path):
    """What opening the file is answered with."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def same_as_state(checkpoint):
    assert list(STATE) == list(checkpoint.entries)
    for name, values in STATE.items():
        read = checkpoint.read(name)
        assert (values.dtype, values.shape, values.tobytes()) == (read.dtype, read.shape, read.tobytes())


def test_every_dtype_and_shape_round_trips(tmp_path):
    """Matrices, scalars and empty tensors, of every dtype."""
    state = {}
    for dtype in NUMPY_DTYPES:
        for shape in ((2, 3), (), (0, 3)):
            state[f"{dtype}.{len(shape)}.{shape}"] = (np.arange(np.prod(shape, dtype=int)) % 2).astype(NUMPY_DTYPES[dtype]).reshape(shape)
    state["brain"] = np.array([1.0, -2.5, 3.140625], np.float32)
    save(tmp_path / "m1.pt", state, dtypes={"brain": "BF16"})
    checkpoint = open_checkpoint(tmp_path / "m1.pt")

    assert list(state) == list(checkpoint.entries)
    assert "BF16" == checkpoint.entries["brain"].dtype
    for name, values in state.items():
        read = checkpoint.read(name)
        assert (values.dtype, values.shape, values.tobytes()) == (read.dtype, read.shape, read.tobytes()), name


def test_torch_loads_ours_with_weights_only(tmp_path):
    """The state dict under its usual key, the metadata as text under ours."""
    save(tmp_path / "m1.pt", STATE, FULL)
    content = torch.load(tmp_path / "m1.pt", weights_only=True)

    assert {"state_dict", "mergekit3d"} == set(content)
    for name, tensor in TENSORS.items():
        assert torch.equal(tensor, content["state_dict"][name])


def test_metadata_comes_back(tmp_path):
    """With the seal that writing returned."""
    sealed = save(tmp_path / "m1.pt", STATE, FULL)

    assert sealed == open_checkpoint(tmp_path / "m1.pt").metadata


def test_name_of_the_file_is_not_in_it(tmp_path):
    """`torch.save` would write it, and names of files may tell of patients."""
    save(tmp_path / "DOE^JOHN.pt", STATE, FULL)

    assert b"DOE" not in (tmp_path / "DOE^JOHN.pt").read_bytes()


@pytest.mark.parametrize("key", [None, "state_dict", "model", "network_weights", "backbone_state_dict"])
def test_usual_wrappers(tmp_path, key):
    """A bare state dict, or one under a usual key with other things beside it."""
    torch.save(TENSORS if key is None else {"epoch": 3, key: TENSORS, "optimizer": {"lr": 0.1}}, tmp_path / "m1.pt")

    same_as_state(open_checkpoint(tmp_path / "m1.pt"))
    assert open_checkpoint(tmp_path / "m1.pt").metadata is None


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "module._orig_mod.", "_orig_mod.module.net."])
def test_usual_prefixes(tmp_path, prefix):
    """Those of data parallelism, of compilation and of Lightning, alone and together."""
    torch.save({"state_dict": {f"{prefix}{name}": tensor for name, tensor in TENSORS.items()}}, tmp_path / "m1.ckpt")

    same_as_state(open_checkpoint(tmp_path / "m1.ckpt"))


def test_prefix_of_some_names_stays(tmp_path):
    """It is part of the names unless all have it."""
    torch.save({"net.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "m1.pt")

    assert ["net.a", "b"] == list(open_checkpoint(tmp_path / "m1.pt").entries)


def test_prefix_in_ours_is_part_of_the_names(tmp_path):
    """The seal covers the names that were written."""
    save(tmp_path / "m1.pt", {"net.a": np.ones(1), "net.module.b": np.ones(1)})

    assert ["net.a", "net.module.b"] == list(open_checkpoint(tmp_path / "m1.pt").entries)


def test_legacy_file(tmp_path):
    """As torch wrote them before version 1.6."""
    torch.save(TENSORS, tmp_path / "m1.pth", _use_new_zipfile_serialization=False)

    same_as_state(open_checkpoint(tmp_path / "m1.pth"))


def test_views_and_parameters(tmp_path):
    """Transposed tensors, slices of a large one and parameters come as their values."""
    large = torch.arange(100.0)
    torch.save({"t": torch.arange(6.0).reshape(2, 3).T, "slice": large[10:12], "p": torch.nn.Parameter(torch.ones(2))}, tmp_path / "m1.pt")
    checkpoint = open_checkpoint(tmp_path / "m1.pt")

    assert [[0, 3], [1, 4], [2, 5]] == checkpoint.read("t").tolist()
    assert [10, 11] == checkpoint.read("slice").tolist()
    assert [1, 1] == checkpoint.read("p").tolist()


class Gadget:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_runs_code_is_refused(tmp_path, zipped):
    """Its class is named, nothing runs, and the way out is told."""
    torch.save({"state_dict": TENSORS, "extra": Gadget(tmp_path / "ran")}, tmp_path / "m1.pt", _use_new_zipfile_serialization=zipped)

    text = refusal(tmp_path / "m1.pt")
    digest = hashlib.sha256((tmp_path / "m1.pt").read_bytes()).hexdigest()
    assert (
        f"refused to unpickle: {tmp_path}/m1.pt: wanted tensors and plain data, found posix.system; save its state_dict() alone, "
        f"or, where you trust its author with this machine, convert it with --allow-code {digest}"
    ) == text
    assert not (tmp_path / "ran").exists()


def test_exit_code_of_a_refused_pickle(tmp_path):
    """65, as of every bad input."""
    torch.save(Gadget(tmp_path / "ran"), tmp_path / "m1.pt")

    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path / "m1.pt")
    assert 65 == caught.value.exit_code


def test_whole_network_is_refused(tmp_path):
    """`torch.save(network)` pickles classes; the state dict is what is wanted."""
    torch.save(torch.nn.Conv3d(1, 1, 1), tmp_path / "m1.pt")

    assert "found torch.nn.modules.conv.Conv3d; save its state_dict() alone" in refusal(tmp_path / "m1.pt")


@pytest.mark.parametrize(
    ("found", "content"),
    [
        ("keys epoch, loss", {"epoch": 3, "loss": [0.1]}),
        ("keys 0", {0: torch.ones(1)}),
        ("keys a, b", {"a": torch.ones(1), "b": 3}),
        ("list", [torch.ones(1)]),
        ("Tensor", torch.ones(1)),
        ("keys ", {}),
    ],
    ids=str,
)
def test_no_state_dict(tmp_path, found, content):
    """What stands there instead is told."""
    torch.save(content, tmp_path / "m1.pt")

    wanted = "tensors by name, bare or under state_dict, model, network_weights, backbone_state_dict"
    assert f"no state dict in the file: {tmp_path}/m1.pt: wanted {wanted}, found {found}".strip() == refusal(tmp_path / "m1.pt")


@pytest.mark.parametrize(
    ("found", "tensor"),
    [
        ("torch.complex64", lambda: torch.ones(2, dtype=torch.complex64)),
        ("torch.float32", lambda: torch.eye(3).to_sparse()),
        ("torch.float32", lambda: torch.eye(3).to_sparse_csr()),
        ("4000000000000 bytes", lambda: torch.ones(1).expand(1_000_000, 1_000_000)),
    ],
    ids=["complex", "sparse", "csr", "expanded"],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_tensors_that_cannot_be_used(tmp_path, found, tensor):
    """They are named; an expanded view is not blown up in memory."""
    torch.save({"a": torch.ones(1), "odd": tensor()}, tmp_path / "m1.pt")

    text = refusal(tmp_path / "m1.pt")
    assert text.startswith(f"cannot use the tensor: {tmp_path}/m1.pt: odd: wanted ")
    assert text.endswith(f"found {found}")


def mutants(good, count, seed=0):
    """Copies with one changed byte each, all over the file."""
    generator = random.Random(seed)
    for number in range(count):
        mutant = bytearray(good)
        position = number * len(good) // count
        mutant[position] ^= 1 << generator.randrange(8) if number % 2 else generator.randrange(1, 256)
        yield position, bytes(mutant)


def test_no_flipped_byte_passes(tmp_path):
    """The archive's checksums and the seal find it, or it changed nothing that is read."""
    path = tmp_path / "m1.pt"
    save(path, STATE, FULL)
    good, opened = path.read_bytes(), open_checkpoint(path)
    for position, mutant in mutants(good, 400):
        path.write_bytes(mutant)
        try:
            read = open_checkpoint(path)
        except InputError:
            continue
        same_as_state(read)
        assert opened.metadata == read.metadata, position


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_mutants_raise_nothing_but_input_errors(tmp_path, zipped):
    """A legacy pickle has no checksum, but whatever is in it, there is no traceback."""
    path = tmp_path / "m1.pt"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    for _, mutant in mutants(path.read_bytes(), 200, seed=1):
        path.write_bytes(mutant)
        try:
            checkpoint = open_checkpoint(path)
        except InputError:
            continue
        assert all(checkpoint.read(name) is not None for name in checkpoint.entries)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file(tmp_path, zipped):
    """At whatever byte a copy was cut off."""
    path = tmp_path / "m1.pt"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    good = path.read_bytes()
    for length in (1, 3, 4, 10, 100, len(good) // 2, len(good) - 30, len(good) - 1):
        path.write_bytes(good[:length])
        refusal(path)


def test_wrong_checksum_is_told(tmp_path):
    """Of a tensor in the archive."""
    path = tmp_path / "m1.pt"
    torch.save({"a": torch.full((64,), 7.5)}, path)
    content = path.read_bytes()
    at = content.index(np.full(64, 7.5, np.float32).tobytes())
    path.write_bytes(content[: at + 5] + b"\1" + content[at + 6 :])

    assert f"the file is damaged: {path}: found a wrong checksum inside; restore it from a copy" == refusal(path)


def test_other_archives_and_pickles(tmp_path):
    """A zip file of anything else, and a pickle that torch did not write."""
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("notes.txt", "not weights")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}))

    assert "cannot read the checkpoint" in refusal(tmp_path / "notes.zip")
    refusal(tmp_path / "a.pkl")


def test_full_disk_leaves_the_old_file(tmp_path):
    """An error in the middle of writing is told as what it is."""
    path = tmp_path / "m1.pt"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError) as caught:
            save(path, {"a": np.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert f"cannot write: {path}: found file too large" == str(caught.value)
    assert b"old" == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


def nnunet_like(path, older=False):
    """A checkpoint as nnU-Net v2 writes it: several names of one tensor, curves of numpy scalars, plans."""
    weight, head = torch.arange(8.0).reshape(2, 1, 2, 2), torch.ones(3, 2, 1, 1)
    weights = {
        "encoder.stages.0.conv.weight": weight,
        "decoder.encoder.stages.0.conv.weight": weight,
        "decoder.seg_layers.0.weight": head,
        "decoder.seg_layers.0.bias": torch.zeros(3),
    }
    logging = {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "epoch_end_timestamps": [1.0]}
    content = {
        "network_weights": weights,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": logging,
        "_best_ema": np.float64(0.5),
        "current_epoch": 7,
        "init_args": {"plans": {"configurations": {}}, "configuration": "3d_fullres", "fold": 0, "dataset_json": {}, "device": "cuda"},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content, path)
    if older:
        rename_inside(path, b"numpy._core.multiarray", b"numpy.core.multiarray")


def rename_inside(path, name, other):
    """The same archive with another module named in its pickle, as older versions wrote it."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            renamed = content.replace(bytes([len(name)]) + b"\0\0\0" + name, bytes([len(other)]) + b"\0\0\0" + other)
            renamed = renamed.replace(b"c" + name + b"\n", b"c" + other + b"\n")
            archive.writestr(member, renamed if member.endswith("data.pkl") else content)


@pytest.mark.parametrize("older", [False, True], ids=["numpy 2", "numpy 1"])
def test_checkpoints_of_nnunet_open(tmp_path, older):
    """Their learning curves hold numpy scalars, which are allowed; nothing else is."""
    nnunet_like(tmp_path / "checkpoint_final.pth", older)
    checkpoint = open_checkpoint(tmp_path / "checkpoint_final.pth")

    assert 4 == len(checkpoint.entries)
    assert {"decoder.encoder.stages.0.conv.weight": "encoder.stages.0.conv.weight"} == checkpoint.aliases
    assert 3 == len(checkpoint.owners)
    assert np.arange(8.0).tolist() == checkpoint.read("decoder.encoder.stages.0.conv.weight").ravel().tolist()


def test_what_is_allowed_in_one_file_is_not_left_allowed(tmp_path):
    """Other code that loads with weights_only=True is as safe as before."""
    nnunet_like(tmp_path / "checkpoint_final.pth")
    open_checkpoint(tmp_path / "checkpoint_final.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)


def test_parts_of_one_storage_are_not_one_tensor(tmp_path):
    """Only the same entries in the same order are."""
    whole = torch.arange(8.0)
    torch.save(
        {"a": whole[:4], "b": whole[4:], "c": whole[:4], "d": whole[:4].reshape(2, 2), "e": whole.reshape(2, 4).t()}, tmp_path / "m.pt"
    )

    assert {"c": "a"} == open_checkpoint(tmp_path / "m.pt").aliases


def test_safetensors_under_the_name_of_a_pickle(tmp_path):
    """Files are told by their content."""
    save(tmp_path / "m1.safetensors", STATE)
    (tmp_path / "m1.safetensors").rename(tmp_path / "m1.pth")

    same_as_state(open_checkpoint(tmp_path / "m1.pth"))


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_aliases_come_back(tmp_path, ending):
    """Told by the metadata or by the storage; the digest is that of a file without them."""
    state = {**STATE, "again": STATE["a.weight"]}
    path = tmp_path / f"m1.{ending}"
    save(path, state, metadata_of(aliases={"again": "a.weight"}))
    checkpoint = open_checkpoint(path)
    save(tmp_path / "plain.safetensors", state)

    assert {"again": "a.weight"} == checkpoint.aliases
    assert STATE["a.weight"].tobytes() == checkpoint.read("again").tobytes()
    assert checkpoint.digest == open_checkpoint(tmp_path / "plain.safetensors").digest
    assert "aliases" not in open_checkpoint(tmp_path / "plain.safetensors").metadata.as_json()


def test_aliases_that_cannot_be(tmp_path):
    """Of another shape, or of a tensor that is not there."""
    for owner in ("a.bias", "nothing"):
        save(tmp_path / "m1.safetensors", {**STATE, "again": STATE["a.weight"]}, metadata_of(aliases={"again": owner}))
        assert f"the tensor 'again' as one more name of '{owner}'" in refusal(tmp_path / "m1.safetensors")


def test_aliases_share_their_storage_in_the_file(tmp_path):
    """Another name costs a few bytes, not the tensor once more."""
    state = {"a.weight": np.ones(10_000, np.float32), "b.weight": np.ones(10_000, np.float32)}
    save(tmp_path / "alone.pt", {"a.weight": state["a.weight"]})
    save(tmp_path / "both.pt", state, metadata_of(aliases={"b.weight": "a.weight"}))
    content = torch.load(tmp_path / "both.pt", weights_only=True)["state_dict"]

    assert (tmp_path / "both.pt").stat().st_size < (tmp_path / "alone.pt").stat().st_size + 1000
    assert content["a.weight"].data_ptr() == content["b.weight"].data_ptr()


def test_an_alias_is_hashed_and_checked_once(tmp_path):
    """Under the name of its owner."""
    weight = torch.tensor([1.0, np.nan])
    torch.save({"a": weight, "b": weight, "c": torch.ones(1)}, tmp_path / "m1.pt")
    opened, read = open_checkpoint(tmp_path / "m1.pt"), []

    def content(name):
        read.append(name)
        return opened.content(name)

    counting = replace(opened, content=content)

    assert opened.digest == counting.digest
    assert ["a", "c"] == sorted(read)
    assert [("a", 1)] == opened.non_finite()


@pytest.mark.parametrize(
    ("culprit", "extra"),
    [
        ("numpy._core.multiarray._reconstruct", lambda: np.ones(2)),
        ("another object", lambda: np.int64(3)),
        ("another object", lambda: np.complex64(1j)),
    ],
    ids=["array", "int64", "complex64"],
)
def test_other_objects_of_numpy_are_refused(tmp_path, culprit, extra):
    """Scalars of float32 and float64 are all that nnU-Net needs."""
    torch.save({"state_dict": TENSORS, "extra": extra()}, tmp_path / "m1.pt")

    assert f"wanted tensors and plain data, found {culprit}" in refusal(tmp_path / "m1.pt")
