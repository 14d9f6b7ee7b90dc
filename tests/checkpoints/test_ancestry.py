"""Where a file comes from: records of its inputs, and of theirs, travel in its metadata and are shown as a tree when they are gone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mergekit3d.checkpoints import FISHER, Metadata, ancestry_of, open_checkpoint
from mergekit3d.checkpoints.ancestry import MAX_BYTES, MAX_DEPTH, MAX_NODES, MAX_RECORDS, origin_lines, origins
from mergekit3d.checkpoints.metadata import looks_like_metadata
from mergekit3d.checkpoints.safetensors import MAX_HEADER_BYTES
from mergekit3d.options import Options
from mergekit3d.storage.seal import canonical_json
from mergekit3d.verbs.convert import convert
from mergekit3d.verbs.fuse import fuse
from mergekit3d.verbs.inspect import inspect
from tests.builders import metadata_of, random_state, save, save_fisher, save_source, spec_of, task_of, write_recipe

DATA = "d" * 64


def child(path: Path, parent: Path | None, method: str = "train", **provenance: object) -> Path:
    """A checkpoint that was trained from another, as the trainings write it."""
    opened = [] if parent is None else [open_checkpoint(parent)]
    origin = {} if parent is None else {"init": opened[0].digest}
    seed = int.from_bytes(path.stem.encode()[-4:], "big")
    metadata = metadata_of(spec_of(), task_of(), method=method, provenance={**origin, **provenance}, ancestry=ancestry_of(opened))
    save(path, random_state(spec_of(), seed), metadata)
    return path


def fisher_of(path: Path, seed: int) -> Path:
    """The Fisher diagonal beside a checkpoint, as `fisher` writes it."""
    save_fisher(path, seed)
    out, opened = path.with_name(f"{path.stem}.fisher.safetensors"), open_checkpoint(path)
    diagonal = open_checkpoint(out)
    told = {"checkpoint": opened.digest, "data": DATA, "trace_by_layer": {"encoder": [1.0, None]}}
    metadata = metadata_of(kind=FISHER, method="fisher-sampled", provenance=told, ancestry=ancestry_of([opened]))
    save(out, {name: diagonal.read(name).copy() for name in diagonal.entries}, metadata)
    return out


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    """m2 was trained from m1; both were merged; nothing but the merge is left."""
    m1 = child(tmp_path / "m1.safetensors", None, data=DATA, seed=3)
    m2 = child(tmp_path / "m2.safetensors", m1, data=DATA, seed=4)
    for number, path in enumerate((m1, m2)):
        fisher_of(path, number)
    sources = "[{name: m1, checkpoint: m1.safetensors}, {name: m2, checkpoint: m2.safetensors}]"
    out = fuse(write_recipe(tmp_path, f"version: 1\nsources: {sources}\nmerge: {{method: imm}}\n")).out
    for path in tmp_path.glob("m*.safetensors"):
        path.unlink()
    return out


def test_tree_of_a_merge_whose_sources_are_gone(fused: Path) -> None:
    """Sources, their Fisher diagonals, and what each was trained from; a file that comes up again is not told twice."""
    content = inspect([fused]).as_json()["origins"]
    m1, m1_fisher, m2, m2_fisher = content["inputs"]

    assert ("imm", {"ratios", "recipe", "seed"}) == (content["method"], set(content["facts"]))
    assert [("source", "m1"), ("Fisher diagonal", "m1"), ("source", "m2"), ("Fisher diagonal", "m2")] == [
        (node["role"], node["name"]) for node in content["inputs"]
    ]
    assert ("train", {"data": DATA, "seed": 3}, []) == (m1["method"], m1["facts"], m1["inputs"])
    assert [("start", m1["digest"], True)] == [(node["role"], node["digest"], node["told_above"]) for node in m2["inputs"]]
    assert [m1["digest"]] == [node["digest"] for node in m1_fisher["inputs"]]
    assert ("fisher-sampled", DATA) == (m2_fisher["method"], m2_fisher["facts"]["data"])


def test_tree_in_lines(fused: Path) -> None:
    """A file each, below what was made from it."""
    lines = [line for line in inspect([fused]).lines() if "─" in line]
    wanted = (
        "├─ source m1", "├─ Fisher diagonal m1", "│  └─ weights", "├─ source m2", "│  └─ start", "└─ Fisher diagonal m2", "   └─ weights"
    )  # fmt: skip

    assert list(wanted) == [line[14 : 14 + len(beginning)] for line, beginning in zip(lines, wanted, strict=True)]
    assert lines[0].startswith("  made from")
    assert "train" in lines[0]
    assert "told above" in lines[2]


def test_tree_survives_formats_and_trainings(fused: Path, tmp_path: Path) -> None:
    """A conversion keeps it; what is trained from the merge has the merge, and what is below it."""
    convert(fused, tmp_path / "fused.pt")
    assert origins(open_checkpoint(fused).metadata) == origins(open_checkpoint(tmp_path / "fused.pt").metadata)
    tuned = origins(open_checkpoint(child(tmp_path / "tuned.safetensors", tmp_path / "fused.pt", "finetune")).metadata)

    assert ["imm"] == [node["method"] for node in tuned["inputs"]]
    assert 4 == len(tuned["inputs"][0]["inputs"])


def test_records_are_sealed(fused: Path) -> None:
    """A changed ancestor is damage like any other."""
    metadata = open_checkpoint(fused).metadata
    digest = next(iter(metadata.ancestry))
    forged = replace(metadata, ancestry={**metadata.ancestry, digest: {"kind": "checkpoint", "provenance": {}}})

    assert metadata.metadata_intact()
    assert not forged.metadata_intact()
    assert looks_like_metadata(metadata.as_text())


def test_records_hold_no_texts_but_short_names(tmp_path: Path) -> None:
    """Paths and names of subjects that an input's metadata holds go no further."""
    told = {"data": DATA, "subjects": ["DOE_JOHN"], "note": "DOE_JOHN", "path": "/home/x", "initialisation": "/home/x", "seed": 1,
            "sources": [{"name": "DOE JOHN", "checkpoint": DATA, "fisher": None, "path": "/home/x"}], "DOE JOHN": 1}  # fmt: skip
    path = tmp_path / "m.safetensors"
    save(path, {"x": np.ones(1)}, metadata_of(provenance=told, method="DOE JOHN", tool={"name": "x", "version": "/home/x"}))
    ((_, record),) = ancestry_of([open_checkpoint(path)]).items()

    assert {"kind": "checkpoint", "provenance": {"data": DATA, "seed": 1, "sources": [{"checkpoint": DATA}]}} == record


def test_generations_are_bounded(tmp_path: Path) -> None:
    """The nearest are kept, and the file stays small."""
    path = None
    for number in range(MAX_RECORDS + 8):
        parent, path = path, tmp_path / f"g{number % 2}-{number:03}.safetensors"
        metadata = metadata_of(
            provenance={} if parent is None else {"init": open_checkpoint(parent).digest},
            ancestry={} if parent is None else ancestry_of([open_checkpoint(parent)]),
        )
        save(path, {"x": np.full(1, number, np.float32)}, metadata)
    ancestry = open_checkpoint(path).metadata.ancestry
    depth, node = 0, origins(open_checkpoint(path).metadata)
    while node.get("inputs"):
        depth, node = depth + 1, node["inputs"][0]

    assert MAX_RECORDS == len(ancestry)
    assert len(canonical_json(ancestry)) <= MAX_BYTES + 4 * MAX_RECORDS < MAX_HEADER_BYTES
    assert MAX_DEPTH == depth
    assert open_checkpoint(parent).digest in ancestry


FORGED = {
    "of itself": {DATA: {"kind": "checkpoint", "method": "train", "provenance": {"init": DATA}}},
    "no mapping": {DATA: [1]},
    "no provenance": {DATA: {"provenance": 3}},
    "sources of numbers": {DATA: {"provenance": {"sources": [1, None, {"checkpoint": 3, "name": []}]}}},
    "very wide": {DATA: {"provenance": {"sources": [{"name": "m", "checkpoint": f"{number:064x}"} for number in range(5000)]}}},
    "two of each other": {DATA: {"provenance": {"init": "e" * 64}}, "e" * 64: {"provenance": {"init": DATA, "base": "f" * 64}}},
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_forged_records_end(tmp_path: Path, forged: dict[str, object]) -> None:
    """Loops, other types and thousands of sources: a bounded tree, and lines that can be printed."""
    metadata = Metadata(kind="checkpoint", method="train", provenance={"init": DATA}, ancestry=forged)
    lines = origin_lines(origins(metadata))

    assert 1 <= len(lines) <= MAX_NODES
    assert json.dumps(origins(metadata))
    save(tmp_path / "a.safetensors", {"x": np.ones(1, np.float32)}, metadata)
    assert len(ancestry_of([open_checkpoint(tmp_path / "a.safetensors")])) <= MAX_RECORDS


def test_files_of_others_have_no_recorded_origin(tmp_path: Path) -> None:
    """They are told by their digest alone."""
    save_source(tmp_path / "m1.safetensors", seed=1)
    from safetensors.numpy import save_file

    save_file(random_state(spec_of(), 2), tmp_path / "m2.safetensors")
    sources = "[{name: m1, checkpoint: m1.safetensors}, {name: m2, checkpoint: m2.safetensors}]"
    recipe = write_recipe(tmp_path, f"version: 1\nsources: {sources}\nmerge: {{method: linear}}\n")
    lines = inspect([fuse(recipe, options=Options()).out]).lines()

    assert any("└─ source m2" in line and line.endswith("of no recorded origin") for line in lines)
