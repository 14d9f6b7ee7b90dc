"""T-IMM: the Fisher-weighted average with the ratios that ``adapt`` learned on the target task, layer by layer."""

from __future__ import annotations

from mergekit3d.merging.methods import MergeMethod, register
from mergekit3d.merging.methods.imm import fisher_average

TIMM = register(
    MergeMethod(
        name="timm",
        summary="Fisher-weighted average with mixing ratios learned on the target task (T-IMM)",
        reference="Geyer, Corinzia, Wegmayr, Transfer Learning by Adaptive Merging of Multiple Models, MIDL 2019",
        combine=fisher_average,
        learnable=True,
        uses_fisher=True,
        learned_ratios=True,
    )
)
