"""How bright each tissue is in each modality, relative to white matter in T1, and how much that varies from subject to subject.

The values follow the order of tissues in clinical images at 3 T; deep grey matter lies between cortex and white matter, and no
class of the 14 has a brightness of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergekit3d.datasets.phantom.fields import Array
from mergekit3d.datasets.phantom.tissues import LARGEST_ID, TISSUES

MODALITIES = ("t1", "t1ce", "t2", "flair")

#                                  t1    t1ce  t2    flair
BRIGHTNESS: dict[str, tuple[float, float, float, float]] = {
    "csf": (0.22, 0.24, 1.00, 0.14),
    "ventricle": (0.20, 0.22, 1.02, 0.10),
    "cortex": (0.64, 0.67, 0.58, 0.64),
    "white matter": (1.00, 1.01, 0.38, 0.50),
    "lesion": (0.76, 0.77, 0.66, 0.95),
    "cerebellar cortex": (0.63, 0.66, 0.57, 0.60),
    "cerebellar white matter": (0.96, 0.97, 0.40, 0.51),
    "thalamus": (0.80, 0.82, 0.47, 0.58),
    "caudate": (0.70, 0.72, 0.52, 0.62),
    "putamen": (0.74, 0.76, 0.49, 0.60),
    "pallidum": (0.90, 0.92, 0.34, 0.49),
    "accumbens": (0.69, 0.71, 0.55, 0.63),
    "hippocampus": (0.66, 0.69, 0.60, 0.68),
    "amygdala": (0.65, 0.68, 0.59, 0.67),
    "ventral DC": (0.88, 0.90, 0.41, 0.53),
    "brainstem": (0.90, 0.91, 0.42, 0.52),
    "choroid plexus": (0.48, 1.15, 0.82, 0.60),
    "vessel": (0.50, 1.40, 0.20, 0.25),
    "dura": (0.52, 0.85, 0.40, 0.42),
    "chiasm": (0.80, 0.82, 0.48, 0.55),
    "necrosis": (0.44, 0.46, 0.85, 0.52),
    "enhancing tumour": (0.62, 1.25, 0.62, 0.76),
    "edema": (0.72, 0.73, 0.74, 0.88),
}
TISSUE_SPREAD = 0.02  # standard deviation of a tissue's brightness between subjects
TUMOUR_SPREAD = 0.10  # tumours differ more
GAMMA_SPREAD = 0.06  # of the logarithm of the exponent that bends the whole scale


def draw_contrasts(generator: np.random.Generator, modalities: Sequence[str]) -> tuple[Array, Array]:
    """Draw the brightness of every tissue for one subject.

    Args:
        generator: the source of randomness; the same draws whichever modalities are asked for.
        modalities: names out of `MODALITIES`.

    Returns:
        (modalities, ids) float32 by FreeSurfer id, 0 for background; (modalities,) float32 of edema.
    """
    drawn: dict[str, Array] = {}
    for tissue, brightness in BRIGHTNESS.items():
        spread = TUMOUR_SPREAD if tissue in ("necrosis", "enhancing tumour", "edema", "vessel", "dura", "choroid plexus") else TISSUE_SPREAD
        drawn[tissue] = np.maximum(0.05, np.array(brightness) + spread * generator.standard_normal(len(MODALITIES)))
    gamma = np.exp(GAMMA_SPREAD * generator.standard_normal(len(MODALITIES)))
    columns = [MODALITIES.index(modality) for modality in modalities]
    table = np.zeros((len(modalities), LARGEST_ID + 1), dtype=np.float32)
    for label, tissue in TISSUES.items():
        table[:, label] = (drawn[tissue] ** gamma)[columns]
    return table, (drawn["edema"] ** gamma)[columns].astype(np.float32)
