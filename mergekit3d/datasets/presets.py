"""Sets of random changes by name."""

from __future__ import annotations

from collections.abc import Mapping

from mergekit3d.datasets.spatial import Chance

OFF = Chance(0.0, 1.0, 1.0)

PRESETS: Mapping[str, Mapping[str, Chance]] = {
    "flips": {},
    "nnunet": {
        "rotate": Chance(0.2, -30.0, 30.0),
        "scale": Chance(0.2, 0.7, 1.4),
        "elastic": Chance(0.2, 0.0, 2.0),
        "noise": Chance(0.1, 0.0, 0.1),
        "blur": Chance(0.2, 0.5, 1.0),
        "brightness": Chance(0.15, 0.75, 1.25),
        "contrast": Chance(0.15, 0.75, 1.25),
        "low_resolution": Chance(0.25, 0.5, 1.0),
        "gamma_inverted": Chance(0.1, 0.7, 1.5),
        "gamma": Chance(0.3, 0.7, 1.5),
    },
}
"""By preset and change. nnunet: the chances and ranges of nnU-Net v2's 3D training, and the deformation that its first version had:
alpha 0 to 900, sigma 9 to 13 there are displacements of 0 to 2 voxels."""
