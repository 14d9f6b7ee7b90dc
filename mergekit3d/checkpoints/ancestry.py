"""Where a file comes from, over several generations: what its inputs told of their making is carried along in its own metadata.

The records go by the digest of an input's tensors, so that one that several files were made from is kept once, and the tree can be
shown when the inputs are gone. They hold digests, numbers and the short names of sources: no paths, no names of subjects. They are
bounded, the nearest first. A seal shows damage, not forgery: whoever writes a file can make up its ancestors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from mergekit3d.storage.seal import canonical_json

if TYPE_CHECKING:
    from mergekit3d.checkpoints.checkpoint import Checkpoint
    from mergekit3d.checkpoints.metadata import Metadata

MAX_RECORDS = 64
MAX_BYTES = 1 << 16
MAX_NODES = 200
MAX_DEPTH = 16
DIGEST = re.compile(r"[0-9a-f]{64}")
SHORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
NAMES = frozenset({"name", "initialisation"})
"""Keys whose texts are kept: names of sources and of ways to start."""
FILES = {"init": "start", "checkpoint": "weights", "base": "base", "adapted": "adapted"}
"""Keys that hold the digest of a checkpoint's tensors, and what it was to the file."""
INPUTS = frozenset({"sources", "regularised_by", *FILES})
"""Keys of the provenance that name files whose own origin the tree tells."""
FACTS = ("recipe", "ratios", "data", "unlabelled", "seed", "initialisation", "subjects")
"""Keys of the provenance that the tree tells of a file."""


def ancestry_of(inputs: Iterable[Checkpoint | None]) -> dict[str, Any]:
    """Records of the files that another is made from, and of theirs, by the digest of the tensors.

    Args:
        inputs: opened; None and files of other programs tell nothing.

    Returns:
        At most `MAX_RECORDS` records in at most `MAX_BYTES` of JSON; the inputs come first, then the generations before them.
    """
    found: dict[str, Any] = {}
    size = 0
    for digest, record in _nearest_first([checkpoint for checkpoint in inputs if checkpoint is not None]):
        size += len(canonical_json([digest, record]))
        if len(found) == MAX_RECORDS or size > MAX_BYTES:
            break
        found[digest] = record
    return found


def _nearest_first(inputs: list[Checkpoint]) -> Iterator[tuple[str, dict[str, Any]]]:
    told = {}
    for checkpoint in inputs:
        metadata = checkpoint.metadata
        digest = None if metadata is None or metadata.seal is None else metadata.seal.get("tensors")
        if metadata is not None and not checkpoint.is_foreign and _is_digest(digest) and digest not in told:
            told[digest] = metadata
            yield digest, record_of(metadata)
    before: dict[str, Any] = {}
    for metadata in told.values():
        before |= {digest: record for digest, record in metadata.ancestry.items() if _is_digest(digest) and digest not in told}
    roots = [digest for metadata in told.values() for _, _, digest in _inputs_of(metadata.provenance)]
    queue, seen = list(dict.fromkeys(roots)), set(told)
    for digest in queue:  # grows while it is walked
        record = _checked(before.get(digest))
        if digest in seen or record is None:
            continue
        seen.add(digest)
        yield digest, _record(record.get("kind"), record.get("method"), record.get("tool"), record["provenance"])
        queue += [of for _, _, of in _inputs_of(record["provenance"]) if of not in seen]


def record_of(metadata: Metadata) -> dict[str, Any]:
    """What is carried along of a file's metadata."""
    return _record(metadata.kind, metadata.method, metadata.tool.get("version"), metadata.provenance)


def _record(kind: object, method: object, version: object, provenance: Mapping[str, Any]) -> dict[str, Any]:
    texts = {"kind": kind, "method": method, "tool": version}
    kept = {key: _kept(key, value) for key, value in provenance.items() if SHORT_NAME.fullmatch(key)}
    told = {key: text for key, text in texts.items() if isinstance(text, str) and SHORT_NAME.fullmatch(text)}
    return {**told, "provenance": {key: value for key, value in kept.items() if value is not None}}


def _kept(key: str, value: Any) -> Any:
    """A value without texts but digests and short names; None where nothing of it is kept."""
    if isinstance(value, bool | int | float) or _is_digest(value):
        return value
    if isinstance(value, str):
        return value if key in NAMES and SHORT_NAME.fullmatch(value) else None
    if isinstance(value, list) and key in ("sources", "regularised_by"):
        parts = [
            {part: kept for part, inner in item.items() if (kept := _kept(part, inner)) is not None} if isinstance(item, dict) else item
            for item in value
            if isinstance(item, dict) or _is_digest(item)
        ]
        return parts[:MAX_RECORDS] or None
    return None


def _checked(record: Any) -> Mapping[str, Any] | None:
    """A record as a file has it; None where it is none."""
    return record if isinstance(record, Mapping) and isinstance(record.get("provenance"), Mapping) else None


def _is_digest(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def _inputs_of(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str | None, str]]:
    """What every file was that another is made from, its short name, and its digest."""
    for item in _listed(provenance.get("sources")):
        if isinstance(item, dict):
            name = item.get("name") if isinstance(item.get("name"), str) else None
            for key, role in (("checkpoint", "source"), ("fisher", "Fisher diagonal")):
                if _is_digest(item.get(key)):
                    yield role, name, item[key]
        elif _is_digest(item):
            yield "source", None, item
    for key, role in FILES.items():
        if _is_digest(provenance.get(key)):
            yield role, None, provenance[key]
    for item in _listed(provenance.get("regularised_by")):
        if _is_digest(item):
            yield "Fisher diagonal", None, item


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


@dataclass
class _Growing:
    """A tree under way: files that were told once are not told again, which ends loops as well."""

    ancestry: Mapping[str, Any]
    told: set[str] = field(default_factory=set)
    nodes: int = 0

    def below(self, provenance: Mapping[str, Any], depth: int) -> list[dict[str, Any]]:
        found = []
        for role, name, digest in _inputs_of(provenance):
            self.nodes += 1
            if self.nodes > MAX_NODES or depth > MAX_DEPTH:
                break
            record = _checked(self.ancestry.get(digest))
            node: dict[str, Any] = {"role": role, "name": name, "digest": digest, "recorded": record is not None}
            if record is not None and digest in self.told:
                node["told_above"] = True
            elif record is not None:
                self.told.add(digest)
                node |= {key: record.get(key) for key in ("kind", "method", "tool")}
                node["facts"] = _facts(record["provenance"])
                node["inputs"] = self.below(record["provenance"], depth + 1)
            found.append(node)
        return found


def _facts(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {key: provenance[key] for key in FACTS if isinstance(provenance.get(key), str | int | float)}


def origins(metadata: Metadata) -> dict[str, Any]:
    """The tree of files that a file was made from, as plain data.

    Returns:
        method, tool, facts (digests of recipe, ratios and data, seed), and inputs: for each its role, name, digest, whether a record of
        it was carried along, and, the first time it comes up, the same of it.
    """
    tool = metadata.tool.get("version")
    seal = metadata.seal or {}
    growing = _Growing(metadata.ancestry, {seal.get("tensors", "")})
    return {"method": metadata.method, "tool": tool, "facts": _facts(metadata.provenance), "inputs": growing.below(metadata.provenance, 1)}


def origin_lines(tree: Mapping[str, Any]) -> list[str]:
    """The tree of `origins` in lines: a file each, below the one that was made from it; digests by their first 12 digits."""
    lines: list[str] = []

    def grow(inputs: list[dict[str, Any]], before: str) -> None:
        for number, node in enumerate(inputs, 1):
            last = number == len(inputs)
            lines.append(f"{before}{'└─' if last else '├─'} {_node_text(node)}")
            grow(node.get("inputs", []), f"{before}{'   ' if last else '│  '}")

    grow(list(tree["inputs"]), "")
    return lines


def _node_text(node: Mapping[str, Any]) -> str:
    title = " ".join(part for part in (node["role"], node["name"], node["digest"][:12]) if part)
    if node.get("told_above"):
        return f"{title}, told above"
    if not node["recorded"]:
        return f"{title}, of no recorded origin"
    return f"{title}: {_making(node)}"


def _making(node: Mapping[str, Any]) -> str:
    tool = f" by mergekit3d {node['tool']}" if node["tool"] else ""
    return ", ".join([f"{node['method'] or 'unknown'}{tool}", *(f"{key} {_short(value)}" for key, value in node["facts"].items())])


def _short(value: object) -> str:
    return str(value)[:12] if _is_digest(value) else str(value)
