"""The options that every long command shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How to run, beside what the recipe says.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32 or bf16; auto takes bf16 where the processor or GPU computes it fast.
        seed: replaces the recipe's seed.
        out: replaces the recipe's output folder or file.
        force: write over existing outputs.
        resume: go on from the snapshot of an interrupted run.
    """

    device: str = "auto"
    precision: str = "auto"
    seed: int | None = None
    out: Path | None = None
    force: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        """A place as text, as programs give it, is a path."""
        if self.out is not None:
            object.__setattr__(self, "out", Path(self.out))


DEFAULT_OPTIONS = Options()
