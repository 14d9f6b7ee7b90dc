"""What preprocessing does to every subject."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mergekit3d.errors import UsageError
from mergekit3d.registry import did_you_mean

NYUL, HISTOGRAM = "nyul", "histogram"
INTENSITIES = ("zscore", "rank", NYUL, HISTOGRAM, "none")
LEARNED = (NYUL, HISTOGRAM)
"""Those that map onto a scale which is learned from images first."""
VERSION = 1
"""Counted up when the same settings would give other files."""


@dataclass(frozen=True)
class Settings:
    """The steps, in the order in which they are carried out, but that the crop comes before N4, which then has less to do.

    Args:
        n4: correct the bias field.
        n4_shrink: of the grid that the field is estimated on, along every axis; None: to voxels of about 4 mm.
        crop: to the foreground and the labels.
        margin: voxels around them.
        spacing_mm: voxel size of the output; None: that of the input.
        intensity: zscore, rank, nyul, histogram or none.
    """

    n4: bool = True
    n4_shrink: int | None = None
    crop: bool = True
    margin: int = 2
    spacing_mm: tuple[float, float, float] | None = None
    intensity: str = "zscore"

    def __post_init__(self) -> None:
        """Refuse what cannot be done.

        Raises:
            UsageError: a value is out of range.
        """
        if self.intensity not in INTENSITIES:
            raise UsageError("unknown intensity normalisation", found=self.intensity, todo=did_you_mean(self.intensity, INTENSITIES))
        if self.n4_shrink is not None and not 1 <= self.n4_shrink <= 16:
            raise UsageError("cannot shrink for N4", wanted="a factor of 1 to 16", found=self.n4_shrink)
        if self.margin < 0:
            raise UsageError("cannot crop", wanted="a margin of at least 0 voxels", found=self.margin)
        if self.spacing_mm is not None and not all(0.1 <= edge <= 20 for edge in self.spacing_mm):
            raise UsageError("cannot resample", wanted="voxel edges of 0.1 to 20 mm", found=self.spacing_mm)

    def as_json(self) -> dict[str, Any]:
        """Plain data for the record."""
        content = asdict(self)
        content["spacing_mm"] = None if self.spacing_mm is None else list(self.spacing_mm)
        return content

    def geometry(self) -> dict[str, Any]:
        """All but the intensities: what decides the images that scales are learned from."""
        return {key: value for key, value in self.as_json().items() if key != "intensity"}
