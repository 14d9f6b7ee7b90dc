"""What files of torch hold: tensors and plain data alone, and never a pickle that runs code unless the user names the very file."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from mergekit3d.errors import InputError, MergeKit3DError, UsageError
from mergekit3d.storage.seal import file_digest

_allowed: ContextVar[str | None] = ContextVar("allowed", default=None)


@contextmanager
def code_allowed(digest: str) -> Iterator[None]:
    """Within the block, the file with this sha256 may run code as it is unpickled, and no other is read."""
    token = _allowed.set(digest)
    try:
        yield
    finally:
        _allowed.reset(token)


def load(path: Path, content: bytes | None = None) -> Any:
    """What a file of torch holds: tensors and plain data alone; numpy's scalars come too.

    Args:
        path: the file, or what stands for it in error texts.
        content: its content, where it is not at `path`.

    Raises:
        InputError: damaged, or a pickle of anything else, but for the one that `code_allowed` names.
    """
    import torch

    try:
        if content is None and (allowed := _allowed.get()) is not None:
            content = path.read_bytes()  # what is hashed is what is loaded, whoever writes meanwhile
            if hashlib.sha256(content).hexdigest() != allowed:
                raise UsageError("the file is not the one that was allowed", where=path, wanted=allowed, found="another sha256")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
        file = path if content is None else io.BytesIO(content)
        zipped = zipfile.is_zipfile(file)
        if zipped:
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
            if broken is not None:
                raise InputError("the file is damaged", where=path, found="a wrong checksum inside", todo="restore it from a copy")
        if content is not None:
            file = io.BytesIO(content)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_scalars()):
            warnings.simplefilter("ignore")  # about odd bytes; what matters comes as an error
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped and content is None)
    except pickle.UnpicklingError as error:
        todo = "save its state_dict() alone"
        if content is None:
            todo += f", or, where you trust its author with this machine, convert it with --allow-code {file_digest(path)}"
        raise InputError("refused to unpickle", where=path, wanted="tensors and plain data", found=_culprit(error), todo=todo) from error
    except MergeKit3DError:
        raise
    except Exception as error:  # a damaged archive or pickle can raise anything
        raise InputError(
            "cannot read the checkpoint", where=path, found=f"a damaged file ({type(error).__name__})", todo="restore it from a copy"
        ) from error


def _numpy_scalars() -> list[Any]:
    """What the learning curves in nnU-Net's checkpoints are made of: numpy's scalars, which hold a number and run no code."""
    import numpy as np

    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]  # the function has no public name
    # Files written with numpy before 2.0 name the module numpy.core.
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType]


def _culprit(error: Exception) -> str:
    """What the unpickler refused: the class that it names, in a line."""
    text = str(error)
    for marker in ("GLOBAL ", "Unsupported global: ", "Unsupported class "):
        if marker in text:
            return text.split(marker, 1)[1].split(maxsplit=1)[0].strip("`.,") or "another object"
    return "another object"
