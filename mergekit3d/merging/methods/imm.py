"""Mode-IMM: the Fisher-weighted average with equal ratios, or those that the recipe gives."""

from __future__ import annotations

from mergekit3d.merging.fusion import fuse
from mergekit3d.merging.methods import MergeMethod, register

IMM = register(
    MergeMethod(
        name="imm",
        summary="Fisher-weighted average of the sources, one weight at a time (mode-IMM)",
        reference="Lee et al., Overcoming Catastrophic Forgetting by Incremental Moment Matching, NeurIPS 2017",
        combine=fuse,
        uses_fisher=True,
    )
)
