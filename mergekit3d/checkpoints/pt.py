"""``.pt`` and ``.pth`` files: only what `torch.load(weights_only=True)` accepts, never a pickle that runs code.

Ours hold ``{"state_dict": ..., "mergekit3d": "<canonical JSON>"}``. Others may be a bare state dict, or hold one under a usual key,
with the usual prefixes on its names.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from mergekit3d.checkpoints.checkpoint import Checkpoint, TensorEntry, buffer_of, encode
from mergekit3d.checkpoints.formats import Format, refuse_template, register, stamp_of
from mergekit3d.checkpoints.metadata import KEY, Metadata, parse_metadata
from mergekit3d.checkpoints.reading import ReadInto, places_in_archive, reader
from mergekit3d.checkpoints.unpickling import load
from mergekit3d.errors import InputError
from mergekit3d.storage.atomic import atomic_open
from mergekit3d.storage.seal import tensor_digest, tensors_digest
from mergekit3d.storage.steady import Stamp, refuse_changed

if TYPE_CHECKING:
    import numpy as np

STATE_DICT_KEYS = ("state_dict", "model", "network_weights", "backbone_state_dict")
PREFIXES = ("module.", "_orig_mod.", "net.")
TORCH_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def recognises(_: Path, head: bytes) -> bool:
    """Whether a file that begins with these bytes is a zip archive of torch, or a legacy pickle.

    A safetensors file may begin with 0x80 as well (the lowest byte of its header's length), but has a brace at byte 8.
    """
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[8:9] != b"{")


def open_pt(path: Path) -> Checkpoint:
    """Open a ``.pt`` file.

    Raises:
        InputError: damaged, or a pickle of anything but tensors and plain data.
    """
    before = stamp_of(path)
    content = load(path)
    metadata = metadata_in(content, path)
    state = find_state_dict(content, path)
    # Ours are written under the very names that the seal covers.
    return checkpoint_of(path, strip_prefixes(state) if metadata is None else state, before.size, metadata, mapped_from=(path, before))


def metadata_in(content: Any, path: Path) -> Metadata | None:
    """The metadata of ours in what a pickle held; None: another program wrote it.

    Raises:
        InputError: damaged metadata.
    """
    text = content.get(KEY) if isinstance(content, Mapping) else None
    return parse_metadata(text, path) if isinstance(text, str) else None


def checkpoint_of(
    path: Path,
    state: Mapping[str, Any],
    size: int,
    metadata: Metadata | None,
    *,
    is_foreign: bool = False,
    mapped_from: tuple[Path, Stamp] | None = None,
) -> Checkpoint:
    """A checkpoint of torch tensors in memory, or mapped.

    Args:
        path: the file that they come from.
        state: tensors by name.
        size: of the file in bytes: no tensor is larger.
        metadata: what the file says of itself.
        is_foreign: the metadata is no part of the file.
        mapped_from: the file that `load` mapped the tensors from, and its stamp before: their bytes are read from it instead, since a
            file that is cut ends the process that touches its map; None: they are in memory.

    Raises:
        InputError: a tensor is of a kind that cannot be used, or the file changed since its stamp was taken.
    """
    entries = {name: _entry(name, tensor, size, path) for name, tensor in state.items()}
    places: Mapping[str, int] = {}
    from_file: ReadInto | None = None
    check_steady: Callable[[], None] = _in_memory
    if mapped_from is not None:
        file, before = mapped_from
        places = places_in_archive(file, state) if hasattr(os, "preadv") else {}
        descriptor = os.open(file, os.O_RDONLY)
        from_file = reader(path, descriptor, places.__getitem__, before)  # which closes it
        check_steady = partial(refuse_changed, before, descriptor, path)
        check_steady()

    def content(name: str) -> memoryview:
        if from_file is None or name not in places:
            check_steady()  # a map of the file, if anything
            return memoryview(_bytes_of(state[name]))
        buffer = memoryview(bytearray(entries[name].nbytes))
        from_file(name, 0, buffer)
        return buffer

    def read_into(name: str, offset: int, buffer: memoryview) -> None:
        if from_file is not None and name in places:
            from_file(name, offset, buffer)
        else:
            buffer[:] = memoryview(_bytes_of(state[name]))[offset : offset + len(buffer)]

    return Checkpoint(
        path=path,
        entries=entries,
        metadata=metadata,
        content=content,
        read_into=read_into if places else None,
        check_steady=check_steady,
        aliases=aliases_of(state),
        is_foreign=is_foreign,
    )


def _in_memory() -> None:
    """Nothing can change any more."""


def aliases_of(state: Mapping[str, Any]) -> dict[str, str]:
    """Names that are the very same entries of the very same storage as an earlier one, each with the first."""
    owners: dict[Any, str] = {}
    found = {}
    for name, tensor in state.items():
        if tensor.numel():
            place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            owner = owners.setdefault(place, name)
            if owner != name:
                found[name] = owner
    return found


def _entry(name: str, tensor: Any, file_size: int, path: Path) -> TensorEntry:
    dtype = TORCH_NAMES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None or str(tensor.layout) != "torch.strided" or tensor.is_quantized or tensor.is_meta:
        raise InputError("cannot use the tensor", where=f"{path}: {name}", wanted="a dense float or integer tensor", found=tensor.dtype)
    entry = TensorEntry(name, dtype, tuple(tensor.shape))
    if entry.nbytes > file_size:
        # An expanded view of a few bytes: reading it would fill the memory.
        raise InputError(
            "cannot use the tensor", where=f"{path}: {name}", wanted="at most the size of its file", found=f"{entry.nbytes} bytes"
        )
    return entry


def find_state_dict(content: Any, path: Path) -> dict[str, Any]:
    """The tensors by name in what a pickle held: bare, or under a usual key.

    Raises:
        InputError: there are none.
    """
    import torch

    for key in (None, *STATE_DICT_KEYS):
        candidate = content if key is None else content.get(key)
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in candidate.items())
        ):
            return dict(candidate)
        if not isinstance(content, Mapping):
            break
    found = f"keys {', '.join(map(str, list(content)[:6]))}" if isinstance(content, Mapping) else type(content).__name__
    wanted = f"tensors by name, bare or under {', '.join(STATE_DICT_KEYS)}"
    raise InputError("no state dict in the file", where=path, wanted=wanted, found=found)


def strip_prefixes(state: dict[str, Any]) -> dict[str, Any]:
    """Tensors under their own names, without the usual prefixes where all have them."""
    stripping = True
    while stripping:
        stripping = False
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
                stripping = True
    return state


def _bytes_of(tensor: Any) -> Any:
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def write_pt(path: Path, tensors: Iterable[tuple[TensorEntry, np.ndarray]], metadata: Metadata, like: Path | None = None) -> Metadata:
    """Write a ``.pt`` file atomically, sealed, loadable with ``weights_only=True``.

    Raises:
        OutputError: the file system refused; the previous file stays.
    """
    refuse_template(like, "pt")
    state, sealed = state_of(tensors, metadata)
    save_torch(path, {"state_dict": state, KEY: sealed.as_text()})
    return sealed


def state_of(tensors: Iterable[tuple[TensorEntry, np.ndarray]], metadata: Metadata) -> tuple[dict[str, Any], Metadata]:
    """Torch tensors by name, aliases sharing one, and the metadata with the seal over them."""
    import torch

    state: dict[str, Any] = {}
    digests: dict[str, str] = {}
    for entry, values in tensors:
        owner = metadata.aliases.get(entry.name)
        if owner is not None:
            state[entry.name], digests[entry.name] = state[owner], digests[owner]
            continue
        content = encode(values, entry.dtype)
        digests[entry.name] = tensor_digest(entry.dtype, entry.shape, buffer_of(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing writes to what may be a file's own bytes
            # torch refuses the pointer of an empty array over a file's bytes.
            tensor = torch.from_numpy(content if content.size else content.copy())
        state[entry.name] = tensor.view(torch.bfloat16) if entry.dtype == "BF16" else tensor
    return state, metadata.sealed(tensors_digest(digests))


def save_torch(path: Path, content: Any) -> None:
    """Write what `torch.save` writes, atomically.

    Raises:
        OutputError: the file system refused; the previous file stays.
    """
    import torch

    with atomic_open(path) as file:
        disk = _Disk(file)
        try:
            torch.save(content, cast(IO[bytes], disk))
        except Exception as error:
            raise disk.failure or error from error


class _Disk(io.RawIOBase):
    """A file that remembers why a write failed: torch tells a full disk as an assertion of its archive."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.file = file
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.failure = error
            raise


PT = register(Format("pt", recognises=recognises, open=open_pt, write=write_pt, suffixes=(".pt", ".pth"), is_general=True))
