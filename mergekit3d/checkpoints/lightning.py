"""Lightning's ``.ckpt``: a state dict whose names begin with the attribute that holds the network, hyperparameters, optimizers.

Read with ``weights_only=True``, so where the hyperparameters are plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit3d.checkpoints.archive import begins_as_zip, pickle_names
from mergekit3d.checkpoints.checkpoint import Checkpoint
from mergekit3d.checkpoints.formats import Format, register, stamp_of
from mergekit3d.checkpoints.pt import checkpoint_of, find_state_dict, strip_prefixes
from mergekit3d.checkpoints.unpickling import load

WORDS = ("pytorch-lightning_version", "state_dict")


def recognises(path: Path, head: bytes) -> bool:
    """Whether a file is a checkpoint of Lightning's trainer."""
    return begins_as_zip(head) and pickle_names(path, WORDS)


def open_lightning(path: Path) -> Checkpoint:
    """Open a checkpoint of Lightning.

    Raises:
        InputError: damaged, or hyperparameters that are more than plain data.
    """
    before = stamp_of(path)
    state = find_state_dict(load(path), path)
    return checkpoint_of(path, strip_prefixes(without_attribute(state)), before.size, None, mapped_from=(path, before))


def without_attribute(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by the names that the network itself gives them: without the module's attribute, where all stand under one."""
    attributes = {name.partition(".")[0] if "." in name else "" for name in state}
    if len(attributes) != 1 or "" in attributes:
        return dict(state)
    return {name.partition(".")[2]: tensor for name, tensor in state.items()}


LIGHTNING = register(Format("lightning", recognises=recognises, open=open_lightning))
