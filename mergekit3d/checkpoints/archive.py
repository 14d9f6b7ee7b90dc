"""What a zip archive of torch holds, looked at without unpickling anything."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

MAX_PICKLE_BYTES = 64 << 20


def begins_as_zip(head: bytes) -> bool:
    """Whether a file that begins with these bytes may be a zip archive."""
    return head[:4] == b"PK\x03\x04"


def names_in(path: Path) -> list[str]:
    """Names in an archive; empty where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return []


def members(path: Path) -> list[str]:
    """Names in an archive, without the folder that torch puts everything in; empty where it is none."""
    return [name.partition("/")[2] or name for name in names_in(path)]


def pickle_names(path: Path, words: Sequence[str]) -> bool:
    """Whether the pickle of a torch archive holds all these words; nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.partition("/")[2] == "data.pkl"), None)
            if name is None or archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
                return False
            content = archive.read(name)
    except Exception:  # noqa: BLE001  a damaged archive can raise anything; the format that takes it tells
        return False
    return all(word.encode() in content for word in words)
