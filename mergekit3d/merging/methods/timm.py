"""T-IMM: the Fisher-weighted average with mixing ratios learned layer by layer on the target task."""

from __future__ import annotations

from mergekit3d.merging.fusion import fuse
from mergekit3d.merging.methods import MergeMethod, register

TIMM = register(
    MergeMethod(
        name="timm",
        summary="Fisher-weighted average with mixing ratios learned on the target task (T-IMM)",
        reference="Geyer, Corinzia, Wegmayr, Transfer Learning by Adaptive Merging of Multiple Models, MIDL 2019",
        combine=fuse,
        uses_fisher=True,
        learned_ratios=True,
    )
)
