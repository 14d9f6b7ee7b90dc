"""Files made by hand to be wrong, each given to a command: one line that says what and where, exit code 65 (recipes 2), no traceback."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.errors import InputError
from mergekit3d_cli.app import app
from tests.builders import two_sources


def header_of(content: object, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(**changes: object) -> dict[str, object]:
    """A header entry of two float32."""
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def saved(content: object, **keywords: object) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, **keywords)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    """A zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


class Runs:
    """What runs a command when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> object:
        return self.call


WEIGHT = torch.ones(2, 2)
KEY = "mergekit3d"
CODES = [
    (os.system, "touch ran"), (os.mkdir, "ran"), (eval, "open('ran', 'w')"), (exec, "open('ran', 'w')"), (open, "ran", "w"),
    (os.posix_spawn, "/bin/touch", ["touch", "ran"], {}), (Path, "ran"), (torch.load, "ran"), (getattr, Path, "cwd"),
    (__import__, "antigravity"), (bytearray, 2**40), (torch.nn.Linear, 1, 1),
]  # fmt: skip

ENTRY = json.dumps(tensor()).encode()
CHECKPOINTS: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\0",
    "text": b"hello, world\n",
    "zeros": b"\0" * 4096,
    "html": b"<html>404</html>" * 30,
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "hdf5": b"\x89HDF\r\n\x1a\n" + b"\0" * 512,
    "gzip": gzip.compress(b"x" * 100),
    "numpy": b"\x93NUMPY\x01\x00" + b"\0" * 100,
    "st: length alone": struct.pack("<Q", 100),
    "st: length too long": header_of({"a": tensor()}, length=10**6),
    "st: length of 2^63": header_of({"a": tensor()}, length=2**63),
    "st: length of 9 MiB": header_of(b"{" + b" " * (9 << 20) + b"}"),
    "st: cut header": header_of({"a": tensor()}, b"")[:-5],
    "st: no json": header_of(b"{a: 1}"),
    "st: a list": header_of(b'{"a": [1, 2]}'),
    "st: not UTF-8": header_of(b'{"\xff\xfe": 1}'),
    "st: deep": header_of(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "st: twice the name": header_of(b'{"a":%b,"a":%b}' % (ENTRY, ENTRY)),
    "st: twice dtype": header_of(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "st: no dtype": header_of({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "st: no shape": header_of({"a": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "st: no offsets": header_of({"a": {"dtype": "F32", "shape": [2]}}),
    "st: unknown dtype": header_of({"a": tensor(dtype="F7")}),
    "st: dtype a number": header_of({"a": tensor(dtype=32)}),
    "st: shape too large": header_of({"a": tensor(shape=[3])}),
    "st: shape negative": header_of({"a": tensor(shape=[-2])}),
    "st: shape both negative": header_of({"a": tensor(shape=[-1, -2])}),
    "st: shape a float": header_of({"a": tensor(shape=[2.0])}),
    "st: shape true": header_of({"a": tensor(shape=[True, 2])}),
    "st: shape a text": header_of({"a": tensor(shape="2")}),
    "st: shape huge": header_of({"a": tensor(shape=[2**62, 4])}),
    "st: shape huge and empty": header_of({"a": tensor(shape=[2**62, 2**62, 0], data_offsets=[0, 0])}, b""),
    "st: 100 axes": header_of({"a": tensor(shape=[1] * 99 + [2])}),
    "st: offsets backwards": header_of({"a": tensor(data_offsets=[8, 0])}),
    "st: offsets negative": header_of({"a": tensor(data_offsets=[-8, 0])}),
    "st: offsets beyond": header_of({"a": tensor(data_offsets=[8, 16])}),
    "st: three offsets": header_of({"a": tensor(data_offsets=[0, 8, 8])}),
    "st: gap": header_of({"a": tensor(), "b": tensor(data_offsets=[16, 24])}, b"\0" * 24),
    "st: overlap": header_of({"a": tensor(), "b": tensor(data_offsets=[4, 12])}, b"\0" * 12),
    "st: data cut": header_of({"a": tensor()}, b"\0" * 7),
    "st: data behind": header_of({"a": tensor()}, b"\0" * 9),
    "st: metadata a list": header_of({"__metadata__": [1], "a": tensor()}),
    "st: metadata of numbers": header_of({"__metadata__": {"x": 1}, "a": tensor()}),
    "st: our metadata, no json": header_of({"__metadata__": {KEY: "{"}, "a": tensor()}),
    "st: our metadata, empty": header_of({"__metadata__": {KEY: "{}"}, "a": tensor()}),
    "st: our metadata, a list": header_of({"__metadata__": {KEY: "[]"}, "a": tensor()}),
    "st: our metadata, NaN": header_of({"__metadata__": {KEY: "NaN"}, "a": tensor()}),
    "st: our metadata, deep": header_of({"__metadata__": {KEY: "[" * 20_000}, "a": tensor()}),
    "st: name of a lone surrogate": header_of(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "pt: zip of nothing": zipped(),
    "pt: zip of a text": zipped(readme=b"hello"),
    "pt: no pickle": zipped(archive__version=b"3\n", archive__data__0=b"\0" * 8),
    "pt: empty pickle": zipped(archive__data__pkl=b""),
    "pt: cut": saved({"w": WEIGHT})[:-100],
    "pt: head alone": saved({"w": WEIGHT})[:100],
    "pt: a number": saved(3),
    "pt: a list": saved([1, 2]),
    "pt: None": saved(None),
    "pt: empty state": saved({}),
    "pt: no tensors": saved({"epoch": 3}),
    "pt: one bare tensor": saved(WEIGHT),
    "pt: number keys": saved({1: WEIGHT}),
    "pt: complex": saved({"w": WEIGHT.to(torch.complex64)}),
    "pt: sparse": saved({"w": WEIGHT.to_sparse()}),
    "pt: expanded": saved({"w": torch.ones(1).expand(10**9)}),
    "pt: whole module": saved(torch.nn.Linear(2, 2)),
    "pt: module within": saved({"model": torch.nn.Linear(2, 2)}),
    "pt: our metadata, no json": saved({"state_dict": {"w": WEIGHT}, KEY: "{"}),
    "pt: our metadata, empty": saved({"state_dict": {"w": WEIGHT}, KEY: "{}"}),
    "pt: legacy cut": saved({"w": WEIGHT}, _use_new_zipfile_serialization=False)[:-8],
    "pt: legacy head": saved({"w": WEIGHT}, _use_new_zipfile_serialization=False)[:40],
    "pkl: plain": pickle.dumps({"w": [1.0]}),
    "pkl: cut": pickle.dumps({"w": [1.0]})[:-3],
    "pkl: numpy": pickle.dumps({"w": np.ones(3)}),
    **{f"pt: runs {call[0].__name__} ({number})": saved({"w": WEIGHT, "x": Runs(*call)}) for number, call in enumerate(CODES)},
    **{f"pkl: runs {call[0].__name__} ({number})": pickle.dumps(Runs(*call), protocol=2) for number, call in enumerate(CODES)},
}  # fmt: skip

METRICS = {
    "empty": b"",
    "header alone": b"subject,region,dice,hd95\n",
    "no header": b"a,ET,0.5,1\n",
    "binary": b"\xff\xfe\x00" * 10,
    "too few cells": b"subject,region,dice,hd95\na,ET\n",
    "dice above 1": b"subject,region,dice,hd95\na,ET,1.5,1\n",
    "dice negative": b"subject,region,dice,hd95\na,ET,-0.5,1\n",
    "dice a word": b"subject,region,dice,hd95\na,ET,good,1\n",
    "no subject": b"subject,region,dice,hd95\n,ET,0.5,1\n",
    "twice a row": b"subject,region,dice,hd95\na,ET,0.5,1\na,ET,0.6,1\n",
    "NUL": b"subject,region,dice,hd95\na\0,ET,x,1\n",
    "huge field": b"subject,region,dice,hd95\n" + b"a" * 200_000 + b",ET,0.5,1\n",
}


def volume(values: object = None, affine: object = None, **fields: object) -> bytes:
    """A NIfTI file whose header says anything."""
    image = nibabel.Nifti1Image(np.ones((4, 4, 4), np.int16) if values is None else values, np.eye(4) if affine is None else affine)
    content = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    return bytes(content)


PACKED = gzip.compress(volume())
VOLUMES = {
    "empty": b"",
    "text": b"not an image\n" * 40,
    "header alone": volume()[:348],
    "half a header": volume()[:100],
    "cut": volume()[:-1],
    "gzip: cut": PACKED[:-20],
    "gzip: no checksum": PACKED[:-8],
    "gzip: wrong checksum": PACKED[:-8] + b"\0" * 4 + PACKED[-4:],
    "gzip: wrong length": PACKED[:-4] + b"\1\0\0\0",
    "gzip: header alone": PACKED[:10],
    "gzip: garbage behind": PACKED + b"\x1f\x8b garbage",
    "gzip: of text": gzip.compress(b"not an image\n" * 40),
    "gzip: a second member, cut": PACKED + PACKED[:-9],
    "pair": volume(magic=b"ni1"),
    "no magic": volume(magic=b"abc"),
    "no voxels": volume(dim=[3, 0, 4, 4, 1, 1, 1, 1]),
    "negative size": volume(dim=[3, -4, 4, 4, 1, 1, 1, 1]),
    "huge": volume(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
    "larger than the file": volume(dim=[3, 4, 4, 5, 1, 1, 1, 1]),
    "no axes": volume(dim=[0, 4, 4, 4, 1, 1, 1, 1]),
    "nine axes": volume(dim=[9, 4, 4, 4, 1, 1, 1, 1]),
    "two axes": volume(dim=[2, 4, 4, 4, 1, 1, 1, 1]),
    "two volumes": volume(np.ones((4, 4, 4, 2), np.int16)),
    "unknown type": volume(datatype=77),
    "complex": volume(np.ones((4, 4, 4), np.complex64)),
    "rgb": volume(np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
    "voxels within the header": volume(vox_offset=100),
    "voxels far behind": volume(vox_offset=2.0**30),
    "voxels at NaN": volume(vox_offset=float("nan")),
    "intercept of NaN": volume(scl_slope=2, scl_inter=float("nan")),
    "scale of Inf": volume(scl_slope=float("inf")),
    "affine of NaN": volume(srow_x=[float("nan"), 0, 0, 0]),
    "affine of zeros": volume(srow_x=[0, 0, 0, 0]),
    "affine singular": volume(srow_x=[0, 1, 0, 0]),
    "voxels of 1e9 mm": volume(srow_x=[1e9, 0, 0, 0]),
    "qform against sform": volume(qform_code=1, sform_code=1, srow_x=[-1, 0, 0, 50]),
    "labels of halves": volume(np.full((4, 4, 4), 0.5, np.float32)),
    "labels nearly whole": volume(np.full((4, 4, 4), 2.9999, np.float32)),
    "labels below 0": volume(np.full((4, 4, 4), -1, np.int16)),
    "labels of NaN": volume(np.full((4, 4, 4), np.nan, np.float32)),
    "labels of Inf": volume(np.full((4, 4, 4), np.inf, np.float32)),
    "labels too large": volume(np.full((4, 4, 4), 70_000, np.int32)),
}  # fmt: skip

START = "version: 1\nsources: [{name: m1, checkpoint: m1.safetensors}, {name: m2, checkpoint: m2.safetensors}]\n"
RECIPES = [
    "",
    "a text",
    "- a list",
    "version: 2\n",
    "version: one\n",
    "version: 1\nversion: 1\n",
    "version: &a 1\nname: *a\n",
    "version: !!int 1\n",
    "version: !!python/object/apply:os.system ['touch ran']\n",
    "version: 1\n--- \nversion: 1\n",
    "{" * 100,
    "[" * 10_000,
    "version: 1\n\tname: x\n",
    "version: 1\nname: 'x\n",
    "version: 1\nname: \x07\n",
    f"version: 1\nname: {'x' * (1 << 20)}\n",
    "version: 1\n? [a]\n: 1\n",
    f"{START}merge: {{method: imn}}\n",
    f"{START}merge: {{method: imm, ratio: 1}}\n",
    f"{START}merge: {{method: imm, ratios: {{m1: -1, m2: 0}}}}\n",
    f"{START}merge: {{method: imm, ratios: {{m1: .nan, m2: 1}}}}\n",
    f"{START}merge: {{method: imm, ratios: {{m3: 1, m2: 1}}}}\n",
    f"{START}merge: {{method: imm, ratios: {{m1: 0, m2: 0}}}}\n",
    f"{START}merge: {{method: imm, ratios: {{m1: .inf, m2: 1}}}}\n",
    f"{START}merge: {{method: imm, granularity: voxel}}\n",
    f"{START}merge: {{method: ties}}\n",
    f"{START}merge: {{method: slerp, parameters: {{x: 1}}}}\n",
    f"{START}merge: {{method: imm, dtype: float8}}\n",
    f"{START}merge: no\n",
    f"{START}merge: [imm]\n",
    f"{START}merg: {{method: imm}}\n",
    f"{START}merge: {{method: imm}}\npartitions: {{private: 3}}\n",
    f"{START}merge: {{method: imm}}\narchitecture: {{name: [x]}}\n",
    "version: 1\nsources: []\nmerge: {method: imm}\n",
    "version: 1\nsources: [{name: m1}]\nmerge: {method: imm, x: y}\n",
    "version: 1\nsources: [{name: m1, checkpoint: m1.safetensors}, {name: m1, checkpoint: m2.safetensors}]\nmerge: {method: imm}\n",
    "version: 1\nsources: {m1: m1.safetensors}\nmerge: {method: imm}\n",
    f"{START}merge: {{method: imm}}\ntarget: {{data: 3}}\n",
    f"{START}merge: {{method: imm}}\ntarget: {{data: x, modalities: [], regions: brats}}\n",
    f"{START}merge: {{method: imm}}\nadapt: {{epochs: -1}}\n",
    f"{START}merge: {{method: imm}}\nadapt: {{epochs: 1e400}}\n",
    f"{START}merge: {{method: imm}}\nfinetune: {{learning_rate: no}}\n",
    f"{START}merge: {{method: imm}}\nfinetune: {{epochs: yes}}\n",
]


def complaint(*words: object, code: int) -> str:
    """The lines of a command that must refuse."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.exit_code, result.output[-500:])
    lines = result.stderr.splitlines()
    assert lines
    assert all(line.startswith("error: ") and "internal error" not in line for line in lines), lines
    return result.stderr


@pytest.mark.parametrize("content", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """By `inspect --values`, which reads all of a file; nothing of it runs, and the file is named."""
    monkeypatch.chdir(tmp_path)
    Path("bad.bin").write_bytes(content)
    assert "bad.bin" in complaint("inspect", "bad.bin", "--values", code=65)
    assert not Path("ran").exists()


NOT_FINITE = {
    "st: NaN": header_of({"a": tensor()}, struct.pack("<2f", 1, float("nan"))),
    "st: Inf": header_of({"a": tensor()}, struct.pack("<2f", 1, float("inf"))),
    "pt: NaN": saved({"a": WEIGHT * float("nan")}),
}


@pytest.mark.parametrize("content", NOT_FINITE.values(), ids=NOT_FINITE)
def test_checkpoints_that_are_not_finite(tmp_path: Path, content: bytes) -> None:
    """They can be looked at, but whatever computes with them checks first; the tensor is named."""
    (tmp_path / "bad.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"values that are not finite: .*bad.bin: found \d NaN or Inf in a"):
        open_checkpoint(tmp_path / "bad.bin").check_finite()


@pytest.mark.parametrize("content", METRICS.values(), ids=METRICS)
def test_tables(tmp_path: Path, content: bytes) -> None:
    """By `compare`, beside a table that is sound."""
    (tmp_path / "bad.csv").write_bytes(content)
    (tmp_path / "good.csv").write_text("subject,region,dice,hd95\na,ET,0.5,1\n")
    assert "bad.csv" in complaint("compare", tmp_path / "good.csv", tmp_path / "bad.csv", "--out", tmp_path / "out", code=65)
    assert not (tmp_path / "out" / "compare.json").exists()


@pytest.mark.parametrize("content", VOLUMES.values(), ids=VOLUMES)
def test_volumes(tmp_path: Path, content: bytes) -> None:
    """By `evaluate`, as a label map beside a sound one: the file is told by its number, and nothing is written."""
    for folder, values in (("pred", content), ("truth", volume())):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "DOE_JOHN.nii.gz").write_bytes(values)
    words = ("--pred", tmp_path / "pred", "--truth", tmp_path / "truth", "--regions", "ET=1", "--out", tmp_path / "out")
    said = complaint("evaluate", *words, code=65)
    assert "prediction 1 by name" in said
    assert "DOE_JOHN" not in said
    assert [] == [path.name for path in tmp_path.glob("out/*") if not path.name.startswith(".")]


def test_as_many_as_planned() -> None:
    """Some 115 files and 40 recipes; nobody takes some away unnoticed."""
    assert (99, 3, 12, 42) == (len(CHECKPOINTS), len(NOT_FINITE), len(METRICS), len(VOLUMES))
    assert len(RECIPES) == len(set(RECIPES)) == 43


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks with their Fisher diagonals."""
    folder = tmp_path_factory.mktemp("sources")
    two_sources(folder)
    return folder


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_recipes(sources: Path, number: int) -> None:
    """By `fuse`: 2, and nothing is written."""
    (sources / "bad.yaml").write_text(RECIPES[number])
    before = sorted(sources.rglob("*"))
    complaint("fuse", "--recipe", sources / "bad.yaml", code=2)
    assert before == sorted(sources.rglob("*"))
