"""Sound files of every kind that people have: all of them must load, with the right values."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from safetensors.torch import save_file

from mergekit3d.checkpoints import open_checkpoint, recognised_format
from mergekit3d.datasets.find import find_dataset
from mergekit3d.plan.ratios import read_ratios
from mergekit3d.recipe import load_recipe
from mergekit3d.summaries import read_metrics_csv
from mergekit3d.verbs.fuse import fuse
from mergekit3d.volumes.nifti import read_image, read_labels
from tests.builders import save_nnunet, save_source, two_sources

VALUES = np.arange(24).reshape(2, 3, 4)
AFFINE = np.array([[2.0, 0, 0, -5], [0, 3, 0, 7], [0, 0, 1.5, 11], [0, 0, 0, 1]])


def packed(image: nibabel.Nifti1Image) -> bytes:
    return gzip.compress(image.to_bytes())


def image_of(values: np.ndarray = VALUES, affine: np.ndarray | None = AFFINE, kind: type = nibabel.Nifti1Image, **fields: object) -> object:
    image = kind(values, affine)
    for name, value in fields.items():
        image.header[name] = value
    return image


def only(*, qform: int, sform: int) -> bytes:
    """A file whose place is told by one of the two forms, by both, or by neither."""
    image = image_of(VALUES.astype(np.int16))
    image.set_sform(AFFINE if sform else None, code=sform)
    image.set_qform(AFFINE if qform else None, code=qform)
    return image.to_bytes()


def extended(*contents: tuple[int | str, bytes]) -> bytes:
    image = image_of(VALUES.astype(np.int16))
    image.header.extensions.extend(nibabel.nifti1.Nifti1Extension(code, content) for code, content in contents)
    return image.to_bytes()


def scaled(slope: float, intercept: float) -> bytes:
    """Stored whole numbers that stand for slope * stored + intercept."""
    content = bytearray(image_of(VALUES.astype(np.int16)).to_bytes())
    content[112:120] = struct.pack("<2f", slope, intercept)
    return bytes(content)


def big_endian(kind: type) -> bytes:
    header = kind.header_class(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    return kind(VALUES.astype(">i2"), AFFINE, header).to_bytes()


def multi_member() -> bytes:
    """A gzip stream of several members, as pigz, bgzip and cat make them, with and without names and time stamps in their headers."""
    content = image_of(VALUES.astype(np.int16)).to_bytes()
    named = io.BytesIO()
    with gzip.GzipFile("a.nii", "wb", fileobj=named, mtime=1_700_000_000) as file:
        file.write(content[:100])
    return named.getvalue() + gzip.compress(content[100:360]) + gzip.compress(b"") + gzip.compress(content[360:])


WHOLE = VALUES.astype(np.float32)
VOLUMES: dict[str, bytes] = {
    **{
        dtype: nibabel.Nifti1Image(VALUES.astype(dtype), AFFINE, dtype=dtype).to_bytes()
        for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
    },
    "gzip": packed(image_of(VALUES.astype(np.int16))),
    "gzip, stored": gzip.compress(image_of(VALUES.astype(np.int16)).to_bytes(), 0),
    "gzip, several members": multi_member(),
    "gzip, zeros behind": packed(image_of(VALUES.astype(np.int16))) + b"\0" * 512,
    "big endian": big_endian(nibabel.Nifti1Image),
    "NIfTI-2": image_of(VALUES.astype(np.int16), kind=nibabel.Nifti2Image).to_bytes(),
    "NIfTI-2, big endian": big_endian(nibabel.Nifti2Image),
    "extension: comment": extended(("comment", b"DOE^JOHN 1970-01-01")),
    "extensions: AFNI, DICOM, unknown": extended(("afni", b"<AFNI_attributes/>"), ("comment", b"x" * 5000), (1000, b"\0\1\2")),
    "qform alone": only(qform=1, sform=0),
    "sform alone": only(qform=0, sform=1),
    "qform and sform": only(qform=1, sform=1),
    "sform of a template, qform of the scanner": only(qform=1, sform=4),
    "slope of 0": scaled(0, 0),
    "slope of NaN": scaled(float("nan"), float("nan")),
    "slope of 1": scaled(1, 0),
    "a fourth axis of one": image_of(VALUES.astype(np.int16)[..., None]).to_bytes(),
    "four and five axes of one": image_of(VALUES.astype(np.int16)[..., None, None]).to_bytes(),
    "bytes behind": image_of(VALUES.astype(np.int16)).to_bytes() + b"trailing",
    "texts in the header": image_of(VALUES.astype(np.int16), descrip=b"FSL5.0 \xe9", aux_file=b"none", intent_name=b"x").to_bytes(),
    "limits of display": image_of(VALUES.astype(np.int16), cal_max=5, cal_min=-5).to_bytes(),
    "units of micrometres and seconds": image_of(VALUES.astype(np.int16), xyzt_units=3 + 8).to_bytes(),
    "rotated": image_of(VALUES.astype(np.int16), np.array([[1.9, -0.6, 0, 3], [0.6, 1.9, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1]])).to_bytes(),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes(tmp_path: Path, name: str) -> None:
    """As an image and as a label map."""
    path = tmp_path / ("a.nii.gz" if "gzip" in name else "a.nii")
    path.write_bytes(VOLUMES[name])
    assert np.array_equal(WHOLE, read_image(path).data)
    labels = read_labels(path)
    assert np.array_equal(VALUES, labels.data)
    if name not in ("rotated",):
        assert np.allclose(AFFINE, labels.affine)


@pytest.mark.parametrize(("slope", "intercept"), [(2, 0), (0.5, -3), (-1, 30), (2.5e-3, 7)])
def test_scaled_volumes(tmp_path: Path, slope: float, intercept: float) -> None:
    """As float32; a label map too, where whole numbers come out."""
    (tmp_path / "a.nii").write_bytes(scaled(slope, intercept))
    assert np.allclose(VALUES * slope + intercept, read_image(tmp_path / "a.nii").data)
    if slope == 2:
        assert np.array_equal(2 * VALUES, read_labels(tmp_path / "a.nii").data)


ORDERS = [f"{x}{y}{z}" for x in "RL" for y in "AP" for z in "SI"] + ["ASR", "SRA", "PSR", "IPL", "SLP", "LSA"]


@pytest.mark.parametrize("order", ORDERS)
def test_orders_of_axes(tmp_path: Path, order: str) -> None:
    """The same anatomy in any order and direction is the same array in RAS+, at the same place."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(order)))
    turned = nibabel.orientations.apply_orientation(VALUES.astype(np.int16), turn)
    nibabel.save(nibabel.Nifti1Image(turned, AFFINE @ inv_ornt_aff(turn, VALUES.shape)), tmp_path / "a.nii.gz")
    found = read_image(tmp_path / "a.nii.gz")
    assert np.array_equal(WHOLE, found.data)
    assert np.allclose(AFFINE, found.affine)


TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([0.5, -2.0])}
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def saved(content: object, **keywords: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path, **keywords)


def raw(header: dict[str, object], data: bytes, *, padding: int = 0, before: str = "") -> Callable[[Path], None]:
    """A safetensors file by hand."""
    text = before.encode() + json.dumps(header).encode() + b" " * padding
    return lambda path: path.write_bytes(struct.pack("<Q", len(text)) + text + data)


WEIGHT = {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]}
BIAS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = TENSORS["a.bias"].numpy().tobytes() + TENSORS["a.weight"].numpy().tobytes()
LIGHTNING = {"epoch": 1, "pytorch-lightning_version": "2.5.1", "state_dict": {f"net.{name}": tensor for name, tensor in TENSORS.items()}}
CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    **{f".pt of {dtype}": saved({name: tensor.to(dtype) for name, tensor in TENSORS.items()}) for dtype in FLOATS},
    **{
        f"legacy .pt of {dtype}": saved({name: tensor.to(dtype) for name, tensor in TENSORS.items()}, _use_new_zipfile_serialization=False)
        for dtype in FLOATS
    },
    **{
        f"safetensors of {dtype}": (lambda path, dtype=dtype: save_file({name: tensor.to(dtype) for name, tensor in TENSORS.items()}, path))
        for dtype in FLOATS
    },
    **{f".pt with a counter of {dtype}": saved({**TENSORS, "counter": torch.tensor(1).to(dtype)}) for dtype in INTEGERS},
    **{f".pt under {key}": saved({key: TENSORS, "epoch": 3}) for key in ("state_dict", "model")},
    **{
        f".pt with {prefix}": saved({f"{prefix}{name}": tensor for name, tensor in TENSORS.items()})
        for prefix in ("module.", "_orig_mod.", "module._orig_mod.")
    },
    ".pt of parameters": saved({name: torch.nn.Parameter(tensor) for name, tensor in TENSORS.items()}),
    ".pt of a module's state": saved(torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2)}).state_dict()),
    ".pt with an optimizer": saved(
        {"state_dict": TENSORS, "optimizer": torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]).state_dict()}
    ),
    ".pt with aliases": saved({**TENSORS, "b.weight": TENSORS["a.weight"]}),
    ".pt of views of one storage": saved(
        dict(zip(TENSORS, [torch.arange(6.0).reshape(2, 3), torch.tensor([9, 0.5, -2.0])[1:]], strict=True))
    ),
    ".pt transposed": saved({**TENSORS, "a.weight": torch.arange(6.0).reshape(2, 3).t().contiguous().t()}),
    ".pt with an empty tensor": saved({**TENSORS, "none": torch.ones(0, 3)}),
    ".pt with empty fields": saved({"state_dict": TENSORS, "hyper_parameters": {}, "loops": None, "callbacks": {}, "note": ""}),
    "Lightning": saved(LIGHTNING),
    "Lightning, with empty fields": saved(
        {**LIGHTNING, "optimizer_states": [], "lr_schedulers": [], "callbacks": {}, "hyper_parameters": {}}
    ),
    "safetensors, unsorted": raw({"a.weight": WEIGHT, "a.bias": BIAS}, DATA),
    "safetensors, padded": raw({"a.bias": BIAS, "a.weight": WEIGHT}, DATA, padding=77),
    "safetensors, metadata of others": raw({"__metadata__": {"format": "pt", "license": "é"}, "a.weight": WEIGHT, "a.bias": BIAS}, DATA),
    "safetensors, metadata empty": raw({"__metadata__": {}, "a.weight": WEIGHT, "a.bias": BIAS}, DATA),
    "safetensors, metadata null": raw({"__metadata__": None, "a.weight": WEIGHT, "a.bias": BIAS}, DATA),
    "safetensors, a scalar": raw(
        {"a.weight": WEIGHT, "a.bias": BIAS, "s": {"dtype": "F32", "shape": [], "data_offsets": [32, 36]}}, DATA + b"\0" * 4
    ),
    "safetensors, an empty tensor": raw(
        {"a.weight": WEIGHT, "a.bias": BIAS, "s": {"dtype": "F16", "shape": [0, 3], "data_offsets": [32, 32]}}, DATA
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(tmp_path: Path, name: str) -> None:
    """By their content, whatever they are called."""
    path = tmp_path / "model.bin"
    CHECKPOINTS[name](path)
    opened = open_checkpoint(path)
    opened.check_finite()
    assert {"a.weight", "a.bias"} <= set(opened.entries)
    if "module's" not in name:
        assert TENSORS["a.weight"].tolist() == opened.read("a.weight").tolist()
        assert TENSORS["a.bias"].tolist() == opened.read("a.bias").tolist()
    assert ({"b.weight": "a.weight"} if "aliases" in name else {}) == dict(opened.aliases)


@pytest.mark.parametrize(
    "content", [{}, {"logging": {}, "optimizer_state": None}, {"trainer_name": "nnUNetTrainer_250epochs", "_best_ema": None}]
)
def test_checkpoints_of_nnunet(tmp_path: Path, content: dict[str, object]) -> None:
    """As nnU-Net 2.8 writes them, with fields that are empty or other than usual."""
    whole = save_nnunet(tmp_path / "checkpoint_final.pth", **content)
    opened = open_checkpoint(tmp_path / "checkpoint_final.pth")
    assert "nnunet" == recognised_format(tmp_path / "checkpoint_final.pth").name
    assert len(whole["network_weights"]) == len(opened.entries)


RATIOS = {"sources": ["m1", "m2"], "granularity": "layer", "layers": {"encoder.0": [0.25, 0.75]}}
ENCODED = {
    "plain": lambda text: text.encode(),
    "BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "BOM and CRLF": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "blank lines at the end": lambda text: (text + "\n\n").encode(),
}


@pytest.mark.parametrize("way", ENCODED)
def test_small_files(tmp_path: Path, way: str) -> None:
    """Ratios, tables, lists of subjects and recipes, as editors on any system save them."""
    for name in ("a", "b"):
        (tmp_path / f"{name}_t1.nii.gz").write_bytes(VOLUMES["gzip"])
    texts = {
        "ratios.json": json.dumps(RATIOS, indent=2) + "\n",
        "metrics.csv": "subject,region,dice,hd95\na,ET,0.5,1\nb,ET,0.25,\n",
        **{f"list{number}.csv": f"subject{mark}t1\na{mark}a_t1.nii.gz\nb{mark}b_t1.nii.gz\n" for number, mark in enumerate(",;")},
        "list.tsv": "subject\tt1\na\ta_t1.nii.gz\nb\tb_t1.nii.gz\n",
        "r.yaml": "# a comment\nversion: 1  # and another\n\nname: r\nmerge:\n  method: imm\n  out: 'f.pt'\nadapt: {learning_rate: 1e-8}\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(ENCODED[way](text))
    assert {"encoder.0": [0.25, 0.75]} == read_ratios(tmp_path / "ratios.json").layers
    assert 2 == len(read_metrics_csv(tmp_path / "metrics.csv"))
    for name in ("list0.csv", "list1.csv", "list.tsv"):
        assert ["a", "b"] == [subject.name for subject in find_dataset(tmp_path / name).subjects]
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    assert ("r", "imm", 1e-8) == (recipe.name, recipe.merge.method, recipe.adapt.learning_rate)


YAML = {
    "YAML 1.2 scalars": ("target: {data: no, regions: {ET: [0x4], TC: [0o1, 4]}}", lambda recipe: recipe.target.data == "no"),
    "block and flow mixed": (
        "merge:\n  method: timm\n  granularity: {a: [encoder.*, x], rest: '*'}",
        lambda recipe: set(recipe.merge.granularity) == {"a", "rest"},
    ),
    "quoted keys": ("'merge': {\"method\": imm}", lambda recipe: recipe.merge.method == "imm"),
    "folded text": ("target:\n  data: >-\n    a\n    b", lambda recipe: recipe.target.data == "a b"),
    "a document's marks": ("---\nversion: 1\nseed: 3\n...\n", lambda recipe: recipe.seed == 3),
    "null": ("target: ~\nadapt: {patience: null}", lambda recipe: recipe.target is None and recipe.adapt.patience is None),
    "letters of the world": ("data: {hcp: /données/脳/🧠}", lambda recipe: recipe.data["hcp"].name == "🧠"),
    "numbers of every form": (
        "adapt: {learning_rate: +.5e-3, epochs: 010}",
        lambda recipe: (5e-4, 10) == (recipe.adapt.learning_rate, recipe.adapt.epochs),
    ),
}


@pytest.mark.parametrize("name", YAML)
def test_recipes(tmp_path: Path, name: str) -> None:
    """What YAML allows and people write."""
    text, is_right = YAML[name]
    (tmp_path / "r.yaml").write_text(text if "version" in text else f"version: 1\n{text}\n", encoding="utf-8")
    assert is_right(load_recipe(tmp_path / "r.yaml").recipe)


NAMES = [
    "with space",
    "line\nend",
    "tab\tbed",
    "🧠",
    "e\u0301 combining",
    "漢字",
    "-dash",
    "'quote\"",
    "a;b&c|d$(e)`f`",
    "%s%d{0}",
    "a" * 200,
]


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"latin-\xe9-\xff")])
def test_names(tmp_path: Path, name: str) -> None:
    """Of folders, checkpoints, recipes and volumes: everything works with them, from reading to a fusion."""
    if sys.platform == "darwin" and not name.isprintable():
        pytest.skip("the file system has names in UTF-8 alone")
    folder = tmp_path / name
    folder.mkdir()
    two_sources(folder)
    for number in (1, 2):
        save_source(folder / f"{name}{number}.pt", seed=number)
    # A recipe is UTF-8, and cannot say other names.
    first, second = (f"{name}1.pt", f"{name}2.pt") if "\udcff" not in name else ("m1.safetensors", "m2.safetensors")
    sources = json.dumps([{"name": "m1", "checkpoint": first}, {"name": "m2", "checkpoint": second}], ensure_ascii=False)
    (folder / f"{name}.yaml").write_text(f"version: 1\nname: r\nsources: {sources}\nmerge: {{method: linear}}\n", encoding="utf-8")
    result = fuse(folder / f"{name}.yaml")
    assert open_checkpoint(result.out).metadata.method == "linear"
    (folder / f"{name}.nii.gz").write_bytes(VOLUMES["gzip"])
    assert np.array_equal(WHOLE, read_image(folder / f"{name}.nii.gz").data)


def test_as_many_as_there_were() -> None:
    """Nobody takes some away unnoticed."""
    assert (33, 14, 40, 6, 8, 11) == (len(VOLUMES), len(ORDERS), len(CHECKPOINTS), len(ENCODED), len(YAML), len(NAMES))
