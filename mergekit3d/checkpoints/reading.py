"""Bytes of tensors read from an open file rather than from a memory map: a file that is cut meanwhile is an error, not a crash."""

from __future__ import annotations

import mmap
import os
import sys
import weakref
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mergekit3d.errors import InputError
from mergekit3d.storage.steady import Stamp, refuse_changed

ReadInto = Callable[[str, int, memoryview], None]
LOCAL_HEADER_BYTES = 30


def reader(path: Path, descriptor: int, place_of: Callable[[str], int], before: Stamp) -> ReadInto:
    """A function that fills a buffer with the bytes of a tensor from an offset on.

    Args:
        path: for error texts.
        descriptor: the open file; it is closed when the function is gone.
        place_of: where in the file a tensor begins.
        before: the stamp of the file when it was opened: bytes of another content are an error.
    """

    def read_into(name: str, offset: int, buffer: memoryview) -> None:
        place, wanted = place_of(name) + offset, len(buffer)
        try:
            while buffer:
                count = os.preadv(descriptor, [buffer], place)
                if count == 0:
                    raise cut(path, name, wanted)
                buffer, place = buffer[count:], place + count
            refuse_changed(before, descriptor, path)
        except OSError as error:
            raise InputError("cannot read the file", where=path, found=(error.strerror or "an error").lower()) from error

    weakref.finalize(read_into, os.close, descriptor)
    return read_into


def cut(path: Path, name: str, wanted: int) -> InputError:
    """The error of a file that became shorter while it was read."""
    return InputError("the file was cut while it was read", where=path, wanted=f"{wanted} bytes of {name}", found="its end")


def places_in_archive(path: Path, state: Mapping[str, Any]) -> dict[str, int]:
    """Where in an archive of torch each contiguous tensor begins that `torch.load` mapped from it.

    torch does not tell, but how far the storages lie apart in memory is how far the members lie apart in the file, and a map
    begins on a page: where that fits one way alone, it is known.

    Returns:
        Offsets by name; none where it cannot be told, or where the file has another byte order.
    """
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values() if tensor.numel()}
    members = _members(path)
    if not sizes or not members:
        return {}
    first = min(sizes)
    bases = [
        first - offset
        for offset in members
        if (first - offset) % mmap.PAGESIZE == 0 and all(members.get(place - first + offset) == size for place, size in sizes.items())
    ]
    if len(bases) != 1:
        return {}
    return {name: tensor.data_ptr() - bases[0] for name, tensor in state.items() if tensor.numel() and tensor.is_contiguous()}


def _members(path: Path) -> dict[int, int]:
    """Sizes of the storages in an archive of torch, by where their bytes begin."""
    found: dict[int, int] = {}
    if not zipfile.is_zipfile(path):
        return found
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for member in archive.infolist():
            folder, _, name = member.filename.rpartition("/")
            if name == "byteorder" and archive.read(member).decode(errors="replace") != sys.byteorder:
                return {}
            if folder.rpartition("/")[2] != "data" or member.compress_type != zipfile.ZIP_STORED:
                continue
            file.seek(member.header_offset)
            header = file.read(LOCAL_HEADER_BYTES)
            lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            found[member.header_offset + LOCAL_HEADER_BYTES + lengths] = member.file_size
    return found
