"""safetensors files: read by memory map without torch, written as a stream, one tensor at a time.

Source: the format's specification (huggingface/safetensors): 8 bytes of little-endian header length, a JSON header, the data. Read
here rather than by the package, since the fusion streams: raw bytes without a copy, and a header whose seal is known last.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mergekit3d.checkpoints.checkpoint import ITEM_SIZES, Checkpoint, TensorEntry, buffer_of, encode
from mergekit3d.checkpoints.formats import Format, refuse_template, register, stamp_of
from mergekit3d.checkpoints.metadata import KEY, Metadata, looks_like_metadata, parse_metadata
from mergekit3d.checkpoints.reading import cut, reader
from mergekit3d.errors import InputError
from mergekit3d.storage.atomic import atomic_open
from mergekit3d.storage.seal import tensor_digest, tensors_digest
from mergekit3d.storage.steady import refuse_changed

if TYPE_CHECKING:
    import numpy as np

MAX_HEADER_BYTES = 8 << 20
MAX_AXES = 64
MAX_ENTRIES = 1 << 59
ALIGNMENT = 8


def recognises(_: Path, head: bytes) -> bool:
    """Whether a file that begins with these bytes is a safetensors file."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] <= (1 << 40)


def open_safetensors(path: Path) -> Checkpoint:
    """Open a safetensors file; nothing but its header is read.

    Raises:
        InputError: a header that is damaged, too large or does not fit the file.
    """
    before = stamp_of(path)
    with open(path, "rb") as file:
        refuse_changed(before, file.fileno(), path)
        header, start = _read_header(file, before.size, path)
        texts = header.pop("__metadata__", None) or {}
        entries, spans = _entries(header, before.size - start, path)
        metadata = _metadata(texts, path)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        descriptor = os.dup(file.fileno())
    view = memoryview(mapped)
    read_into = reader(path, descriptor, lambda name: start + spans[name][0], before)

    def content(name: str) -> memoryview:
        first, last = spans[name]
        # Touching a mapped page behind the end of a file ends the process.
        if os.fstat(descriptor).st_size < start + last:
            raise cut(path, name, last - first)
        refuse_changed(before, descriptor, path)
        return view[start + first : start + last]

    return Checkpoint(
        path=path,
        entries=entries,
        metadata=metadata,
        content=content,
        read_into=read_into if hasattr(os, "preadv") else None,
        aliases=_aliases(metadata, entries, path),
        aliases_are_stored=True,
        check_steady=lambda: refuse_changed(before, descriptor, path),
    )


def _aliases(metadata: Metadata | None, entries: Mapping[str, TensorEntry], path: Path) -> Mapping[str, str]:
    """The further names that a file of ours tells of."""
    found = {} if metadata is None else metadata.aliases
    for name, owner in found.items():
        known = name in entries and owner in entries and owner not in found
        if not known or (entries[name].dtype, entries[name].shape) != (entries[owner].dtype, entries[owner].shape):
            raise damaged(path, f"the tensor {name!r} as one more name of {owner!r}")
    return found


def _metadata(texts: Any, path: Path) -> Metadata | None:
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise damaged(path, "metadata that is no mapping of texts")
    if KEY in texts:
        return parse_metadata(texts[KEY], path)
    for key, text in texts.items():
        # A flipped letter in the key would make a sealed file pass for one without a seal.
        if looks_like_metadata(text):
            raise damaged(path, f"metadata of mergekit3d under the key {key!r}")
    return None


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise damaged(path, f"a header of {length} bytes in a file of {size}")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"a header that is no JSON ({error})"[:200]) from error
    if not isinstance(header, dict):
        raise damaged(path, "a header that is no JSON object")
    return header, 8 + length


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return content


def _entries(header: Mapping[str, Any], data_size: int, path: Path) -> tuple[dict[str, TensorEntry], dict[str, tuple[int, int]]]:
    entries, spans = {}, {}
    for name, fields in header.items():
        try:
            dtype, shape, (first, last) = str(fields["dtype"]), tuple(fields["shape"]), fields["data_offsets"]
            integral = all(type(number) is int and number >= 0 for number in (*shape, first, last))
            name.encode()
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, f"tensor {name!r} without a proper name, dtype, shape or offsets") from error
        if dtype not in ITEM_SIZES:
            raise damaged(path, f"tensor {name!r} of the unknown dtype {dtype!r}")
        if not integral or last - first != math.prod(shape) * ITEM_SIZES[dtype]:
            raise damaged(path, f"tensor {name!r} whose shape and offsets do not agree")
        if len(shape) > MAX_AXES or math.prod(max(length, 1) for length in shape) > MAX_ENTRIES:
            raise damaged(path, f"tensor {name!r} of a shape that no array has")
        entries[name] = TensorEntry(name, dtype, shape)
        spans[name] = (first, last)
    end = 0
    for first, last in sorted(spans.values()):
        if first != end:
            raise damaged(path, "tensors that overlap or leave gaps")
        end = last
    if end != data_size:
        raise damaged(path, f"{data_size} bytes of data where the header tells of {end}")
    return entries, spans


def damaged(path: Path, found: str) -> InputError:
    """The error of a file that is no intact safetensors file."""
    return InputError("damaged safetensors file", where=path, found=found, todo="restore it from a copy")


def write_stream(path: Path, entries: Sequence[TensorEntry], values: Callable[[TensorEntry], np.ndarray], metadata: Metadata) -> Metadata:
    """Write a safetensors file atomically, one tensor at a time, and seal it.

    Args:
        path: the final name.
        entries: the tensors to write, in order.
        values: computes one tensor (any float dtype for a float entry); called once each, in order.
        metadata: what the file says of itself, without its seal.

    Returns:
        The metadata with the seal.

    Raises:
        OutputError: the file system refused; the previous file stays.
    """
    placeholder, _, _ = header_bytes(entries, metadata.sealed("0" * 64))
    digests = {}
    with atomic_open(path) as file:
        file.write(placeholder)
        for entry in entries:
            content = encode(values(entry), entry.dtype)
            if content.shape != entry.shape:
                raise ValueError(f"{entry.name}: planned shape {entry.shape}, computed {content.shape}")
            buffer = buffer_of(content)
            digests[entry.name] = tensor_digest(entry.dtype, entry.shape, buffer)
            file.write(buffer)
        sealed = metadata.sealed(tensors_digest(digests))
        header, _, _ = header_bytes(entries, sealed)
        assert len(header) == len(placeholder)
        file.seek(0)
        file.write(header)
    return sealed


def header_bytes(entries: Sequence[TensorEntry], metadata: Metadata) -> tuple[bytes, dict[str, int], int]:
    """What a file begins with, where in the file each tensor begins, and the size of the file.

    The length of the header depends on the names, dtypes and shapes and on the length of the metadata's text alone.
    """
    header: dict[str, Any] = {"__metadata__": {KEY: metadata.as_text()}}
    places, end = {}, 0
    for entry in entries:
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [end, end + entry.nbytes]}
        places[entry.name], end = end, end + entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: start + place for name, place in places.items()}, start + end


def write_safetensors(
    path: Path, tensors: Iterable[tuple[TensorEntry, np.ndarray]], metadata: Metadata, like: Path | None = None
) -> Metadata:
    """Write tensors that are in memory; see `write_stream`."""
    refuse_template(like, "safetensors")
    by_name = {entry.name: (entry, values) for entry, values in tensors}
    return write_stream(path, [entry for entry, _ in by_name.values()], lambda entry: by_name[entry.name][1], metadata)


SAFETENSORS = register(
    Format("safetensors", recognises=recognises, open=open_safetensors, write=write_safetensors, suffixes=(".safetensors",))
)
