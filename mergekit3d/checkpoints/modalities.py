"""The one name of each modality, whatever a data set or a checkpoint calls it."""

from __future__ import annotations

MODALITY_ALIASES = {
    "t1w": "t1",
    "t1n": "t1",
    "t1gd": "t1ce",
    "t1c": "t1ce",
    "t1post": "t1ce",
    "t1wce": "t1ce",
    "t1wgd": "t1ce",
    "t2w": "t2",
    "t2f": "flair",
    "t2flair": "flair",
}


def canonical_modality(name: str) -> str:
    """The one name of a modality: lower case, without separators where an alias is known ("T1Gd" and "t1c" are "t1ce")."""
    lower = name.lower()
    plain = lower.replace("-", "").replace("_", "")
    if plain in MODALITY_ALIASES:
        return MODALITY_ALIASES[plain]
    return plain if plain in MODALITY_ALIASES.values() else lower
