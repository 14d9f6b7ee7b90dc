"""Readers that are our own, given whatever hypothesis thinks of: a value, or an error of ours; never anything else.

MERGEKIT3D_EXAMPLES sets how many examples each test tries (50).
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.datasets.split import read_split
from mergekit3d.errors import InputError, MergeKit3DError
from mergekit3d.plan.ratios import read_ratios
from mergekit3d.recipe.document import parse_document
from mergekit3d.recipe.load import validate_recipe
from mergekit3d.summaries import read_metrics_csv
from mergekit3d.volumes.nifti import read_grid, read_image, read_labels

fuzzed = settings(
    max_examples=int(os.environ.get("MERGEKIT3D_EXAMPLES", "50")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NUMBERS = st.integers(-2, 9) | st.sampled_from([2**31, 2**63, 2**64, -(2**63)])
ENTRIES = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__", "é", ""]),
    st.fixed_dictionaries(
        {}, optional={"dtype": st.sampled_from(["F32", "BF16", "U8", "BOOL", "F7"]) | PLAIN, "shape": st.lists(NUMBERS, max_size=3) | PLAIN,
                      "data_offsets": st.lists(NUMBERS, max_size=3) | PLAIN},
    )
    | PLAIN,
    max_size=3,
)  # fmt: skip


def in_words(error: MergeKit3DError, *codes: int) -> None:
    """An error that says something, a line a problem, with one of these exit codes."""
    assert all(str(error).splitlines())
    assert error.exit_code in codes


def read_all(path: Path) -> None:
    """Every tensor of a checkpoint, or an input error."""
    try:
        opened = open_checkpoint(path)
        for name in opened.entries:
            opened.read(name)
    except InputError as error:
        in_words(error, 65)


@fuzzed
@given(header=ENTRIES, data=st.binary(max_size=16), length=st.none() | st.integers(0, 2**64 - 1))
def test_safetensors_headers(tmp_path: Path, header: object, data: bytes, length: int | None) -> None:
    """Entries with any fields, and any length before them."""
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    read_all(tmp_path / "a.safetensors")


@fuzzed
@given(
    metadata=st.text(max_size=40)
    | st.dictionaries(st.sampled_from(["kind", "format", "seal", "task", "architecture"]), PLAIN).map(json.dumps)
)
def test_our_metadata(tmp_path: Path, metadata: str) -> None:
    """Any text under our key."""
    text = json.dumps({"__metadata__": {"mergekit3d": metadata}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"x")
    read_all(tmp_path / "a.safetensors")


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The members of a TorchScript archive."""
    path = tmp_path_factory.mktemp("scripted") / "a.ts"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@fuzzed
@given(place=st.floats(0, 1), put=st.binary(max_size=6), take=st.integers(0, 6), member=st.sampled_from(["data.pkl", ".py"]))
def test_pickles_and_sources_of_torchscript(
    tmp_path: Path, scripted: dict[str, bytes], place: float, put: bytes, take: int, member: str
) -> None:
    """Bytes of the pickle or of the sources changed, taken out or put in, below a checksum that is right."""
    with zipfile.ZipFile(tmp_path / "a.ts", "w") as archive:
        for name, content in scripted.items():
            at = int(place * len(content)) if name.endswith(member) else None
            archive.writestr(name, content if at is None else content[:at] + put + content[at + take :])
    read_all(tmp_path / "a.ts")


@pytest.mark.parametrize("is_packed", [False, True])
@fuzzed
@given(place=st.integers(0, 351), put=st.binary(min_size=1, max_size=8))
def test_nifti_headers(tmp_path: Path, is_packed: bool, place: int, put: bytes) -> None:
    """Any bytes anywhere in the header: nothing but finite images on sound grids comes out."""
    content = bytearray(nibabel.Nifti1Image(np.ones((2, 3, 4), np.int16), np.diag([1.0, 2, 3, 1])).to_bytes())
    content[place : place + len(put)] = put
    path = tmp_path / "a.nii"
    path.write_bytes(gzip.compress(content, 1) if is_packed else content)
    for read in (read_image, read_labels, read_grid):
        try:
            found = read(path)
        except InputError as error:
            in_words(error, 65)
        else:
            assert np.isfinite(found.affine).all()
            assert abs(np.linalg.det(found.affine[:3, :3])) > 0
            assert read is read_grid or np.isfinite(found.data).all()


@fuzzed
@given(content=st.binary(max_size=60) | PLAIN.map(lambda value: json.dumps(value).encode()))
def test_ratios_splits_and_tables(tmp_path: Path, content: bytes) -> None:
    """Any bytes, and any JSON."""
    for name, read in (("ratios.json", read_ratios), ("split.json", read_split), ("split.yaml", read_split), ("a.csv", read_metrics_csv)):
        (tmp_path / name).write_bytes(content)
        try:
            read(tmp_path / name)
        except MergeKit3DError as error:
            in_words(error, 2, 65)


WORDS = st.sampled_from(
    ["version", "sources", "merge", "method", ": ", "- ", "\n", "  ", "{", "}", "[", "]", "&a ", "*a", "!!int ", "'", '"', "1", "#"]
)


@fuzzed
@given(text=st.text(max_size=60) | st.lists(WORDS, max_size=25).map("".join))
def test_yaml(text: str) -> None:
    """Any text, and texts of YAML's own signs: plain data, or an error with its place."""
    try:
        validate_recipe(parse_document(text, "recipe.yaml"), "recipe.yaml")
    except MergeKit3DError as error:
        in_words(error, 2)


@fuzzed
@given(
    content=st.dictionaries(
        st.sampled_from(["version", "sources", "merge", "target", "adapt", "finetune", "train", "partitions", "architecture"]), PLAIN
    )
)
def test_recipes_of_any_data(content: object) -> None:
    """Any values under the known keys."""
    try:
        validate_recipe(parse_document(json.dumps(content), "recipe.yaml"), "recipe.yaml")
    except MergeKit3DError as error:
        in_words(error, 2)
