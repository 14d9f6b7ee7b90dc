"""TorchScript archives (``torch.jit.save``): their parameters and buffers, under the names of the module's state dict.

The archive is read here, without `torch.jit.load`: that runs code of the archive, is deprecated, and needs the device and operators
that the module was saved with. Which attributes are tensors of the state dict stands in the source of each class.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergekit3d.checkpoints.archive import MAX_PICKLE_BYTES, begins_as_zip, members
from mergekit3d.checkpoints.checkpoint import Checkpoint
from mergekit3d.checkpoints.formats import Format, check_file, register
from mergekit3d.checkpoints.pt import checkpoint_of
from mergekit3d.errors import InputError

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
CLASS = re.compile(r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*?)\]\n  __buffers__ = \[(.*?)\]", re.MULTILINE | re.DOTALL)
NAMES = re.compile(r'"([^"]+)"')


def recognises(path: Path, head: bytes) -> bool:
    """Whether a file is a TorchScript archive."""
    if not begins_as_zip(head):
        return False
    names = members(path)
    return "constants.pkl" in names and any(name.startswith("code/") for name in names)


def open_torchscript(path: Path) -> Checkpoint:
    """Open a TorchScript archive; none of its code runs.

    Raises:
        InputError: damaged, or tensors of a kind that cannot be used.
    """
    size = check_file(path)
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                raise InputError("the file is damaged", where=path, found="a wrong checksum inside", todo="restore it from a copy")
            archive = _Archive(file, size)
            state = dict(_tensors(archive.module(), archive.state_names()))
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError("cannot use the TorchScript archive", where=path, wanted="modules of dense tensors", found=error) from error
    except Exception as error:  # a damaged archive or pickle can raise anything
        found = f"a damaged file ({type(error).__name__})"
        raise InputError("cannot read the checkpoint", where=path, found=found, todo="restore it from a copy") from error
    if not state:
        raise InputError("no tensors in the file", where=path, wanted="a module with parameters")
    return checkpoint_of(path, state, size, None)


class _Scripted:
    """An object of a class of the archive: its attributes, and nothing that runs."""

    def __init__(self) -> None:
        self.attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module that packs its own state")
        self.attributes = state


class _Archive(pickle.Unpickler):
    """The pickle of an archive, in which every name stands for something inert."""

    def __init__(self, file: zipfile.ZipFile, size: int) -> None:
        self.file, self.size = file, size
        self.root = file.namelist()[0].partition("/")[0]
        self.storages: dict[str, Any] = {}
        super().__init__(io.BytesIO(self._read("data.pkl", MAX_PICKLE_BYTES)))

    def _read(self, name: str, most: int) -> bytes:
        if self.file.getinfo(f"{self.root}/{name}").file_size > most:
            raise ValueError("a member larger than it can be")
        return self.file.read(f"{self.root}/{name}")

    def module(self) -> _Scripted:
        """The module that was saved."""
        found = self.load()
        if not isinstance(found, _Scripted):
            raise pickle.UnpicklingError("no module")
        return found

    def state_names(self) -> dict[str, list[str]]:
        """For each class, its parameters and buffers, told from its source."""
        found = {}
        for name in self.file.namelist():
            inner = name.partition("/")[2]
            if inner.startswith("code/") and inner.endswith(".py"):
                source = self._read(inner, MAX_PICKLE_BYTES).decode()
                module = inner.removeprefix("code/").removesuffix(".py").replace("/", ".")
                for class_name, parameters, buffers in CLASS.findall(source):
                    found[f"{module}.{class_name}"] = NAMES.findall(parameters) + NAMES.findall(buffers)
        return found

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the pickle."""
        if module.split(".", maxsplit=1)[0] == "__torch__":
            return type(f"{module}.{name}", (_Scripted,), {})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return name
        if module == "torch.jit._pickle":
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """The storage that a tensor is a view of."""
        import torch

        _, kind, key, _, _ = pid
        if key not in self.storages:
            content = bytearray(self._read(f"data/{int(key)}", self.size))
            dtype = getattr(torch, STORAGES[kind])
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _rebuilt(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Any:
    return storage.as_strided(size, stride, offset)


def _tensors(module: _Scripted, names: Mapping[str, list[str]], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Parameters, buffers, then those of the modules within, as in a state dict."""
    for name in names.get(type(module).__name__, []):
        tensor = module.attributes[name]
        if tensor is not None:
            yield f"{prefix}{name}", tensor
    for name, attribute in module.attributes.items():
        if isinstance(attribute, _Scripted):
            yield from _tensors(attribute, names, f"{prefix}{name}.")


TORCHSCRIPT = register(Format("torchscript", recognises=recognises, open=open_torchscript))
