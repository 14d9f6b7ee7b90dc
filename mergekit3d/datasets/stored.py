"""Prepared subjects on the disk: one file each, named by the content that it was made from, and memory-mapped.

A key is the sha256 of all that decides the arrays: the bytes of the subject's files, the task, the ids that may occur, and the version
of the preparation. So nothing here is ever out of date: what has changed has another key. The name tells nothing of the person. Files
are written atomically, under a lock that the processes sharing a folder wait for, so that each subject is prepared once; they may be
removed at any time.

    <folder>/<first two digits of the key>/<key>.safetensors
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit3d.datasets.prepare import PREPARATION, Array, Box, Prepared
from mergekit3d.datasets.reading import image_identities
from mergekit3d.datasets.subject import Subject
from mergekit3d.datasets.vocabulary import Vocabulary
from mergekit3d.storage.atomic import write_bytes
from mergekit3d.storage.lock import waiting_lock
from mergekit3d.storage.seal import canonical_json, file_digest, json_digest, tensor_digest
from mergekit3d.volumes.nifti import Grid

if TYPE_CHECKING:
    from mergekit3d.checkpoints.metadata import TaskSpec

KEY = "mergekit3d"
SUFFIX = ".safetensors"
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "U8": np.dtype("u1")}
HEADER_LIMIT = 2**20

_sound: set[tuple[Path, int, int, int]] = set()
"""Files of which this process has seen that they are as they were written."""


def stored_key(subject: Subject, task: TaskSpec, vocabulary: Vocabulary, *, with_target: bool) -> str:
    """The name under which a prepared subject is kept; its files are hashed once a run, unless size, time or inode change.

    Raises:
        OSError: a file is not there, or no regular one.
        RecipeError: an output asks for an id that the vocabulary lacks.
    """
    allowed = vocabulary.for_outputs(task.outputs)
    images = image_identities(subject, task.modalities, _digest_of)
    label = _digest_of(subject.label) if with_target and subject.label is not None else None
    ids = [allowed.ids.start, allowed.ids.stop] if isinstance(allowed.ids, range) else [sorted(allowed.ids)]
    merged = sorted(allowed.merged.items())
    return json_digest([PREPARATION, images, label, with_target, task.as_json(), ids, merged])


def stored(folder: Path, key: str, number: int, prepare: Callable[[], Prepared]) -> Prepared:
    """The subject of a key, from its file; prepared and written first where there is none, or a damaged one.

    Args:
        folder: of all keys.
        key: see `stored_key`.
        number: of the subject, from 1.
        prepare: makes it.

    Returns:
        The subject, its arrays mapped from the file and read-only.

    Raises:
        InputError: the subject cannot be prepared.
        OutputError: the file system refused.
    """
    path = folder / key[:2] / f"{key}{SUFFIX}"
    found = _read(path, number)
    if found is not None:
        return found
    with waiting_lock(path.parent):
        found = _read(path, number)
        if found is not None:
            return found
        prepared = prepare()
        write_bytes(path, _packed(prepared))
    return _read(path, number) or prepared


def _digest_of(path: Path) -> str:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return _digest_at(path, status.st_size, status.st_mtime_ns, status.st_ino)


@cache
def _digest_at(path: Path, _size: int, _mtime_ns: int, _inode: int) -> str:
    return file_digest(path)


def _packed(prepared: Prepared) -> bytes:
    from safetensors.numpy import save

    arrays = {"image": prepared.image} | ({} if prepared.target is None else {"target": np.ascontiguousarray(prepared.target)})
    content = {
        "affine": prepared.affine.tolist(),
        "box": [prepared.box.start, prepared.box.stop],
        "native": [prepared.native.shape, prepared.native.affine.tolist()],
        "seal": {name: _digest(array) for name, array in arrays.items()},
    }
    packed: bytes = save(arrays, {KEY: canonical_json(content)})
    return packed


def _digest(array: Array) -> str:
    return tensor_digest(array.dtype.str, array.shape, array)


def _read(path: Path, number: int) -> Prepared | None:
    """The subject in a file; None where there is none, or not all of it is as it was written."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        prepared, seal = _unpacked(mapped, number)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    version = (path, status.st_size, status.st_mtime_ns, status.st_ino)
    if version not in _sound:
        arrays = {"image": prepared.image} | ({} if prepared.target is None else {"target": prepared.target})
        if seal != {name: _digest(array) for name, array in arrays.items()}:
            return None
        _sound.add(version)
    return prepared


def _unpacked(mapped: mmap.mmap, number: int) -> tuple[Prepared, dict[str, str]]:
    """The subject in a mapped file, and what its arrays' digests should be."""
    length = int.from_bytes(mapped[:8], "little")
    if length > HEADER_LIMIT:
        raise ValueError("no header")
    header = json.loads(mapped[8 : 8 + length])
    content = json.loads(header["__metadata__"][KEY])
    arrays: dict[str, Array] = {}
    for name in content["seal"]:
        entry = header[name]
        dtype, shape, start = DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + int(entry["data_offsets"][0])
        arrays[name] = np.frombuffer(mapped, dtype, math.prod(shape), start).reshape(shape)
    (start, stop), (shape, affine) = content["box"], content["native"]
    native = Grid((shape[0], shape[1], shape[2]), np.array(affine))
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    return Prepared(number, arrays["image"], arrays.get("target"), np.array(content["affine"]), box, native), content["seal"]
