"""``mergekit3d verify``: whether a file is what its seal says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit3d.checkpoints import open_checkpoint
from mergekit3d.errors import InputError


@dataclass(frozen=True)
class VerifyResult:
    """A file that is intact.

    Args:
        path: the file.
        kind: checkpoint or fisher.
        digest: identity of its tensors.
        tensors: their number.
        method: what made it.
    """

    path: Path
    kind: str
    digest: str
    tensors: int
    method: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"file": str(self.path), **vars(self), "path": str(self.path), "intact": True}

    def lines(self) -> list[str]:
        """One line for people."""
        return [f"{self.path}: intact {self.kind} ({self.method}), {self.tensors} tensors, {self.digest}"]


def verify(path: Path | str) -> VerifyResult:
    """Check the seal of a file that mergekit3d wrote.

    Raises:
        InputError: damaged, or without a seal.
    """
    checkpoint = open_checkpoint(path, verify=True)
    if checkpoint.metadata is None or checkpoint.is_foreign:
        raise InputError("the file has no seal", where=path, wanted="a file that mergekit3d wrote")
    return VerifyResult(Path(path), checkpoint.metadata.kind, checkpoint.digest, len(checkpoint.entries), checkpoint.metadata.method)
