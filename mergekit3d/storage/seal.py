"""The seal of a file: digests of its tensors and of its metadata, which show damage (not forgery)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

HASH_THREADS = 4


def canonical_json(content: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def json_digest(content: Any) -> str:
    """sha256 of the canonical JSON of `content`, hexadecimal."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_digest(dtype: str, shape: Iterable[int], content: Any) -> str:
    """sha256 of one tensor: its dtype, shape and bytes.

    Args:
        dtype: name as in safetensors ("F32").
        shape: sizes of the axes.
        content: the little-endian bytes, as a buffer.
    """
    digest = tensor_hash(dtype, shape)
    digest.update(content)
    return digest.hexdigest()


def tensor_hash(dtype: str, shape: Iterable[int]) -> Hash:
    """What `tensor_digest` computes, for a tensor whose bytes come piece by piece."""
    return hashlib.sha256(canonical_json([dtype, list(shape)]).encode())


def tensors_digest(digests: Mapping[str, str]) -> str:
    """sha256 over every tensor's name and digest, in the order of the names; the identity of a set of weights.

    It depends on neither the file format nor the order in the file.
    """
    return json_digest(sorted(digests.items()))


def hash_in_parallel(names: Iterable[str], digest: Callable[[str], str]) -> dict[str, str]:
    """The digest of every name; hashing releases the interpreter lock, so threads share the work."""
    names = list(names)
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))
