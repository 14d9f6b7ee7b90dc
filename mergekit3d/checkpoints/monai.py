"""MONAI bundles: a folder or a zip archive with ``configs/`` and ``models/``.

None of a bundle's code runs: its configuration is read as plain data. Ours hold a bare state dict in ``models/model.pt``, as MONAI's
`CheckpointLoader` takes it, and our metadata under its own key of ``configs/metadata.json``.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.checkpoints.archive import begins_as_zip, names_in
from mergekit3d.checkpoints.bundle import METADATA, MODEL, Bundle, CodeInConfigError, network_of_bundle, task_of_bundle
from mergekit3d.checkpoints.bundle_writing import configs_of
from mergekit3d.checkpoints.checkpoint import Checkpoint, TensorEntry
from mergekit3d.checkpoints.formats import Format, check_file, recognise, register, stamp_of
from mergekit3d.checkpoints.metadata import CHECKPOINT, KEY, Metadata, parse_metadata
from mergekit3d.checkpoints.pt import checkpoint_of, find_state_dict, save_torch, state_of, strip_prefixes
from mergekit3d.checkpoints.unpickling import load
from mergekit3d.errors import InputError, UsageError
from mergekit3d.storage.atomic import write_bytes

if TYPE_CHECKING:
    import numpy as np

NAME = "monai"
MODEL_ENDINGS = (".pt", ".pth", ".safetensors", ".ts")
MOST_EXPANSION = 64
MAX_COPIED_BYTES = 64 << 20


def recognises(path: Path, head: bytes) -> bool:
    """Whether a path is a bundle."""
    if head and not begins_as_zip(head):
        return False
    if not head:
        return path.is_dir() and (path / METADATA).is_file() and (path / "models").is_dir()
    return sum(name == METADATA or name.endswith(f"/{METADATA}") for name in names_in(path)) == 1


def open_monai(path: Path) -> Checkpoint:
    """Open a bundle: the weights in ``models/``, with the network and task that its configuration tells without running it.

    Raises:
        InputError: damaged, without weights, or with several files of them.
    """
    bundle = Bundle(path)
    text = bundle.config(METADATA).get(KEY)
    if isinstance(text, str):
        return _opened(bundle, parse_metadata(text, path))
    checkpoint = _opened(bundle, None)
    if checkpoint.metadata is not None:
        return checkpoint
    return replace(checkpoint, metadata=_told(bundle), is_foreign=True)


def _told(bundle: Bundle) -> Metadata:
    """What the configuration tells; where the network is told by an expression, the digest that allows to run it."""
    try:
        architecture, origin = network_of_bundle(bundle), {}
    except CodeInConfigError:
        architecture, origin = None, {"format": NAME, "code": bundle.code_digest()}
    task = None if architecture is None else task_of_bundle(bundle)
    if task is not None and architecture is not None:
        fits = (len(task.modalities), task.channels) == (architecture["in_channels"], architecture["out_channels"])
        task = task if fits else None
    return Metadata(kind=CHECKPOINT, architecture=architecture, task=task, tool={"name": "MONAI bundle"}, origin=origin)


def _opened(bundle: Bundle, metadata: Metadata | None) -> Checkpoint:
    """The weights of a bundle, under the path of the bundle."""
    name = _model_in(bundle)
    if bundle.path.is_dir():
        file = bundle.path / name
        before, known = stamp_of(file), recognise(file)
        if known is None:
            raise InputError("not a checkpoint", where=file, wanted="weights", found="other content")
        if known.name != "pt":
            return replace(known.open(file), path=bundle.path)
        content, size, mapped = load(file), before.size, (file, before)
    else:
        if Path(name).suffix not in (".pt", ".pth"):
            raise InputError("cannot read the weights", where=f"{bundle.path}: {name}", todo="unpack the bundle first")
        size = bundle.size_of(name)
        mapped = None
        content = load(Path(f"{bundle.path}: {name}"), bundle.read(name, MOST_EXPANSION * check_file(bundle.path)))
    state = find_state_dict(content, bundle.path)
    return checkpoint_of(bundle.path, state if metadata is not None else strip_prefixes(state), size, metadata, mapped_from=mapped)


def _model_in(bundle: Bundle) -> str:
    if MODEL in bundle.members:
        return MODEL
    found = [name for name in bundle.members if name.startswith("models/") and name.endswith(MODEL_ENDINGS)]
    if len(found) != 1:
        wanted, names = f"{MODEL}, or one file of weights in models/", ", ".join(found[:4]) or "none"
        raise InputError("cannot choose the weights of the bundle", where=bundle.path, wanted=wanted, found=names)
    return found[0]


def write_monai(path: Path, tensors: Iterable[tuple[TensorEntry, np.ndarray]], metadata: Metadata, like: Path | None = None) -> Metadata:
    """Write a bundle, sealed: a folder, or an archive where the name ends with ``.zip``.

    With `like`, all other files of that bundle are taken over as they are; else a configuration for inference is written.

    Raises:
        UsageError: the template is no bundle; or, without one, architecture or task are unknown, or MONAI cannot prepare the images so.
        OutputError: the file system refused.
    """
    state, sealed = state_of(tensors, metadata)
    files = configs_of(metadata, path) if like is None else _files_of(like)
    described = json.loads(files.pop(METADATA))
    files[METADATA] = json.dumps({**described, KEY: sealed.as_text()}, indent=2, ensure_ascii=False).encode()
    if path.suffix.lower() == ".zip":
        write_bytes(path, _zipped(state, files))
        return sealed
    save_torch(path / MODEL, state)
    for name, content in files.items():
        # The metadata come last: without them a folder is no bundle.
        write_bytes(path / name, content)
    return sealed


def _zipped(state: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """An archive of a bundle, which tells neither its own name nor the time."""
    import torch

    weights, whole = io.BytesIO(), io.BytesIO()
    torch.save(state, weights)
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in {MODEL: weights.getvalue(), **files}.items():
            archive.writestr(zipfile.ZipInfo(f"bundle/{name}"), content, zipfile.ZIP_DEFLATED)
    return whole.getvalue()


def _files_of(like: Path) -> dict[str, bytes]:
    """What a bundle holds beside its weights.

    Raises:
        UsageError: it is no bundle.
    """
    if recognise(like) is not MONAI:
        raise UsageError("the template is no MONAI bundle", where=like, wanted=f"a folder or zip with {METADATA}")
    bundle = Bundle(like)
    names = [name for name in bundle.members if not name.startswith("models/") and ".." not in Path(name).parts]
    return {name: bundle.read(name, MAX_COPIED_BYTES) for name in names}


MONAI = register(Format(NAME, recognises=recognises, open=open_monai, write=write_monai, suffixes=(".zip",)))
