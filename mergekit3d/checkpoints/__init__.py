"""Checkpoints in and out: names, shapes, tensors and metadata, whatever the file format.

To add a format: a file beside this one that makes a `Format` and registers it, and its import below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit3d.checkpoints import lightning, monai, nnunet, nnunet_plans, pt, safetensors, torchscript  # noqa: F401  importing registers
from mergekit3d.checkpoints.ancestry import ancestry_of
from mergekit3d.checkpoints.checkpoint import Checkpoint, TensorEntry, dtype_name
from mergekit3d.checkpoints.formats import FORMATS, Format, check_file, is_folder, recognise
from mergekit3d.checkpoints.metadata import CHECKPOINT, FISHER, Metadata, TaskSpec
from mergekit3d.checkpoints.pt import aliases_of
from mergekit3d.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = [
    "CHECKPOINT",
    "FISHER",
    "Checkpoint",
    "Metadata",
    "TaskSpec",
    "TensorEntry",
    "aliases_of",
    "allowed_mirroring",
    "ancestry_of",
    "check_weights",
    "format_for",
    "load_tensors",
    "open_checkpoint",
    "origin_of",
    "recognised_format",
    "save_tensors",
    "unsaid",
    "write_checkpoint",
]


TRAININGS = ("train", "adapt", "finetune")


def open_checkpoint(path: Path | str, *, verify: bool = True) -> Checkpoint:
    """Open a checkpoint of any known format.

    Args:
        path: the file.
        verify: compare the content with the seal, where there is one.

    Raises:
        InputError: missing, damaged, or of no known format.
    """
    path = Path(path)
    checkpoint = recognised_format(path).open(path)
    if verify:
        checkpoint.check_seal()
    return checkpoint


def recognised_format(path: Path) -> Format:
    """The format of a file or folder, told from what it holds, whatever its name.

    Raises:
        InputError: missing, unreadable, or of no known format.
    """
    folder = is_folder(path)
    if not folder:
        check_file(path)
    try:
        found = recognise(path)
    except OSError as error:
        raise InputError("cannot read the file", where=path, found=(error.strerror or "an error").lower()) from error
    if found is not None:
        return found
    if folder:
        raise InputError("cannot read the file", where=path, wanted="a file, or the folder of a bundle", found="a folder of other things")
    raise InputError("not a checkpoint", where=path, wanted=f"a file of one of the formats {', '.join(FORMATS)}", found="other content")


def check_weights(checkpoint: Checkpoint) -> None:
    """Refuse what cannot be merged or trained from.

    Raises:
        InputError: a Fisher diagonal, or values that are not finite.
    """
    if checkpoint.metadata is not None and checkpoint.metadata.kind == FISHER:
        raise InputError("a Fisher diagonal stands where a checkpoint is wanted", where=checkpoint.path)
    checkpoint.check_finite()


def write_checkpoint(path: Path | str, tensors: Iterable[tuple[TensorEntry, np.ndarray]], metadata: Metadata) -> Metadata:
    """Write tensors with metadata, in the format that the ending of the name asks for, atomically.

    Returns:
        The metadata with its seal.

    Raises:
        UsageError: no format has that ending.
        OutputError: the file system refused.
    """
    path = Path(path)
    return format_for(path, metadata).writer()(path, tensors, metadata)


def format_for(path: Path, metadata: Metadata | None = None) -> Format:
    """The format that the ending of a name asks for.

    Args:
        path: the name.
        metadata: of what will be written, where it is known: some endings stay with the format that a checkpoint came in.

    Raises:
        UsageError: no format has that ending.
    """
    suffix = path.suffix.lower()
    endings = {ending: known for _, known in FORMATS.items() for ending in known.suffixes}
    if suffix not in endings:
        raise UsageError("no checkpoint format has that ending", where=path.name, wanted=" or ".join(sorted(endings)))
    if metadata is None:
        return endings[suffix]
    return next((known for _, known in FORMATS.items() if suffix in known.also and known.continues(metadata)), endings[suffix])


def save_tensors(path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Metadata) -> Metadata:
    """Write torch tensors, names of one tensor as its aliases; see `write_checkpoint`."""
    import torch

    metadata = replace(metadata, aliases=aliases_of(tensors))

    def items() -> Iterable[tuple[TensorEntry, np.ndarray]]:
        for name, tensor in tensors.items():
            cpu = tensor.detach().cpu().contiguous()
            is_bfloat16 = cpu.dtype == torch.bfloat16
            values = (cpu.float() if is_bfloat16 else cpu).numpy()
            yield TensorEntry(name, "BF16" if is_bfloat16 else dtype_name(values.dtype), tuple(cpu.shape)), values

    return write_checkpoint(path, items(), metadata)


def origin_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What a file of another program holds beside its tensors, for what is made from it; code that was not run is no part of it."""
    origin = {} if checkpoint.metadata is None else checkpoint.metadata.origin
    return {} if "code" in origin else origin


def allowed_mirroring(checkpoint: Checkpoint) -> tuple[int, ...] | None:
    """The axes of x, y, z (0, 1, 2) that a network of nnU-Net, or a merge of such, may be mirrored along; None where nothing tells.

    What mergekit3d trained since was mirrored as its recipe said.
    """
    origin, metadata = origin_of(checkpoint), checkpoint.metadata
    if metadata is None or origin.get("format") != nnunet.NAME or metadata.method in TRAININGS or not metadata.architecture:
        return None
    axes = metadata.architecture.get("axes")
    return None if axes is None else tuple(sorted(axes[axis] for axis in origin["mirroring_axes"] or ()))


def unsaid(checkpoint: Checkpoint) -> str | None:
    """Why the task of a checkpoint of nnU-Net cannot be said, in a few words; None of any other."""
    origin = origin_of(checkpoint)
    return nnunet_plans.unsaid_task(origin) if origin.get("format") == nnunet.NAME else None


def load_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint in memory, as torch tensors of their own dtype (bfloat16 widened to float32).

    Raises:
        InputError: the file changed meanwhile.
    """
    import torch

    def tensor(name: str) -> Any:
        return torch.from_numpy(checkpoint.read(name).copy())

    tensors = {name: tensor(name) for name in checkpoint.entries}
    checkpoint.check_steady()
    return tensors
