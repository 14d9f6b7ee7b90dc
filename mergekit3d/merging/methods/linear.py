"""Linear: the weighted average of the weights with the ratios that the recipe gives."""

from __future__ import annotations

from mergekit3d.merging.methods import MergeMethod, register
from mergekit3d.merging.methods.mean_imm import average

LINEAR = register(
    MergeMethod(
        name="linear",
        summary="weighted average of the weights: by source, by glob, or along the depth of the network",
        reference="Wortsman et al., Model soups, ICML 2022",
        combine=average,
        learnable=True,
    )
)
