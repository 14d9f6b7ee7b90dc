"""FreeSurfer ids: which are brain, which tissue each is made of, and which is the same structure on the other side."""

from __future__ import annotations

import numpy as np

from mergekit3d.datasets.phantom.fields import Array

_TISSUE_IDS: dict[str, tuple[int, ...]] = {
    "csf": (24, 221),
    "ventricle": (4, 5, 14, 15, 43, 44, 72, 213),
    "cortex": (3, 42, *range(1000, 1004), *range(1005, 1036), *range(2000, 2004), *range(2005, 2036)),
    "white matter": (2, 41, 192, *range(251, 256), 1004, 2004),
    "lesion": (25, 57, 77, 78, 79, 136, 163),
    "cerebellar cortex": (8, 47),
    "cerebellar white matter": (7, 46),
    "thalamus": (9, 10, 48, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "accumbens": (26, 58, 27, 59),
    "hippocampus": (17, 53, 137, 164),
    "amygdala": (18, 54),
    "ventral DC": (28, 60),
    "brainstem": (16, 170, 171, 172, 173, 174, 175, 178, 179),
    "choroid plexus": (31, 63),
    "vessel": (30, 62),
    "chiasm": (85,),
}
VESSEL, NECROSIS, DURA, ENHANCING = 3000, 3001, 3002, 3004  # of our own, for rendering only
TISSUES: dict[int, str] = {label: tissue for tissue, labels in _TISSUE_IDS.items() for label in labels} | {
    VESSEL: "vessel",
    DURA: "dura",
    NECROSIS: "necrosis",
    ENHANCING: "enhancing tumour",
}
LARGEST_ID = ENHANCING
_PAIRS = {2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 9: 48, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54, 25: 57, 26: 58, 27: 59}
_PAIRS |= {28: 60, 30: 62, 31: 63, 136: 163, 137: 164} | {1000 + region: 2000 + region for region in range(36)}


def _table(pairs: dict[int, int]) -> Array:
    table = np.arange(LARGEST_ID + 1, dtype=np.int16)
    table[list(pairs)] = list(pairs.values())
    return table


LEFT_TO_RIGHT = _table(_PAIRS)
SWAPPED_SIDES = _table(_PAIRS | {right: left for left, right in _PAIRS.items()})
SIDES = np.where(np.arange(LARGEST_ID + 1) != LEFT_TO_RIGHT, 1, np.where(np.arange(LARGEST_ID + 1) != SWAPPED_SIDES, 2, 0)).astype(np.int8)


def member_table(*tissues: str) -> Array:
    """Which ids are of one of some tissues, (ids,) bool."""
    table = np.zeros(LARGEST_ID + 1, dtype=bool)
    table[[label for label, tissue in TISSUES.items() if tissue in tissues]] = True
    return table
