"""``mergekit3d convert``: a checkpoint in another format, every tensor bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.architectures import network_of
from mergekit3d.checkpoints import (
    CHECKPOINT,
    Checkpoint,
    Metadata,
    TensorEntry,
    format_for,
    open_checkpoint,
    origin_of,
    recognised_format,
)
from mergekit3d.checkpoints.formats import FORMATS
from mergekit3d.checkpoints.metadata import tool
from mergekit3d.errors import UsageError
from mergekit3d.storage.atomic import real_path, refuse_existing
from mergekit3d.storage.lock import output_lock

if TYPE_CHECKING:
    import numpy as np

PICKLES = ("pt", "nnunet", "lightning")
"""Formats that are unpickled."""


@dataclass(frozen=True)
class ConvertResult:
    """A checkpoint in another format.

    Args:
        path: the checkpoint that was read.
        out: the one that was written.
        read: format of the one.
        written: format of the other.
        tensors: number of names.
        digest: identity of the tensors, which is that of both.
        code: sha256 of code that would tell the network, and was not run; None where there is none.
    """

    path: Path
    out: Path
    read: str
    written: str
    tensors: int
    digest: str
    code: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"file": str(self.path), **vars(self), "path": str(self.path), "out": str(self.out)}

    def lines(self) -> list[str]:
        """Lines for people."""
        line = f"{self.out}: {self.tensors} tensors of {self.path}, from {self.read} to {self.written}, bit for bit; {self.digest}"
        if self.code is None:
            return [line]
        return [line, f"its network is told by code, which was not run: read configs/ and scripts/, then pass --allow-code {self.code}"]


def convert(
    checkpoint: Path | str,
    out: Path | str,
    *,
    to: str | None = None,
    like: Path | str | None = None,
    allow_code: str | None = None,
    force: bool = False,
) -> ConvertResult:
    """Write a checkpoint in another format.

    Args:
        checkpoint: of any known format.
        out: the file to write, or the folder of a format that is one.
        to: name of the format; None: what the ending of `out` asks for, and nnU-Net's own where the checkpoint comes from it.
        like: a checkpoint of the format to write whose other content (plans, configuration, scripts) is taken over; for nnU-Net also the
            folder of a data set in nnUNet_preprocessed.
        allow_code: sha256 of the configurations and scripts of a MONAI bundle, whose expressions may run to tell its network; or of a
            pickle that holds more than tensors and plain data, which may run code as it is read.
        force: replace what stands there.

    Returns:
        What was read and written.

    Raises:
        UsageError: an unknown or unfit format, or an output that exists already.
        InputError: the checkpoint is damaged, or does not say what the format needs.
        OutputError: the file system refused; the previous file stays.
    """
    path, out, like = Path(checkpoint), Path(out), None if like is None else Path(like)
    (format_for(out) if to is None else FORMATS.get(to)).writer()  # known before any work
    if real_path(out) == real_path(path):
        raise UsageError("the output is the input", where=out, todo="give another name")
    refuse_existing(out, force=force)
    opened = open_checkpoint(path) if allow_code is None else _with_code(path, allow_code)
    metadata = described(opened)
    written = FORMATS.get(to) if to is not None else format_for(out, metadata)
    with output_lock(out.parent):
        sealed = written.writer()(out, _steady_items(opened), metadata, like)
    assert sealed.seal is not None
    code = opened.metadata.origin.get("code") if opened.is_foreign and opened.metadata is not None else None
    return ConvertResult(path, out, recognised_format(path).name, written.name, len(opened.entries), sealed.seal["tensors"], code)


def _steady_items(opened: Checkpoint) -> Iterator[tuple[TensorEntry, np.ndarray]]:
    """The tensors as they stand in the file, which must not have changed when the last one was taken."""
    for name, entry in opened.entries.items():
        yield entry, opened.read_bits(name)
    opened.check_steady()


def _with_code(path: Path, allowed: str) -> Checkpoint:
    """A checkpoint some of whose code may run: the expressions of a bundle, or a pickle that is more than tensors and plain data.

    Raises:
        UsageError: it has no code, or other code than was allowed.
    """
    from mergekit3d.checkpoints.bundle_code import with_network_by_code
    from mergekit3d.checkpoints.unpickling import code_allowed

    if recognised_format(path).name not in PICKLES:
        return with_network_by_code(open_checkpoint(path), allowed)
    with code_allowed(allowed):
        return open_checkpoint(path)


def described(opened: Checkpoint) -> Metadata:
    """What is written beside the tensors of a checkpoint: what it says of itself, or what they tell."""
    if opened.metadata is not None and not opened.is_foreign:
        return replace(opened.metadata, aliases=dict(opened.aliases), seal=None)
    network = network_of(opened)
    known = opened.metadata or Metadata(kind=CHECKPOINT)
    return replace(
        known,
        architecture=None if network is None else network.as_json(),
        tool=tool(),
        aliases=dict(opened.aliases),
        origin=origin_of(opened),
    )
